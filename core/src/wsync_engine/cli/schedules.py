"""`schedules list|show|next|pause|resume|trigger|backfill|backfills|cancel-backfill`."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from wsync_engine.cli.arguments import Json, Overlap, Parameters, Tenant, instant, parameters, told
from wsync_engine.cli.boundary import reported
from wsync_engine.cli.output import cell, print_objects, say, table
from wsync_engine.model.run import OverlapPolicy

__all__ = ["schedules"]

schedules = typer.Typer(help="When syncs run.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A schedule.")]
_COLUMNS = (
    "name",
    "sync",
    "timing",
    "timezone",
    "paused",
    "next_due_at",
    "fired",
    "skipped",
    "missed",
    "coalesced",
    "failures_in_row",
    "pause_note",
)


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
    """No scheduled run is made from now on, until resume. Pausing again keeps the note, unless a new one is given."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        before = service.pause_schedule(session.api, session.tenant_id, name, note=note, actor=actor(), index=session.index)
    if not before["paused"]:
        say(f"paused {name}")
    elif note is not None:
        say(f"{name} was paused already; its note is now: {note}")
    else:
        kept = before["pause_note"]
        say(f"{name} was paused already, by {before['paused_by']}" + (f"; the note stays: {kept}" if kept else ""))


@schedules.command()
@reported
def resume(name: Name, tenant: Tenant = None) -> None:
    """Go on with the next time after now; what lay in the pause is not caught up."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        stored = service.resume_schedule(session.api, session.tenant_id, name, actor=actor(), index=session.index)
    say(f"resumed {name}; next: {cell(stored.next_nominal_at) if stored.next_nominal_at else 'never'}")


@schedules.command()
@reported
def trigger(name: Name, param: Parameters = None, overlap: Overlap = None, tenant: Tenant = None, as_json: Json = False) -> None:
    """Make a run now, also while the schedule is paused."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        given = parameters(param)
        made = service.trigger_schedule(
            session.api, session.tenant_id, name, actor=actor(), params=given, overlap=overlap, index=session.index
        )
    if as_json:
        print_objects([{"run_id": made.run_id, "is_new": made.is_new, "is_waiting": made.is_waiting}])
        return
    typer.echo(made.run_id)
    say(told(made))


@schedules.command("next")
@reported
def next_(
    name: Annotated[str | None, typer.Argument(help="A schedule; or none, with --cron or --every.")] = None,
    *,
    cron: Annotated[str | None, typer.Option(help="Any expression instead of a schedule.")] = None,
    timezone: Annotated[str | None, typer.Option(help="For --cron; default: UTC.")] = None,
    every: Annotated[str | None, typer.Option(help="An interval instead of a schedule: 30s, 15m, 6h, 1d; counted from --anchor.")] = None,
    anchor: Annotated[str | None, typer.Option(help="For --every; default: now.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000, help="How many.")] = 5,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """The coming times of a schedule, or of any expression: in its zone, and in UTC."""
    from wsync_engine.cli.preview import preview_cron, preview_every
    from wsync_sdk.errors import ConfigError

    if sum(x is not None for x in (name, cron, every)) != 1:
        raise ConfigError("what shall be shown?", next_step="name a schedule, or give --cron, or --every")
    if timezone is not None and cron is None:
        raise ConfigError("--timezone goes with --cron", next_step="leave it out, or give --cron")
    zone = timezone or "UTC"
    if name is not None:
        times, zone = _times_of(name, tenant, count)
    elif cron is not None:
        times = preview_cron(cron, zone, count)
    else:
        times = preview_every(every or "", None if anchor is None else instant(anchor, "--anchor"), count)
    if not times:
        say("never: the schedule is paused or exhausted")
    _print_times(times, zone, as_json)


def _times_of(name: str, tenant: str | None, count: int) -> tuple[list[datetime], str]:
    from wsync_engine.cli.session import open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        row, _ = service.show_schedule(session.api, session.tenant_id, name)
        return service.next_times(session.api, session.tenant_id, name, count=count), row["zone"] or "UTC"


def _print_times(times: list[datetime], zone: str, as_json: bool) -> None:
    from zoneinfo import ZoneInfo

    for at in times:
        local = at.astimezone(ZoneInfo(zone))
        if as_json:
            print_objects([{"at": at, "local": local, "timezone": zone}])
        else:
            typer.echo(f"{local:%a %Y-%m-%d %H:%M:%S} {zone}" + ("" if zone == "UTC" else f"  = {at:%Y-%m-%d %H:%M:%SZ}"))


@schedules.command()
@reported
def show(name: Name, tenant: Tenant = None, as_json: Json = False) -> None:
    """Everything of one schedule: what it says, what became of its times, what happened lately."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        row, events = service.show_schedule(session.api, session.tenant_id, name)
    shown = {key: value for key, value in row.items() if value is not None and not key.endswith("_id") and key != "overlap_key"}
    if as_json:
        print_objects(
            [{**shown, "events": [{**event, "at": event["at"].isoformat(), "run_id": str(event["run_id"] or "")} for event in events]}]
        )
        return
    table([{"field": key, "value": value} for key, value in _in_words(row).items() if value is not None], ("field", "value"))
    typer.echo()
    table(events, ("at", "kind", "run_id", "detail"))


@schedules.command()
@reported
def backfill(
    name: Name,
    *,
    start: Annotated[str, typer.Option("--from", help="From this instant on; without an offset it is UTC.")],
    end: Annotated[str, typer.Option("--to", help="Up to this instant, which does not count itself.")],
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="How many of its runs may be open or wait at a time.")] = 1,
    overlap: Annotated[OverlapPolicy, typer.Option(help="What its runs do beside an open run of the sync.")] = OverlapPolicy.BUFFER_ALL,
    note: Annotated[str | None, typer.Option(help="Why, for others.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Make a run for each time of a past range; each is given its time as the parameter that says `{from: nominal_at}`."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    options = {
        "from_at": instant(start, "--from"),
        "to_at": instant(end, "--to"),
        "max_open": concurrency,
        "overlap": overlap,
        "note": note,
    }
    with open_session(tenant) as session:
        made = service.backfill_schedule(session.api, session.tenant_id, name, actor=actor(), index=session.index, **options)
    if as_json:
        print_objects([{"backfill_id": made.backfill_id}])
        return
    typer.echo(made.backfill_id)
    say("begun; `wsync-engine schedules backfills` shows how far it is")


@schedules.command()
@reported
def backfills(tenant: Tenant = None, as_json: Json = False) -> None:
    """Backfills, the newest first, and how far they are."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        rows = service.list_backfills(session.api, session.tenant_id)
    if as_json:
        print_objects(rows)
        return
    shown = [{**row, "state": "waits" if row["blocked_run_id"] else row["state"]} for row in rows]
    table(shown, ("backfill_id", "schedule", "state", "from_at", "to_at", "cursor_at", "made", "skipped", "open", "note"))
    for row in rows:
        if run_id := row["blocked_run_id"]:
            say(f"backfill {row['backfill_id']} waits until somebody decides about run {run_id}, which a guard blocked")
            say(
                f"next: `wsync-engine runs show {run_id}`, then `wsync-engine runs approve {run_id}` or `wsync-engine runs discard {run_id}`"
            )


@schedules.command("cancel-backfill")
@reported
def cancel_backfill(
    backfill_id: Annotated[str, typer.Argument(metavar="BACKFILL", help="Its id, or enough of its first or last digits.")],
    with_open: Annotated[bool, typer.Option("--with-open", help="End also its runs that are queued or executed.")] = False,
    tenant: Tenant = None,
) -> None:
    """Make no more of its runs, and end those that wait."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import schedules as service

    with open_session(tenant) as session:
        stored = service.cancel_backfill(
            session.api, session.tenant_id, backfill_id, actor=actor(), with_open=with_open, index=session.index
        )
    say(f"cancelled {stored.backfill_id}")


_STATE = (
    "paused", "paused_by", "pause_note", "next_nominal_at", "next_due_at", "last_nominal_at", "fired", "skipped", "missed", "coalesced",
    "failures_in_row", "created_at", "updated_at",
)  # fmt: skip


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    """What the schedule says as `wsync.yaml` says it, then what became of it."""
    from wsync_engine.services.apply import schedule_words

    return {"name": row["name"], "sync": row["sync_name"], **schedule_words(row), **{name: row.get(name) for name in _STATE}}


def _timing(row: dict[str, Any]) -> str:
    from wsync_engine.model.durations import duration_text

    if row["cron"]:
        return str(row["cron"])
    return f"every {duration_text(row['every_ms'])}" if row["every_ms"] else f"once {cell(row['once_at'])}"
