"""A helper: executes tasks of a run that another process leads, until none is left for it."""

from __future__ import annotations

import structlog

from wsync_engine.pipeline.context import Cancelled
from wsync_engine.pipeline.finish import FoldWork
from wsync_engine.pipeline.job import Job, log_of
from wsync_engine.pipeline.orders import Comparison, ReadOrder
from wsync_engine.pipeline.prepare import DiffWork, ExtractWork
from wsync_engine.pipeline.send import DeliverWork
from wsync_engine.pipeline.tasks import Work, execute_task, stored_error
from wsync_engine.state.records import RunRecord
from wsync_engine.state.tasks import Kind, Task, TaskBoard
from wsync_sdk import FatalError, PluginError, StateError, WsyncError

__all__ = ["help_run"]

_log = structlog.get_logger()


def help_run(job: Job) -> int:
    """Execute tasks of the run; how many were done. A task that fails is told to who leads the run, and ends this.

    :raises Cancelled: this process shall end, or make room. :raises StateError: the run has ended, or is another one's.
    """
    board = TaskBoard(job.books)
    work: tuple[Kind, Work] | None = None
    done = 0
    while (task := board.claim()) is not None:
        try:
            if work is None or work[0] != task.kind:
                work = (task.kind, _work_of(job, task.kind, job.books.load()))
            execute_task(job, board, task, work[1])
        except (Cancelled, StateError):
            raise
        except Exception as exc:
            _tell_failure(board, task, exc)
            return done
        done += 1
        job.context.border()
    return done


def _tell_failure(board: TaskBoard, task: Task, exc: Exception) -> None:
    if isinstance(exc, WsyncError):
        error = exc
    else:
        _log.exception("task.failed", kind=task.kind, part=task.part)
        error = PluginError(f"the run failed with an unexpected {type(exc).__name__}", next_step="report it, with the worker's log")
    board.fail(task, stored_error(error))


def _work_of(job: Job, kind: Kind, record: RunRecord) -> Work:
    """What a task of this kind does, by what the run's leader stored."""
    match kind:
        case "extract" if record.plan is not None:
            return ExtractWork(job, record, ReadOrder.from_bytes(record.plan, job.cipher))
        case "diff" if record.comparison is not None:
            return DiffWork(job, record, Comparison.from_json(record.base_version or 0, record.comparison))
        case "deliver" if record.sink_token is not None:
            log = log_of(record)
            if log.destination != job.destination:
                raise FatalError("the sync was moved to another sink since the change log was made", next_step="run the sync again")
            return DeliverWork(job, record, record.sink_token)
        case "fold":
            return FoldWork(job, job.books.run_id, log_of(record))
    raise StateError("the run has no such tasks any more", next_step="nothing: its leader has gone on")
