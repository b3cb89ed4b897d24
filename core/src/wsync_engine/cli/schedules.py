"""`schedules list|pause|resume|trigger`."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

from typing import Annotated

import typer

from wsync_engine.cli.boundary import reported
from wsync_engine.cli.output import print_objects, say, table

__all__ = ["schedules"]

schedules = typer.Typer(help="When syncs run.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Default: the tenant of ./wsync.yaml.")]
Name = Annotated[str, typer.Argument(help="A schedule.")]
_COLUMNS = ("name", "sync", "timing", "timezone", "paused", "next_due_at", "fired", "missed", "failures_in_row", "pause_note")


@schedules.command("list")
@reported
def list_schedules(tenant: Tenant = None, as_json: Json = False) -> None:
    """All schedules, and when each is due."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        found = service.list_schedules(session.api, session.tenant_id)
    rows = [{**{name: row.get(name) for name in _COLUMNS}, "sync": row["sync_name"], "timing": _timing(row)} for row in found]
    rows = [{**row, "timezone": schedule["zone"]} for row, schedule in zip(rows, found, strict=True)]
    if as_json:
        print_objects(rows)
    else:
        table(rows, _COLUMNS)


@schedules.command()
@reported
def pause(name: Name, note: Annotated[str | None, typer.Option(help="Why, for others.")] = None, tenant: Tenant = None) -> None:
    """No scheduled run is made from now on, until resume."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        service.pause_schedule(session.api, session.tenant_id, name, note=note, actor=actor(), index=session.index)
    say(f"paused {name}")


@schedules.command()
@reported
def resume(name: Name, tenant: Tenant = None) -> None:
    """Go on with the next time after now; what lay in the pause is not caught up."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        stored = service.resume_schedule(session.api, session.tenant_id, name, actor=actor(), index=session.index)
    say(f"resumed {name}; next: {stored.next_nominal_at or 'never'}")


@schedules.command()
@reported
def trigger(name: Name, tenant: Tenant = None, as_json: Json = False) -> None:
    """Make a run now, also while the schedule is paused."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        made = service.trigger_schedule(session.api, session.tenant_id, name, actor=actor(), index=session.index)
    if as_json:
        print_objects([{"run_id": made.run_id, "is_new": made.is_new}])
        return
    typer.echo(made.run_id)
    say("queued" if made.is_new else "skipped: this run of the sync is open")


def _timing(row: dict[str, object]) -> str:
    every_ms = row["every_ms"]
    return str(row["cron"]) if row["cron"] else f"every {int(str(every_ms)) / 1000:g} s" if every_ms else f"once {row['once_at']}"
