"""A run that is executed by several processes at once. Only adds: older engines work beside newer ones."""

from pathlib import Path

from alembic import op

revision = "0004_fan_out"
down_revision = "0003_delivery"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # By the driver: SQLAlchemy would read the `%` of format() as a parameter.
    op.get_bind().connection.driver_connection.execute(  # type: ignore[union-attr]
        Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    )


def downgrade() -> None:
    raise NotImplementedError("migrations only go forward: restore a backup")
