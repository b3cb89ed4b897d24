"""`caps list|set`: the operator's limits on how many runs are executed at once."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wsync_engine.cli.arguments import Json, Tenant
from wsync_engine.cli.boundary import reported
from wsync_engine.cli.output import print_objects, say, table
from wsync_sdk.errors import ConfigError

if TYPE_CHECKING:
    from wsync_engine.index.entries import CappedKind

__all__ = ["caps"]

caps = typer.Typer(help="How many runs of a tenant, a connection or a sync are executed at once.", no_args_is_help=True)


@caps.command("list")
@reported
def list_caps(tenant: Tenant = None, as_json: Json = False) -> None:
    """A tenant's caps, and how much of each is in use; what has none follows the installation's settings."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services import caps as service
    from wsync_engine.state.database import connect

    with open_session(tenant) as session, connect(session.urls.engine, application_name="wsync operator") as conn:
        rows = [_shown(row) for row in service.list_caps(conn, session.tenant_id)]
    if as_json:
        print_objects(rows)
    else:
        table(rows, ("of", "max_running", "running", "weight"))


@caps.command("set")
@reported
def set_cap(
    most: Annotated[str, typer.Argument(metavar="N", help="At most so many runs at once; 0 lets none start, `none` lifts the limit.")],
    *,
    connection: Annotated[str | None, typer.Option(help="Of runs that read from this connection.")] = None,
    sink: Annotated[str | None, typer.Option(help="Of runs that write to this connection, and to others with the same credential.")] = None,
    sync: Annotated[str | None, typer.Option(help="Of runs of this sync.")] = None,
    weight: Annotated[
        int | None, typer.Option(min=1, max=100, help="The tenant's share among tenants; default: as it was, 1 at first.")
    ] = None,
    tenant: Tenant = None,
) -> None:
    """Set a cap of the tenant, or of one of its connections or syncs. What is executed goes on."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import caps as service
    from wsync_engine.state.database import connect

    kinds: list[tuple[CappedKind, str | None]] = [("N", connection), ("K", sink), ("S", sync)]
    chosen: list[tuple[CappedKind, str | None]] = [(kind, name) for kind, name in kinds if name is not None] or [("T", None)]
    if len(chosen) > 1:
        raise ConfigError("which cap?", next_step="give one of --connection, --sink and --sync, or none for the tenant's own")
    if most != "none" and not most.isdigit():
        raise ConfigError(f"`{most}` is no number of runs", next_step="give a whole number, or `none`")
    number = service.UNLIMITED if most == "none" else int(most)
    with open_session(tenant) as session, connect(session.urls.engine, application_name="wsync operator") as conn:
        kind, name = chosen[0]
        service.set_cap(conn, session.tenant_id, kind, name, max_running=number, weight=weight, actor=actor(), index=session.index)
    say("set; it holds for the next run that starts")


def _shown(row: dict[str, object]) -> dict[str, object]:
    from wsync_engine.services.caps import UNLIMITED

    limit = None if row["max_running"] == UNLIMITED else row["max_running"]
    return {"of": row["of"], "max_running": limit, "running": row["running"], "weight": row["weight"]}
