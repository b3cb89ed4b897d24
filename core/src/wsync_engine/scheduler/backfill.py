"""Runs for the times of a past range: made in steps, a few open at a time, so that a million of them stall nobody.

A backfill is due like a schedule, under its own rev; each step makes what there is room for and moves the cursor in one transaction. The
times are those of the schedule as it was when the backfill was asked for; jitter does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.index.entries import DueEntry, ReadyRun
from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import OPEN_STATES, OverlapPolicy, RunState, Trigger
from wsync_engine.scheduler.limits import refuse_texts
from wsync_engine.scheduler.overlap import Admission, RunRequest, admit
from wsync_engine.scheduler.rows import Event, Row, select, shard_of, statements, timing_of, write_events
from wsync_engine.scheduler.runs import request_cancel
from wsync_engine.scheduler.schedules import keep_syncs
from wsync_engine.scheduler.timing import Timing, nominal_times
from wsync_sdk.errors import ConfigError

__all__ = ["BackfillStep", "StoredBackfill", "cancel_backfill", "create_backfill", "list_backfills", "step_backfill"]

MAX_STEP = 100
PAUSE_S = 1.0
"""Until a backfill without room for another run looks again."""
EARLY = timedelta(seconds=PAUSE_S / 2)
"""A claim this much ahead of Postgres' clock is accepted; an index whose clock is further ahead must not make us look again at once, for ever."""
_SQL = statements("backfill")
_SCHEDULE = statements("schedule")
_JUST_AFTER = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBackfill:
    """A backfill as it stands after a write; `entry`, `runs` and `interrupted` are for `announce`."""

    backfill_id: UUID
    entry: DueEntry
    runs: tuple[ReadyRun, ...] = ()
    interrupted: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillStep:
    """What the index is to be told after a step's commit."""

    entries: tuple[DueEntry, ...] = ()
    runs: tuple[ReadyRun, ...] = ()
    interrupted: tuple[UUID, ...] = ()


def create_backfill(
    conn: psycopg.Connection[Any],
    tenant_id: UUID,
    schedule_id: UUID,
    *,
    from_at: datetime,
    to_at: datetime,
    actor: str,
    max_open: int = 1,
    overlap: OverlapPolicy = OverlapPolicy.BUFFER_ALL,
    note: str | None = None,
) -> StoredBackfill:
    """Make runs for the schedule's times from `from_at` up to, not including, `to_at`; in the tenant's transaction, also while it is paused.

    :param max_open: how many of its runs may be open or wait at a time. :param overlap: what its runs do beside an open run of the sync.
    :raises ConfigError: there is no such schedule, the range is wrong or holds none of its times, or its sync is a mirror.
    """
    refuse_texts(actor=actor, note=note)
    time = select(conn, _SCHEDULE["time_now"], {})[0]
    found = select(conn, _SCHEDULE["schedule_get"], {"schedule_id": schedule_id})
    if not found:
        raise ConfigError(f"there is no schedule {schedule_id}", next_step="`wsync-engine schedules list` shows those there are")
    if from_at >= to_at or to_at > time["now"]:
        raise ConfigError("a backfill goes from a past instant to a later past one", next_step="correct `--from` and `--to`")
    if not 1 <= max_open <= MAX_STEP:
        raise ConfigError(f"{max_open} runs at a time can't be", next_step=f"give a number from 1 to {MAX_STEP}")
    if select(conn, _SCHEDULE["sync_mode"], {"sync_id": found[0]["sync_id"]})[0]["mode"] in ("mirror", "replace"):
        raise ConfigError(
            "a sync that deletes can't be filled up: each run would delete what is not in its own result",
            next_step="use mode `upsert`, or run the sync as it is: its next run brings everything",
        )
    timing = timing_of(found[0])
    if not _times(timing, from_at, to_at, 1):
        raise ConfigError("the schedule has no times in this range", next_step=_where_times_are(timing))
    conn.execute(_SCHEDULE["version_keep"], {"schedule_id": schedule_id})
    backfill_id = uuid7()
    columns = {"backfill_id": backfill_id, "tenant_id": tenant_id, "shard": shard_of(tenant_id, int(time["shards"] or 1))}
    columns |= {"schedule_id": schedule_id, "spec_version": found[0]["spec_version"], "from_at": from_at, "to_at": to_at}
    row = select(conn, _SQL["backfill_insert"], {**columns, "overlap": str(overlap), "max_open": max_open, "note": note, "actor": actor})[0]
    detail = {"actor": actor, "backfill": str(backfill_id), "from": from_at.isoformat(), "to": to_at.isoformat()}
    write_events(conn, [Event(kind="backfill.created", tenant_id=tenant_id, schedule_id=schedule_id, detail=detail)])
    return StoredBackfill(backfill_id=backfill_id, entry=_entry(backfill_id, row))


def cancel_backfill(
    conn: psycopg.Connection[Any], tenant_id: UUID, backfill_id: UUID, *, actor: str, with_open: bool = False
) -> StoredBackfill:
    """Make no more of its runs and end those that wait. :param with_open: also those that are queued or executed.

    :raises ConfigError: there is no such backfill, or it has ended.
    """
    refuse_texts(actor=actor)
    rows = select(conn, _SQL["backfill_cancel"], {"backfill_id": backfill_id})
    if not rows:
        raise ConfigError(f"no backfill {backfill_id} is active", next_step="`wsync-engine schedules backfills` shows them")
    states = OPEN_STATES | {RunState.BUFFERED} if with_open else {RunState.BUFFERED}
    found = select(conn, _SQL["backfill_runs"], {"backfill_id": backfill_id, "states": [str(state) for state in states]})
    asked = [request_cancel(conn, row["run_id"], reason="the backfill was cancelled", actor=actor) for row in found]
    done = [requested for requested in asked if requested is not None]
    detail = {"actor": actor, "backfill": str(backfill_id)}
    write_events(conn, [Event(kind="backfill.cancelled", tenant_id=tenant_id, schedule_id=rows[0]["schedule_id"], detail=detail)])
    return StoredBackfill(
        backfill_id=backfill_id,
        entry=DueEntry(schedule_id=backfill_id, rev=rows[0]["rev"], due_at=None, is_backfill=True),
        runs=tuple(requested.successor for requested in done if requested.successor is not None),
        interrupted=tuple(requested.worker_id for requested in done if requested.worker_id is not None),
    )


def list_backfills(conn: psycopg.Connection[Any], tenant_id: UUID, *, count: int = 20) -> list[Row]:
    """The newest first, with how many of their runs are open, and `blocked_run_id`, the run that a person has to decide about before one that is
    active goes on; in the tenant's transaction.
    """
    return select(conn, _SQL["backfill_list"], {"tenant_id": tenant_id, "count": count})


def step_backfill(conn: psycopg.Connection[Any], backfill_id: UUID, rev: int) -> BackfillStep:
    """Make the runs that there is room for, and move on; a backfill that another scheduler has moved on is only told to the index.

    :param conn: the engine's, autocommit, idle. :param rev: as the index gave it.
    :raises ConfigError: its sync was deleted at this very moment; nothing was written, and it ends when it comes again.
    """
    with conn.transaction():
        rows = select(conn, _SQL["backfill_lock"], {"backfill_id": backfill_id})
        if not rows:
            return BackfillStep(entries=(DueEntry(schedule_id=backfill_id, rev=rev + 1, due_at=None, is_gone=True, is_backfill=True),))
        backfill = rows[0]
        if backfill["rev"] != rev or backfill["state"] != "active":
            return BackfillStep(entries=(_entry(backfill_id, backfill),))
        if backfill["next_due_at"] > backfill["now"] + EARLY:
            return BackfillStep()  # its fire lease brings it back
        if backfill["is_deleted"]:
            return _moved_on(conn, backfill, [], backfill["cursor_at"], state="cancelled")
        return _step(conn, backfill)


def _step(conn: psycopg.Connection[Any], backfill: Row) -> BackfillStep:
    room = min(MAX_STEP, backfill["max_open"] - backfill["open"])
    times = _times(_timing(backfill), backfill["cursor_at"], backfill["to_at"], room + 1)
    cursor_at = backfill["cursor_at"]
    admissions = []
    for nominal_at in times[: max(room, 0)]:
        admission = admit(conn, _request(backfill, nominal_at), OverlapPolicy(backfill["overlap"]))
        if admission.reason == "buffer_full":
            break
        admissions.append(admission)
        cursor_at = nominal_at + _JUST_AFTER
    keep_syncs(conn, {backfill["sync_id"]} if any(admission.run_id for admission in admissions) else ())
    is_done = len(admissions) == len(times) and not backfill["open"] and not any(admission.run_id for admission in admissions)
    return _moved_on(conn, backfill, admissions, cursor_at, state="done" if is_done else "active")


def _moved_on(
    conn: psycopg.Connection[Any], backfill: Row, admissions: list[Admission], cursor_at: datetime, *, state: str
) -> BackfillStep:
    backfill_id = backfill["backfill_id"]
    made = sum(admission.run_id is not None for admission in admissions)
    columns = {"backfill_id": backfill_id, "cursor_at": cursor_at, "made": made, "skipped": len(admissions) - made}
    row = select(conn, _SQL["backfill_advance"], {**columns, "state": state, "pause_s": PAUSE_S})[0]
    if state != "active":
        detail = {"actor": "system", "backfill": str(backfill_id)}
        event = Event(kind=f"backfill.{state}", tenant_id=backfill["tenant_id"], schedule_id=backfill["schedule_id"], detail=detail)
        write_events(conn, [event])
    return BackfillStep(
        entries=(_entry(backfill_id, row),),
        runs=tuple(admission.ready for admission in admissions if admission.ready is not None),
        interrupted=tuple(admission.interrupted for admission in admissions if admission.interrupted is not None),
    )


def _where_times_are(timing: Timing) -> str:
    """What to do when a range holds no times: where an interval or `start` begins is not to be seen in the times to come."""
    if timing.anchor_at is not None and (timing.start_at is None or timing.start_at < timing.anchor_at):
        return (
            f"its times begin at {timing.anchor_at:%Y-%m-%d %H:%M:%SZ}: set `anchor` to an earlier instant, or correct `--from` and `--to`"
        )
    if timing.start_at is not None:
        return f"its times begin at {timing.start_at:%Y-%m-%d %H:%M:%SZ}: change its `start`, or correct `--from` and `--to`"
    return "correct `--from` and `--to`; `wsync-engine schedules next` shows its times"


def _times(timing: Timing, from_at: datetime, to_at: datetime, n: int) -> list[datetime]:
    return [x for x in nominal_times(timing, from_at - _JUST_AFTER, max(n, 1)) if x < to_at]


def _timing(backfill: Row) -> Timing:
    """Of the schedule's version at the time of asking; stored as JSON."""
    spec: Mapping[str, Any] = backfill["spec"]
    instants = {name: datetime.fromisoformat(spec[name]) for name in _INSTANTS if spec.get(name)}
    plain = {name: spec[name] for name in _TIMING if name in spec and name not in _INSTANTS}
    return Timing(**{**plain, **instants, "schedule_id": backfill["schedule_id"]})


def _request(backfill: Row, nominal_at: datetime) -> RunRequest:
    taken_over = ("tenant_id", "shard", "queue", "sync_id", "connection_id", "credential_id", "overlap_key", "priority")
    return RunRequest(
        **{name: backfill[name] for name in (*taken_over, "total_timeout_ms", "schedule_id", "spec_version", "backfill_id", "max_buffer")},
        trigger=Trigger.BACKFILL,
        nominal_at=nominal_at,
        due_at=backfill["now"],  # it stands in line with what is asked for now, however old its time is
        params=backfill["spec"].get("params", {}),
    )


def _entry(backfill_id: UUID, row: Row) -> DueEntry:
    return DueEntry(schedule_id=backfill_id, rev=row["rev"], due_at=row["next_due_at"], is_backfill=True)


_TIMING = tuple(item.name for item in fields(Timing))
_INSTANTS = ("anchor_at", "once_at", "start_at", "end_at")
