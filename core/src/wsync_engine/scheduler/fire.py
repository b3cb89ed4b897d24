"""One batch of due schedules becomes runs: a transaction that locks their clocks, decides, and moves them on.

Whoever commits first wins: a pause or change that committed before our lock is seen, one that comes after waits for us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.entries import DueEntry, ReadyRun
from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import OverlapPolicy, Trigger
from wsync_engine.scheduler.overdue import give_up_all
from wsync_engine.scheduler.overlap import Admission, RunRequest, admit, lock_open_runs
from wsync_engine.scheduler.rows import Event, Row, instant, ready_run, select, statements, timing_of, write_events
from wsync_engine.scheduler.runs import drop_waiting
from wsync_engine.scheduler.timing import Decision, Nominal, decide
from wsync_engine.telemetry import metrics
from wsync_sdk.errors import RetryableError, WsyncError

__all__ = ["Fired", "fire"]

LOCK_WAIT_MS = 500
_NEVER = datetime.min.replace(tzinfo=UTC)
_BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, RetryableError)
_ONE_OF_THEM = (*_BUSY, psycopg.DataError, psycopg.IntegrityError)
_PLAIN = {OverlapPolicy.SKIP, OverlapPolicy.ALLOW_ALL}
_SQL = statements("fire")
_SCHEDULE = statements("schedule")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """What the index is to be told after the commit; schedules that are in neither keep their fire lease and come again."""

    entries: tuple[DueEntry, ...] = ()
    runs: tuple[ReadyRun, ...] = ()
    at: datetime = _NEVER
    interrupted: tuple[UUID, ...] = ()
    """Workers that have to end a run, and are told so at once rather than with their next heartbeat."""


@dataclass(slots=True)
class _Runs:
    """What the fires of one transaction led to: runs that were made, fires that made none, and what others are to be told."""

    made: dict[UUID, int] = field(default_factory=dict)
    refused: dict[UUID, list[Admission]] = field(default_factory=dict)
    ready: list[ReadyRun] = field(default_factory=list)
    interrupted: list[UUID] = field(default_factory=list)

    def take(self, schedule_id: UUID, admission: Admission) -> None:
        if admission.run_id is None:
            self.refused.setdefault(schedule_id, []).append(admission)
        else:
            self.made[schedule_id] = self.made.get(schedule_id, 0) + 1
        if admission.ready is not None:
            self.ready.append(admission.ready)
        if admission.interrupted is not None:
            self.interrupted.append(admission.interrupted)


@dataclass(slots=True)
class _Batch:
    """One transaction's schedules by what becomes of them."""

    now: datetime = _NEVER
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
    except _ONE_OF_THEM:
        return _fire_one_by_one(conn, revs)
    if not missing:
        return done
    # Locked by someone else, or gone for good: only waiting tells.
    try:
        late, gone = _fire(conn, {schedule_id: revs[schedule_id] for schedule_id in missing}, "clock_wait_lock")
    except _ONE_OF_THEM:
        return done
    entries = tuple(DueEntry(schedule_id=schedule_id, rev=revs[schedule_id] + 1, due_at=None, is_gone=True) for schedule_id in gone)
    return _joined([done, late, Fired(entries=entries)])


def _joined(parts: Sequence[Fired]) -> Fired:
    return Fired(
        entries=tuple(x for part in parts for x in part.entries),
        runs=tuple(x for part in parts for x in part.runs),
        interrupted=tuple(x for part in parts for x in part.interrupted),
        at=max((part.at for part in parts), default=_NEVER),
    )


def _fire_one_by_one(conn: psycopg.Connection[Any], revs: dict[UUID, int]) -> Fired:
    """A statement over the whole batch was refused because of one schedule: pause it, or leave it to its lease, and fire the others."""
    results = []
    for schedule_id, rev in revs.items():
        try:
            results.append(_fire(conn, {schedule_id: rev}, "clock_try_lock")[0])
        except _BUSY:
            continue  # somebody holds a run of its key: it comes again
        except (psycopg.DataError, psycopg.IntegrityError) as exc:
            results.append(_break(conn, schedule_id, type(exc).__name__))
    return _joined(results)


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
        runs = _make_runs(conn, batch)
        entries = [*_advance(conn, batch, runs), *_pause_broken(conn, batch.broken)]
        entries += [DueEntry(schedule_id=clock["schedule_id"], rev=clock["rev"], due_at=clock["next_due_at"]) for clock in batch.dropped]
        if batch.dropped:
            queued = select(conn, _SQL["run_queued_of"], {"schedule_ids": [clock["schedule_id"] for clock in batch.dropped]})
            runs.ready += [ready_run(row) for row in queued]
    found = {clock["schedule_id"] for clock in clocks}
    fired = Fired(entries=tuple(entries), runs=tuple(runs.ready), interrupted=tuple(runs.interrupted), at=batch.now)
    return fired, [schedule_id for schedule_id in revs if schedule_id not in found]


def _decided(conn: psycopg.Connection[Any], clocks: list[Row], revs: dict[UUID, int]) -> _Batch:
    batch = _Batch()
    batch.now = now = instant(select(conn, _SCHEDULE["time_now"], {})[0], "now")
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


def _make_runs(conn: psycopg.Connection[Any], batch: _Batch) -> _Runs:
    """Policies that look at no other run are one statement for all schedules; the others are decided one by one, in order."""
    runs = _Runs()
    plain = [(schedule, x) for _, schedule, decision in batch.decided for x in decision.fire if schedule["overlap"] in _PLAIN]
    _insert_plain(conn, plain, runs)
    others = [decided for decided in batch.decided if decided[1]["overlap"] not in _PLAIN and decided[2].fire]
    lock_open_runs(conn, [schedule["overlap_key"] for _, schedule, _ in others])
    for clock, schedule, decision in others:
        for nominal in decision.fire:
            admission = admit(conn, _request(clock, schedule, nominal), OverlapPolicy(schedule["overlap"]))
            runs.take(schedule["schedule_id"], admission)
    return runs


def _insert_plain(conn: psycopg.Connection[Any], fires: Sequence[tuple[Row, Nominal]], runs: _Runs) -> None:
    if not fires:
        return
    columns = {
        "run_ids": [uuid7() for _ in fires],
        "schedule_ids": [schedule["schedule_id"] for schedule, _ in fires],
        "nominal_ats": [x.nominal_at for _, x in fires],
        "due_ats": [x.due_at for _, x in fires],
    }
    made = select(conn, _SQL["run_fire"], columns)
    for row in made:
        runs.take(row["schedule_id"], Admission(run_id=row["run_id"], ready=ready_run(row)))
    write_events(conn, [Event(kind="run.queued", **{name: row[name] for name in ("tenant_id", "schedule_id", "run_id")}) for row in made])
    done = {(row["schedule_id"], row["nominal_at"]) for row in made}
    skipped = [schedule for schedule, x in fires if (schedule["schedule_id"], x.nominal_at) not in done]
    if not skipped:
        return
    keys = [schedule["overlap_key"] for schedule in skipped]
    open_runs = {row["overlap_key"]: row["run_id"] for row in select(conn, _SQL["run_open"], {"overlap_keys": keys})}
    for schedule in skipped:
        runs.take(schedule["schedule_id"], Admission(reason="open", open_run_id=open_runs.get(schedule["overlap_key"])))


def _request(clock: Row, schedule: Row, nominal: Nominal) -> RunRequest:
    taken_over = ("tenant_id", "queue", "sync_id", "connection_id", "credential_id", "overlap_key", "priority", "total_timeout_ms")
    return RunRequest(
        **{name: schedule[name] for name in (*taken_over, "schedule_id", "spec_version", "params", "max_buffer")},
        shard=clock["shard"],
        trigger=Trigger.SCHEDULE,
        nominal_at=nominal.nominal_at,
        due_at=nominal.due_at,
    )


def _advance(conn: psycopg.Connection[Any], batch: _Batch, runs: _Runs) -> list[DueEntry]:
    if not batch.decided:
        return []
    rows = []
    events = []
    for clock, schedule, decision in batch.decided:
        schedule_id = clock["schedule_id"]
        fired = runs.made.get(schedule_id, 0)
        is_exhausted = schedule["max_runs"] is not None and clock["fired"] + fired >= schedule["max_runs"]
        following = None if is_exhausted else decision.next
        rows.append(
            (schedule_id, decision.last_nominal_at, following, fired, len(decision.fire) - fired, decision.missed, decision.coalesced)
        )
        events += _counted(clock, runs.refused.get(schedule_id, []), missed=decision.missed, coalesced=decision.coalesced)
    columns: dict[str, list[Any]] = {
        "schedule_ids": [row[0] for row in rows],
        "last_nominal_ats": [row[1] for row in rows],
        "next_nominal_ats": [row[2].nominal_at if row[2] else None for row in rows],
        "next_due_ats": [row[2].due_at if row[2] else None for row in rows],
        "fireds": [row[3] for row in rows],
        "skippeds": [row[4] for row in rows],
        "misseds": [row[5] for row in rows],
        "coalesceds": [row[6] for row in rows],
    }
    for name in ("fired", "skipped", "missed", "coalesced"):
        metrics.DECISIONS.labels(name).inc(sum(columns[f"{name}s"]))
    advanced = select(conn, _SQL["clock_advance"], columns)
    write_events(conn, events)
    return [DueEntry(schedule_id=row["schedule_id"], rev=row["rev"], due_at=row["next_due_at"]) for row in advanced]


def _counted(clock: Row, refused: Sequence[Admission], **counts: int) -> list[Event]:
    """One event for all fires that were decided alike."""
    ids = {"tenant_id": clock["tenant_id"], "schedule_id": clock["schedule_id"]}
    events = [Event(kind=f"schedule.{name}", detail={"count": count}, **ids) for name, count in counts.items() if count]
    for reason in sorted({admission.reason for admission in refused}):
        alike = [admission for admission in refused if admission.reason == reason]
        open_run_id = alike[-1].open_run_id
        detail: dict[str, str | int | None] = {"count": len(alike), "reason": reason}
        if open_run_id is not None:  # else it ended at that very moment
            detail["open_run"] = str(open_run_id)
        events.append(Event(kind="schedule.skipped", detail=detail, **ids))
    return events


def _pause_broken(conn: psycopg.Connection[Any], broken: Sequence[tuple[Row, str]]) -> list[DueEntry]:
    entries = []
    for clock, reason in broken:
        schedule_id = clock["schedule_id"]
        conn.execute(_SCHEDULE["schedule_pause"], {"schedule_id": schedule_id, "note": reason, "actor": "system"})
        give_up_all(conn, clock, reason="paused", actor="system")
        columns = {"schedule_id": schedule_id, "next_nominal_at": None, "next_due_at": None, "last_nominal_at": None}
        rev = select(conn, _SCHEDULE["clock_set"], columns)[0]["rev"]
        drop_waiting(conn, schedule_id, actor="system")
        detail = {"actor": "system", "note": reason}
        write_events(conn, [Event(kind="schedule.paused", tenant_id=clock["tenant_id"], schedule_id=schedule_id, detail=detail)])
        entries.append(DueEntry(schedule_id=schedule_id, rev=rev, due_at=None))
        _log.error("schedule.paused", schedule=str(schedule_id), reason=reason, next_step="correct the schedule, then resume it")
    return entries
