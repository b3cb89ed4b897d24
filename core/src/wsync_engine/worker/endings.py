"""How a run leaves its slot, as one write to Postgres that is repeated until it went through or turned out to be no longer ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, assert_never
from uuid import UUID

import psycopg

from wsync_engine.index.entries import ReadyRun
from wsync_engine.model.run import RunError
from wsync_engine.scheduler.runs import OUT_OF_TIME, STALLED, Finish, Outcome, confirm_kill, finish_run, give_back_run, retry_run
from wsync_engine.worker.messages import Ended
from wsync_engine.worker.slots import Tenure
from wsync_engine.worker.store import crash_run
from wsync_sdk.errors import StateError

__all__ = ["Ending", "ending_of_death", "ending_of_report", "failed", "given_back"]

OUT_OF_MEMORY = RunError(
    error_class="memory_limit",
    message="its process used more memory than a task may",
    next_step="a run's memory does not depend on how many rows there are: look for huge values in them, or raise WSYNC_TASK_MEMORY_MIB",
)
Write = Callable[[psycopg.Connection[Any]], ReadyRun | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A run that left its slot.

    :param is_ours: its lease is kept until this is written. :param write: gives a run that is queued now, this one or its successor;
    StateError: it was not ours. :param finish: set where `write` does no more than this, so that many can be written at once.
    """

    run_id: UUID
    epoch: int
    is_ours: bool
    write: Write
    finish: Finish | None = None


def ending_of_report(ended: Ended) -> Ending:
    """What a child said at the end of its run."""
    run_id, epoch = ended.run_id, ended.epoch
    match ended.kind:
        case "concluded":
            finish = Finish(run_id=run_id, epoch=epoch, outcome=_OUTCOMES[ended.state])
            return replace(_ending(run_id, epoch, _finish(run_id, epoch, ended.state), is_ours=False), finish=finish)
        case "retry":
            return _ending(run_id, epoch, _retry(run_id, epoch, ended.error, retry_after_s=ended.retry_after_s))
        case "back":
            return given_back(run_id, epoch)
        case "failed":
            return failed(run_id, epoch, ended.error)
        case "dropped":  # its holder or the reaper decides
            return _ending(run_id, epoch, partial(_freed, run_id=run_id, epoch=epoch), is_ours=False)
        case other:
            assert_never(other)


def ending_of_death(tenure: Tenure, how: str, *, crash_backoff_s: float) -> Ending:
    """What becomes of a run whose process is gone."""
    run_id, epoch = tenure.assignment.run_id, tenure.assignment.epoch
    match tenure.stopping:
        case None:
            return _ending(run_id, epoch, partial(crash_run, run_id=run_id, epoch=epoch, error=how, backoff_s=crash_backoff_s))
        case "cancelled":
            return _ending(run_id, epoch, _finish(run_id, epoch, "cancelled", reason="cancelled; its process did not end and was killed"))
        case "timeout":
            return failed(run_id, epoch, replace(OUT_OF_TIME, message="out of time; its process did not end and was killed"))
        case "drain":
            return given_back(run_id, epoch)
        case "memory" | "stalled":
            error = OUT_OF_MEMORY if tenure.stopping == "memory" else STALLED
            return _ending(run_id, epoch, _retry(run_id, epoch, error))
        case "lost":
            return _ending(run_id, epoch, _finish_or_free(run_id, epoch), is_ours=False)
        case other:
            assert_never(other)


def given_back(run_id: UUID, epoch: int) -> Ending:
    """Queued again, without using an attempt."""
    return _ending(run_id, epoch, _or_cancelled(run_id, epoch, partial(give_back_run, run_id=run_id, epoch=epoch)))


def failed(run_id: UUID, epoch: int, error: RunError) -> Ending:
    """Failed for good."""
    return _ending(run_id, epoch, _finish(run_id, epoch, "failed", reason=error.message, error=error))


def _ending(run_id: UUID, epoch: int, write: Write, *, is_ours: bool = True) -> Ending:
    return Ending(run_id=run_id, epoch=epoch, is_ours=is_ours, write=write)


def _finish(run_id: UUID, epoch: int, state: str, *, reason: str | None = None, error: RunError | None = None) -> Write:
    outcome: Outcome = _OUTCOMES[state]

    def write(conn: psycopg.Connection[Any]) -> ReadyRun | None:
        return finish_run(conn, run_id, epoch, outcome, reason=reason, error=error)

    return write


def _finish_or_free(run_id: UUID, epoch: int) -> Write:
    """If its child had ended it under our epoch, that is counted; else nothing is written but that its process is gone."""
    finish = _finish(run_id, epoch, "failed")

    def write(conn: psycopg.Connection[Any]) -> ReadyRun | None:
        try:
            return finish(conn)
        except StateError:
            return _freed(conn, run_id, epoch)

    return write


def _freed(conn: psycopg.Connection[Any], run_id: UUID, epoch: int) -> ReadyRun | None:
    """At most one run waits for the end of another."""
    return next(iter(confirm_kill(conn, run_id, epoch)), None)


_OUTCOMES: dict[str, Outcome] = {
    "succeeded": "succeeded",
    "partial": "partial",
    "failed": "failed",
    "cancelled": "cancelled",
    "blocked": "blocked",
}


def _retry(run_id: UUID, epoch: int, error: RunError, *, retry_after_s: float | None = None) -> Write:
    def write(conn: psycopg.Connection[Any]) -> ReadyRun | None:
        is_throttled = retry_after_s is not None
        return retry_run(conn, run_id, epoch, error=error, retry_after_s=retry_after_s, is_throttled=is_throttled).run

    return _or_cancelled(run_id, epoch, write)


def _or_cancelled(run_id: UUID, epoch: int, write: Write) -> Write:
    """What can't go back to the queue because somebody asked for its end meanwhile, ends."""

    def write_or_end(conn: psycopg.Connection[Any]) -> ReadyRun | None:
        try:
            return write(conn)
        except StateError:
            return finish_run(conn, run_id, epoch, "cancelled", reason="cancelled")

    return write_or_end
