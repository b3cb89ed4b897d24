"""One batch of due schedules becomes runs: a transaction that locks their clocks, decides, and moves them on.

Whoever commits first wins: a pause or change that committed before our lock is seen, one that comes after waits for us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.entries import DueEntry, ReadyRun
from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.rows import Event, Row, instant, ready_run, select, statements, timing_of, write_events
from wsync_engine.scheduler.timing import Decision, Nominal, decide
from wsync_sdk.errors import WsyncError

__all__ = ["Fired", "fire"]

LOCK_WAIT_MS = 500
_SQL = statements("fire")
_SCHEDULE = statements("schedule")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """What the index is to be told after the commit; schedules that are in neither keep their fire lease and come again."""

    entries: tuple[DueEntry, ...] = ()
    runs: tuple[ReadyRun, ...] = ()


@dataclass(slots=True)
class _Batch:
    """One transaction's schedules by what becomes of them."""

    decided: list[tuple[Row, Row, Decision]] = field(default_factory=list)
    broken: list[tuple[Row, str]] = field(default_factory=list)
    dropped: list[Row] = field(default_factory=list)


def fire(conn: psycopg.Connection[Any], claimed: Sequence[tuple[UUID, int]]) -> Fired:
    """Fire what the index gave us, as (schedule, rev), each exactly once and only if Postgres agrees.

    :param conn: the engine's, autocommit, idle.
    """
    revs = dict(claimed)
    try:
        done, missing = _fire(conn, revs, "clock_try_lock")
    except (psycopg.DataError, psycopg.IntegrityError):
        return _fire_one_by_one(conn, revs)
    if not missing:
        return done
    # Locked by someone else, or gone for good: only waiting tells.
    try:
        late, gone = _fire(conn, {schedule_id: revs[schedule_id] for schedule_id in missing}, "clock_wait_lock")
    except (psycopg.errors.LockNotAvailable, psycopg.DataError, psycopg.IntegrityError):
        return done
    entries = tuple(DueEntry(schedule_id=schedule_id, rev=revs[schedule_id] + 1, due_at=None, is_gone=True) for schedule_id in gone)
    return Fired(entries=(*done.entries, *late.entries, *entries), runs=(*done.runs, *late.runs))


def _fire_one_by_one(conn: psycopg.Connection[Any], revs: dict[UUID, int]) -> Fired:
    """A statement over the whole batch was refused because of one schedule: find it, pause it, fire the others."""
    results = []
    for schedule_id, rev in revs.items():
        try:
            results.append(_fire(conn, {schedule_id: rev}, "clock_try_lock")[0])
        except (psycopg.DataError, psycopg.IntegrityError) as exc:
            results.append(_break(conn, schedule_id, type(exc).__name__))
    return Fired(entries=tuple(x for done in results for x in done.entries), runs=tuple(x for done in results for x in done.runs))


def _break(conn: psycopg.Connection[Any], schedule_id: UUID, reason: str) -> Fired:
    with conn.transaction():
        clocks = select(conn, _SQL["clock_try_lock"], {"schedule_ids": [schedule_id]})
        return Fired(entries=tuple(_pause_broken(conn, [(clock, reason) for clock in clocks])))


def _fire(conn: psycopg.Connection[Any], revs: dict[UUID, int], lock: str) -> tuple[Fired, list[UUID]]:
    """One transaction; returns also the schedules whose clock row was not found or not free."""
    with conn.transaction():
        # Nothing that starts from this commit can be durable without it: a claim is a later commit in the same log.
        conn.execute("SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', %s, true)", [str(LOCK_WAIT_MS)])
        clocks = select(conn, _SQL[lock], {"schedule_ids": list(revs)})
        batch = _decided(conn, clocks, revs)
        runs = _insert_runs(conn, batch)
        entries = [*_advance(conn, batch, runs), *_pause_broken(conn, batch.broken)]
        entries += [DueEntry(schedule_id=clock["schedule_id"], rev=clock["rev"], due_at=clock["next_due_at"]) for clock in batch.dropped]
        if batch.dropped:
            runs += select(conn, _SQL["run_queued_of"], {"schedule_ids": [clock["schedule_id"] for clock in batch.dropped]})
    found = {clock["schedule_id"] for clock in clocks}
    fired = Fired(entries=tuple(entries), runs=tuple(ready_run(row) for row in runs))
    return fired, [schedule_id for schedule_id in revs if schedule_id not in found]


def _decided(conn: psycopg.Connection[Any], clocks: list[Row], revs: dict[UUID, int]) -> _Batch:
    batch = _Batch()
    now = instant(select(conn, _SCHEDULE["time_now"], {})[0], "now")
    ids = [clock["schedule_id"] for clock in clocks]
    schedules = {row["schedule_id"]: row for row in select(conn, _SCHEDULE["schedule_definitions"], {"schedule_ids": ids})}
    for clock in clocks:
        schedule = schedules[clock["schedule_id"]]
        is_ours = clock["rev"] == revs[clock["schedule_id"]]
        if not is_ours or schedule["paused"] or schedule["deleted_at"] or clock["next_nominal_at"] is None:
            batch.dropped.append(clock)
            continue
        try:
            decision = _decide(schedule, clock, now)
        except Exception as exc:  # whatever is wrong with one schedule must not stop the others
            batch.broken.append((clock, str(exc) if isinstance(exc, WsyncError) else type(exc).__name__))
            continue
        if decision is not None:
            batch.decided.append((clock, schedule, decision))
    return batch


def _decide(schedule: Row, clock: Row, now: datetime) -> Decision | None:
    """None: by Postgres' clock it is not due yet; the fire lease brings it back, so that skewed clocks don't spin."""
    decision = decide(timing_of(schedule), next_nominal_at=clock["next_nominal_at"], runs=clock["fired"], now=now)
    is_early = decision.last_nominal_at is None and decision.next is not None
    return None if is_early else decision


def _insert_runs(conn: psycopg.Connection[Any], batch: _Batch) -> list[Row]:
    fires: list[tuple[UUID, Nominal]] = [(clock["schedule_id"], x) for clock, _, decision in batch.decided for x in decision.fire]
    if not fires:
        return []
    columns = {
        "run_ids": [uuid7() for _ in fires],
        "schedule_ids": [schedule_id for schedule_id, _ in fires],
        "nominal_ats": [x.nominal_at for _, x in fires],
        "due_ats": [x.due_at for _, x in fires],
    }
    return select(conn, _SQL["run_fire"], columns)


def _advance(conn: psycopg.Connection[Any], batch: _Batch, runs: list[Row]) -> list[DueEntry]:
    if not batch.decided:
        return []
    made: dict[UUID, int] = {}
    for run in runs:
        made[run["schedule_id"]] = made.get(run["schedule_id"], 0) + 1
    events = [Event(kind="run.queued", tenant_id=run["tenant_id"], schedule_id=run["schedule_id"], run_id=run["run_id"]) for run in runs]
    rows = []
    for clock, schedule, decision in batch.decided:
        fired = made.get(clock["schedule_id"], 0)
        skipped = len(decision.fire) - fired
        is_exhausted = schedule["max_runs"] is not None and clock["fired"] + fired >= schedule["max_runs"]
        following = None if is_exhausted else decision.next
        rows.append((clock["schedule_id"], decision.last_nominal_at, following, fired, skipped, decision.missed, decision.coalesced))
        events += _counted(clock, skipped=skipped, missed=decision.missed, coalesced=decision.coalesced)
    columns = {
        "schedule_ids": [row[0] for row in rows],
        "last_nominal_ats": [row[1] for row in rows],
        "next_nominal_ats": [row[2].nominal_at if row[2] else None for row in rows],
        "next_due_ats": [row[2].due_at if row[2] else None for row in rows],
        "fireds": [row[3] for row in rows],
        "skippeds": [row[4] for row in rows],
        "misseds": [row[5] for row in rows],
        "coalesceds": [row[6] for row in rows],
    }
    advanced = select(conn, _SQL["clock_advance"], columns)
    write_events(conn, events)
    return [DueEntry(schedule_id=row["schedule_id"], rev=row["rev"], due_at=row["next_due_at"]) for row in advanced]


def _counted(clock: Row, **counts: int) -> list[Event]:
    return [
        Event(kind=f"schedule.{name}", tenant_id=clock["tenant_id"], schedule_id=clock["schedule_id"], detail={"count": count})
        for name, count in counts.items()
        if count
    ]


def _pause_broken(conn: psycopg.Connection[Any], broken: Sequence[tuple[Row, str]]) -> list[DueEntry]:
    entries = []
    for clock, reason in broken:
        schedule_id = clock["schedule_id"]
        conn.execute(_SCHEDULE["schedule_pause"], {"schedule_id": schedule_id, "note": reason, "actor": "system"})
        columns = {"schedule_id": schedule_id, "next_nominal_at": None, "next_due_at": None, "last_nominal_at": None}
        rev = select(conn, _SCHEDULE["clock_set"], columns)[0]["rev"]
        detail = {"actor": "system", "note": reason}
        write_events(conn, [Event(kind="schedule.paused", tenant_id=clock["tenant_id"], schedule_id=schedule_id, detail=detail)])
        entries.append(DueEntry(schedule_id=schedule_id, rev=rev, due_at=None))
        _log.error("schedule.paused", schedule=str(schedule_id), reason=reason, next_step="correct the schedule, then resume it")
    return entries
