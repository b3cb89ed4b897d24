"""Why a sync does not run: paused, exhausted, skipped beside an open run, waiting for an attempt, a worker, a slot, a cap or a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.model.run import RunState
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.services.catalog import service_statements
from wsync_sdk import Finding

__all__ = ["explain_waiting"]

GRACE_S = 5.0
"""A run that has waited for less is on its way."""
_SQL = service_statements("doctor")
_CAP_OPTIONS = {
    "of the tenant": "",
    "of the source connection": " --connection NAME",
    "of the sync": " --sync NAME",
    "of the sink's credential": " --sink NAME",
}
"""By the words of the statement `sync_open`."""


def explain_waiting(conn: psycopg.Connection[Any], tenant_id: UUID, sync_id: UUID) -> Iterator[Finding]:
    """One finding for each schedule of the sync, one for a destination that is left alone, one for its open run; in the tenant's transaction."""
    ids = {"tenant_id": tenant_id, "sync_id": sync_id}
    schedules, breakers, open_runs = (select(conn, _SQL[name], ids) for name in ("schedule_states", "sync_breaker", "sync_open"))
    yield from (_schedule(row) for row in schedules)
    if not schedules:
        yield Finding(name="schedule", ok=True, message="it has no schedule", next_step="`wsync-engine sync run` makes a run")
    yield from (_destination(row) for row in breakers)
    yield from (_open_run(row) for row in open_runs)


def _schedule(row: Row) -> Finding:
    name = row["name"]
    if row["paused"]:
        note = f": {row['pause_note']}" if row["pause_note"] else ""
        message = f"schedule `{name}` is paused by {row['paused_by']}{note}"
        return Finding(
            name="schedule", ok=row["paused_by"] != "system", message=message, next_step=f"`wsync-engine schedules resume {name}`"
        )
    if row["is_exhausted"]:
        message = f"schedule `{name}` is exhausted: its times are past, or it has made all its runs"
        return Finding(name="schedule", ok=False, message=message, next_step="change its `at`, `end` or `max_runs`, or remove it")
    message = f"schedule `{name}` is due next at {row['next_due_at']:%Y-%m-%d %H:%M:%SZ}"
    if row["skipped"] is not None:
        why = "too many runs waited" if row["skipped"].get("reason") == "buffer_full" else "a run was open"
        message += f"; its fire of {row['skipped_at']:%Y-%m-%d %H:%M:%SZ} was skipped, as {why}"
    return Finding(name="schedule", ok=True, message=message)


def _destination(row: Row) -> Finding:
    when = f"no run starts until {row['retry_at']:%Y-%m-%d %H:%M:%SZ}" if row["state"] == "open" else "one run at a time tries it again"
    message = f"`{row['name']}` failed again and again, so {when}; the last time: {row['reason']}"
    step = f"mend it, then `wsync-engine connections test {row['name']}` lets runs go where it finds it well; else wait"
    return Finding(name="destination", ok=False, message=message, next_step=step)


def _open_run(row: Row) -> Finding:
    behind = f"; {row['buffered']} more wait behind it" if row["buffered"] else ""
    what = f"run {row['run_id']} is {row['state']}"
    match row["state"]:
        case RunState.BLOCKED:
            reasons = "; ".join(row["guards"] or ())
            step = f"`wsync-engine runs show {row['run_id']}`, then `wsync-engine runs approve` or `wsync-engine runs discard` it"
            return Finding(name="open_run", ok=False, message=f"{what} and waits for a person: {reasons}{behind}", next_step=step)
        case RunState.QUEUED:
            return _queued(row, what, behind)
        case _:
            return Finding(name="open_run", ok=True, message=f"{what} since {row['started_at']:%Y-%m-%d %H:%M:%SZ}{behind}")


def _queued(row: Row, what: str, behind: str) -> Finding:
    run_id, queue = row["run_id"], row["queue"]
    if row["breaker"] == "open" and row["ready_at"] < row["retry_at"]:
        message, step = f"{what} until its destination is tried again at {row['retry_at']:%H:%M:%SZ}", "see what is said of `destination`"
    elif row["is_delayed"]:
        why = f"after: {row['error']}" if row["error"] else "until the run that it replaced is surely dead" if row["waits_for"] else ""
        message, step = f"{what} until {row['ready_at']:%H:%M:%SZ} {why}".rstrip(), f"`wsync-engine runs retry {run_id}` tries it now"
    elif row["full_cap"] is not None:
        whose, _, most = row["full_cap"].partition(": ")
        message = f"{what}: " + (f"nothing may run now, the cap is 0 {whose}" if most == "0" else f"{most} run already, the cap {whose}")
        step = f"`wsync-engine caps list` shows it, `wsync-engine caps set N{_CAP_OPTIONS[whose]}` raises it"
        step = step if most == "0" else f"wait for one of them to end; {step}"
    elif not row["workers"]:
        message, step = f"{what}: no worker serves the queue `{queue}`", f"start one: `wsync-engine worker --queue {queue}`"
    elif row["breaker"] == "half_open":
        message, step = f"{what} while one run at a time tries its destination again", "see what is said of `destination`"
    elif row["waiting_s"] > GRACE_S and row["free_slots"] <= 0:
        message, step = f"{what} for {row['waiting_s']:.0f} s: all slots of the queue `{queue}` are in use", "wait, or start another worker"
    elif row["waiting_s"] > GRACE_S:
        message, step = f"{what} for {row['waiting_s']:.0f} s, although slots are free", "is a scheduler running? `wsync-engine scheduler`"
    else:
        return Finding(name="open_run", ok=True, message=f"{what} and about to start{behind}")
    return Finding(name="open_run", ok=False, message=message + behind, next_step=step)
