"""What a person writes under `config:` of a Postgres connection."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from wsync_sdk import Secret

__all__ = ["PostgresConfig"]


class PostgresConfig(BaseModel):
    """One Postgres database, as source or as sink."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    url: Secret = Field(description="libpq URL, `postgresql://user:password@host:port/database`; resolved at each connect.")
    connect_timeout_s: int = Field(default=10, ge=2, le=300, description="To reach the server and log in.")
    probe_timeout_s: float = Field(default=60.0, gt=0, description="Statement timeout of check, estimate and preview.")
    bookkeeping_schema: str = Field(
        default="wsync_sink",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Sink only: the schema of the tables `wsync_ack` and `wsync_fence`; made if missing.",
    )
