"""What becomes of a run after its fire: claim, heartbeat, finish, retry, reap, cancel.

Each is one conditional statement or transaction. A holder shows its epoch with every write; when the epoch is old, or the run was
taken away, nothing is written. All but `request_cancel` run as the engine's login, autocommit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg

from wsync_engine.index.entries import ReadyRun
from wsync_engine.model.run import RunError, RunState, final_step
from wsync_engine.scheduler.limits import refuse_texts
from wsync_engine.scheduler.overdue import give_up_all
from wsync_engine.scheduler.rows import Event, Row, instant, ready_run, select, statements, write_events
from wsync_sdk.errors import StateError

__all__ = [
    "Beat",
    "CancelRequested",
    "ClaimedRun",
    "Finish",
    "Finished",
    "Held",
    "Reaped",
    "Retried",
    "ScheduleSettlement",
    "backoff",
    "claim_runs",
    "confirm_kill",
    "count_ends",
    "drop_waiting",
    "executed_among",
    "finish_run",
    "finish_runs",
    "give_back_run",
    "heartbeat",
    "lock_clocks",
    "reap_runs",
    "request_cancel",
    "retry_run",
    "run_of_key",
]

LEASE_S = 30.0
MAX_CRASHES = 3
THROTTLED_MS = 10_000
OUT_OF_TIME = RunError(
    error_class="timeout", message="out of time", next_step="raise the schedule's timeout, or make the query or the sink faster"
)
STALLED = RunError(
    error_class="stalled",
    message="nothing moved for as long as the schedule allows",
    next_step="see what the warehouse or the sink was waiting for, or raise the schedule's `stall_timeout`",
)
RESTART_GRACE_S = 35.0
"""After Postgres started, no lease is over for this long: children that froze meanwhile resume instead of being restarted."""
Outcome = Literal["succeeded", "partial", "failed", "cancelled", "blocked"]
_HELD = ("running", "cancelling")
_ENDED = ("succeeded", "partial", "failed", "cancelled", "blocked")
_SQL = statements("run")
_SCHEDULE = statements("schedule")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRun:
    """A run that is ours, as `worker_id`, under `epoch` until `lease_until`, by Postgres' clock. `helps`: it is a helper of that one."""

    run_id: UUID
    worker_id: UUID
    tenant_id: UUID
    sync_id: UUID
    schedule_id: UUID | None
    trigger: str
    nominal_at: datetime
    due_at: datetime
    ready_at: datetime
    priority: int
    epoch: int
    attempt: int
    crashes: int
    dry_run: bool
    lease_until: datetime
    deadline_at: datetime | None
    attempt_timeout_ms: int
    stall_ms: int
    helps: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One run's heartbeat; `progress` None leaves the stored counters."""

    run_id: UUID
    epoch: int
    progress: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The answer to a heartbeat: the run is still ours, and may have been asked to end."""

    run_id: UUID
    epoch: int
    lease_until: datetime
    is_cancelled: bool
    cancel_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How a run ends. :param reason: in words. :param error: what stopped it, if something did."""

    run_id: UUID
    epoch: int
    outcome: Outcome
    reason: str | None = None
    error: RunError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Runs that waited for those that ended, queued now; and runs that were not ours to end."""

    successors: tuple[ReadyRun, ...]
    lost: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """After a failure: `run` is queued again for `run.ready_at`; when it `is_over`, `run` is the one that waited for it, if one did."""

    run: ReadyRun | None
    is_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """Runs whose lease was over: queued again, and ended."""

    queued: tuple[ReadyRun, ...]
    ended: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """What a request to cancel led to: `cancelled` at once, or `cancelling` by `worker_id`. `successor` is queued in its place."""

    state: RunState
    worker_id: UUID | None
    successor: ReadyRun | None


def claim_runs(conn: psycopg.Connection[Any], run_ids: Sequence[UUID], worker_id: UUID, *, lease_s: float = LEASE_S) -> list[ClaimedRun]:
    """Confirm what the index dispatched; those not in the answer are someone else's, cancelled or not ready: release them."""
    rows = select(conn, _SQL["run_claim"], {"run_ids": list(run_ids), "worker_id": worker_id, "lease_s": lease_s})
    return [ClaimedRun(**row, worker_id=worker_id) for row in rows]


def executed_among(conn: psycopg.Connection[Any], run_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the runs that somebody executes now."""
    return {row["run_id"] for row in select(conn, _SQL["run_still_active"], {"run_ids": list(run_ids)})}


def heartbeat(conn: psycopg.Connection[Any], worker_id: UUID, beats: Sequence[Beat], *, lease_s: float = LEASE_S) -> list[Held]:
    """Renew the leases of all runs of a worker. A run that is not in the answer is lost: kill its child, write nothing more."""
    with conn.transaction():
        conn.execute("SELECT set_config('synchronous_commit', 'off', true)")
        columns = {
            "worker_id": worker_id,
            "lease_s": lease_s,
            "run_ids": [beat.run_id for beat in beats],
            "epochs": [beat.epoch for beat in beats],
            "progresses": [None if beat.progress is None else json.dumps(dict(beat.progress)) for beat in beats],
        }
        return [Held(**row) for row in select(conn, _SQL["run_heartbeat"], columns)]


def finish_run(
    conn: psycopg.Connection[Any],
    run_id: UUID,
    epoch: int,
    outcome: Outcome,
    *,
    reason: str | None = None,
    error: RunError | None = None,
) -> ReadyRun | None:
    """End a run that we hold, and count it for its schedule, unless its child has done both under our epoch. May be repeated.

    Returns the run that waited for this one and is queued now, if one did.

    :raises StateError: the epoch is old or the run was taken away; nothing was written.
    """
    done = finish_runs(conn, [Finish(run_id=run_id, epoch=epoch, outcome=outcome, reason=reason, error=error)])
    if done.lost:
        raise StateError("the run's lease was lost", next_step="nothing: another worker goes on with it")
    return done.successors[0] if done.successors else None


def finish_runs(conn: psycopg.Connection[Any], finishes: Sequence[Finish]) -> Finished:
    """As `finish_run`, for many at once, in one transaction; those that were not ours are `lost`, and nothing was written for them."""
    by_run = {finish.run_id: finish for finish in finishes}
    ids = {"run_ids": list(by_run)}
    with conn.transaction():
        lock_clocks(conn, list(by_run))
        rows = {row["run_id"]: row for row in select(conn, _SQL["run_lock"], ids)}
        lost = [run_id for run_id, finish in by_run.items() if not _is_ours(rows.get(run_id), finish)]
        ours = [finish for finish in finishes if finish.run_id not in lost]
        open_ones = [finish for finish in ours if rows[finish.run_id]["state"] in _HELD]
        if open_ones:
            select(conn, _SQL["run_finish"], _finish_columns(open_ones))
        outcomes = {finish.run_id: finish.outcome if finish in open_ones else rows[finish.run_id]["state"] for finish in ours}
        _settle(conn, [(rows[run_id], outcome) for run_id, outcome in outcomes.items() if not rows[run_id]["is_settled"]])
        keys = [rows[finish.run_id]["overlap_key"] for finish in ours]
        successors = [ready_run(row) for row in select(conn, _SQL["run_of_keys"], {"overlap_keys": keys})] if keys else []
    return Finished(successors=tuple(successors), lost=tuple(lost))


def lock_clocks(conn: psycopg.Connection[Any], run_ids: Sequence[UUID]) -> None:
    """Lock the clocks of the runs' schedules, before the runs themselves: fires take the locks in this order, too."""
    select(conn, _SQL["run_clocks_lock"], {"run_ids": list(run_ids)})


def _is_ours(row: Row | None, finish: Finish) -> bool:
    return row is not None and row["epoch"] == finish.epoch and row["state"] in {*_HELD, *_ENDED}


def _finish_columns(finishes: Sequence[Finish]) -> dict[str, Any]:
    errors = [_error_columns(finish.error) for finish in finishes]
    return {
        "run_ids": [finish.run_id for finish in finishes],
        "epochs": [finish.epoch for finish in finishes],
        "states": [finish.outcome for finish in finishes],
        "reasons": [finish.reason for finish in finishes],
        "error_classes": [error["error_class"] for error in errors],
        "errors": [error["error"] for error in errors],
        "next_steps": [error["next_step"] for error in errors],
    }


def retry_run(
    conn: psycopg.Connection[Any],
    run_id: UUID,
    epoch: int,
    *,
    error: RunError,
    retry_after_s: float | None = None,
    is_throttled: bool = False,
) -> Retried:
    """After a failure that may pass: back into the queue with backoff, or failed once attempts or time are used up.

    :param is_throttled: `retry_after_s` was asked for, by the destination or for one's turn; no attempt is used, only the run's deadline ends it.
    :raises StateError: the epoch is old; nothing was written.
    """
    with conn.transaction():
        run = _run_under_clock(conn, run_id)
        policy = select(conn, _SQL["run_policy"], {"run_id": run_id})[0]
        attempt = run["attempt"] + 1
        base_ms, cap_ms = policy["backoff_base_ms"], policy["backoff_cap_ms"]
        if is_throttled:  # how long is known; a little more keeps many from coming back at once
            base_ms = cap_ms = min(base_ms, THROTTLED_MS, round((retry_after_s or 0.0) * 2_000))
        wait = backoff(run_id, attempt, base_ms=base_ms, cap_ms=cap_ms, retry_after_s=retry_after_s)
        ready_at = instant(policy, "now") + wait
        is_late = run["deadline_at"] is not None and ready_at >= run["deadline_at"]
        is_last = not is_throttled and attempt >= policy["max_attempts"]
        columns = {"run_id": run_id, "epoch": epoch, **_error_columns(error)}
        if is_late or is_last:
            reason = "no time is left for another attempt" if is_late else f"failed {attempt} times"
            last = replace(error, next_step=final_step(error.next_step, run_id))
            return Retried(run=finish_run(conn, run_id, epoch, "failed", reason=reason, error=last), is_over=True)
        queued = _requeue(conn, run, {**columns, "ready_at": ready_at, "used_attempts": 0 if is_throttled else 1}, "run.retried")
        return Retried(run=queued)


def give_back_run(conn: psycopg.Connection[Any], run_id: UUID, epoch: int) -> ReadyRun:
    """A draining worker returns a run to the queue; no attempt is used.

    :raises StateError: the epoch is old; nothing was written.
    """
    with conn.transaction():
        run = _run_under_clock(conn, run_id)
        now = instant(select(conn, _SCHEDULE["time_now"], {})[0], "now")
        columns = {"run_id": run_id, "epoch": epoch, "ready_at": now, "used_attempts": 0, **_error_columns(None)}
        return _requeue(conn, run, columns, "run.given_back")


def reap_runs(conn: psycopg.Connection[Any], *, shard: int = 0, grace_s: float = RESTART_GRACE_S) -> Reaped:
    """Take runs from holders that went silent: queued again, failed `crash_loop` the third time, or the end that was asked for."""
    queued: list[ReadyRun] = []
    ended: list[UUID] = []
    while lost := select(conn, _SQL["run_expired"], {"shard": shard, "grace_s": grace_s, "count": 1_000}):
        again = [run for run in lost if run["state"] == RunState.RUNNING and run["crashes"] + 1 < MAX_CRASHES]
        columns = {"run_ids": [run["run_id"] for run in again], "epochs": [run["epoch"] for run in again]}
        reaped = [ready_run(row) for row in select(conn, _SQL["run_reap"], columns)]
        over = [run for run in lost if run not in again and _end_lost(conn, run)]
        successors = [run_of_key(conn, run["overlap_key"]) for run in over]
        queued += [*reaped, *(run for run in successors if run is not None)]
        ended += [run["run_id"] for run in over]
        if not reaped and not over:
            break  # all of them are locked, or were renewed, meanwhile
    return Reaped(queued=tuple(queued), ended=tuple(ended))


def count_ends(conn: psycopg.Connection[Any], *, shard: int = 0) -> int:
    """Count the ends that nobody has counted for their schedules: their own process could not, and its worker may have died since."""
    counted = 0
    for row in select(conn, _SQL["run_uncounted"], {"shard": shard, "count": 100}):
        try:
            with conn.transaction():
                finish_run(conn, row["run_id"], row["epoch"], row["state"])
                select(conn, _SQL["run_counted"], {"run_id": row["run_id"]})
        except (psycopg.errors.LockNotAvailable, StateError):
            continue  # the next round comes to it
        counted += 1
    return counted


def request_cancel(conn: psycopg.Connection[Any], run_id: UUID, *, reason: str, actor: str) -> CancelRequested | None:
    """Ask a run to end; what nobody executes ends at once. None when it had ended, was asked before, or there is none.

    :param conn: in the tenant's transaction, or the engine's.
    """
    refuse_texts(reason=reason, actor=actor)
    rows = select(conn, _SQL["run_cancel"], {"run_id": run_id, "reason": reason, "actor": actor})
    if not rows:
        return None
    state = RunState(rows[0]["state"])
    if state == RunState.CANCELLING:
        return CancelRequested(state=state, worker_id=rows[0]["worker_id"], successor=None)
    return CancelRequested(state=state, worker_id=None, successor=run_of_key(conn, rows[0]["overlap_key"]))


def run_of_key(conn: psycopg.Connection[Any], overlap_key: UUID) -> ReadyRun | None:
    """The queued run of an overlap key, for the index; None: there is none, or its run is executed or blocked."""
    rows = select(conn, _SQL["run_of_keys"], {"overlap_keys": [overlap_key]})
    return ready_run(rows[0]) if rows else None


def confirm_kill(conn: psycopg.Connection[Any], run_id: UUID, epoch: int) -> list[ReadyRun]:
    """The process that executed a run under `epoch` is gone: if the run was terminated then, what waited need not wait for the lease any more."""
    return [ready_run(row) for row in select(conn, _SQL["run_kill_confirmed"], {"run_id": run_id, "epoch": epoch})]


def drop_waiting(conn: psycopg.Connection[Any], schedule_id: UUID, *, actor: str) -> None:
    """A schedule is paused: its scheduled runs that wait for another one end. The caller holds its clock."""
    conn.execute(_SQL["run_unbuffer"], {"schedule_id": schedule_id, "actor": actor})


def backoff(run_id: UUID, attempt: int, *, base_ms: int, cap_ms: int, retry_after_s: float | None) -> timedelta:
    """Wait before the execution after failure number `attempt` (1, 2, …): half to all of a doubling time, Retry-After if that is longer."""
    limit_ms = min(cap_ms, base_ms * 2 ** min(attempt - 1, 30))
    draw = random.Random(run_id.int + attempt).uniform(0.5, 1)  # the same in whatever process asks
    return max(timedelta(milliseconds=draw * limit_ms), timedelta(seconds=retry_after_s or 0))


def crash_loop(what: str, how: str = "") -> RunError:
    """The end of a run that kills whoever executes it."""
    message = f"{what} died {MAX_CRASHES} times" + (f": {how}" if how else "")
    return RunError(error_class="crash_loop", message=message, next_step="see the workers' logs; `wsync-engine sync run` starts a new run")


def _error_columns(error: RunError | None) -> dict[str, str | None]:
    if error is None:
        return {"error_class": None, "error": None, "next_step": None}
    return {"error_class": error.error_class, "error": error.message, "next_step": error.next_step}


def _run(conn: psycopg.Connection[Any], run_id: UUID) -> Row:
    rows = select(conn, _SQL["run_get"], {"run_id": run_id})
    if not rows:
        raise StateError("the run does not exist any more", next_step="nothing: it was purged")
    return rows[0]


def _run_under_clock(conn: psycopg.Connection[Any], run_id: UUID) -> Row:
    """The run, with its schedule's clock locked first: fires take the locks in this order, too."""
    run = _run(conn, run_id)
    if run["schedule_id"] is not None:
        select(conn, _SCHEDULE["clock_lock"], {"schedule_id": run["schedule_id"]})
    return run


def _requeue(conn: psycopg.Connection[Any], run: Row, columns: Mapping[str, Any], kind: str) -> ReadyRun:
    rows = select(conn, _SQL["run_requeue"], columns)
    if not rows:
        raise StateError("the run's lease was lost", next_step="nothing: another worker goes on with it")
    event = Event(kind=kind, tenant_id=run["tenant_id"], schedule_id=run["schedule_id"], run_id=run["run_id"], epoch=columns["epoch"])
    write_events(conn, [event])
    return ready_run(rows[0])


def _end_lost(conn: psycopg.Connection[Any], lost: Row) -> bool:
    is_asked = lost["state"] == RunState.CANCELLING
    outcome: Outcome = "cancelled" if is_asked and lost["cancel_reason"] != "timeout" else "failed"
    error = None if outcome == "cancelled" else OUT_OF_TIME if is_asked else crash_loop("its worker or process")
    columns = {"run_id": lost["run_id"], "epoch": lost["epoch"], "state": outcome}
    columns |= {"reason": None if error is None else error.message, **_error_columns(error)}
    with conn.transaction():
        _run_under_clock(conn, lost["run_id"])
        if not select(conn, _SQL["run_finish_lost"], columns):
            return False
        _settle(conn, [(lost, outcome)])
    return True


class ScheduleSettlement:
    """Counts the end of a run that its own process stores: `state.books.Settlement`. Who ends it once more counts nothing."""

    def lock(self, conn: psycopg.Connection[Any], run_id: UUID) -> bool:
        """The clock of its schedule. False: somebody holds it for long, which must not keep a run from ending."""
        try:
            with conn.transaction():
                lock_clocks(conn, [run_id])
        except psycopg.errors.LockNotAvailable:
            return False
        return True

    def count(self, conn: psycopg.Connection[Any], run_id: UUID, epoch: int, outcome: str) -> None:
        """For its schedule, which a row of failures pauses."""
        _settle(conn, [({**_run(conn, run_id), "epoch": epoch}, outcome)])


def _settle(conn: psycopg.Connection[Any], ends: Sequence[tuple[Row, str]]) -> None:
    """Count ends for their schedules, once each, in the transaction that holds the clocks."""
    settled = [
        Event(
            kind="run.settled",
            tenant_id=run["tenant_id"],
            schedule_id=run["schedule_id"],
            run_id=run["run_id"],
            epoch=run["epoch"],
            detail={"state": outcome},
        )
        for run, outcome in ends
    ]
    write_events(conn, settled)
    counting = [(run["schedule_id"], outcome) for run, outcome in ends if run["schedule_id"] and outcome not in {"cancelled", "blocked"}]
    while counting:  # a schedule that ends several runs at once counts them one after the other
        once = dict(reversed(counting))
        columns = {"schedule_ids": list(once), "states": list(once.values())}
        for row in select(conn, _SQL["clock_outcome"], columns):
            _pause_failing(conn, row)
        for schedule_id, outcome in once.items():
            counting.remove((schedule_id, outcome))


def _pause_failing(conn: psycopg.Connection[Any], clock: Row) -> None:
    schedule_id = clock["schedule_id"]
    note = f"{clock['failures_in_row']} runs failed in a row"
    conn.execute(_SCHEDULE["schedule_pause"], {"schedule_id": schedule_id, "note": note, "actor": "system"})
    for locked in select(conn, _SCHEDULE["clock_lock"], {"schedule_id": schedule_id}):  # by the count of the end already
        give_up_all(conn, locked, reason="paused", actor="system")
    columns = {"schedule_id": schedule_id, "next_nominal_at": None, "next_due_at": None, "last_nominal_at": None}
    conn.execute(_SCHEDULE["clock_set"], columns)
    drop_waiting(conn, schedule_id, actor="system")
    detail = {"actor": "system", "note": note}
    write_events(conn, [Event(kind="schedule.paused", tenant_id=clock["tenant_id"], schedule_id=schedule_id, detail=detail)])
