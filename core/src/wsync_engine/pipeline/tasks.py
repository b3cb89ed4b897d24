"""A phase of a run is cut into tasks, which are executed here and, where slots are free, by helpers on other slots and machines.

A task's result is durable before the task is done, and a task whose holder is gone is taken by the next one: so a run goes on where it was left,
whoever executes it. Phases of one task are not worth a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wsync_engine.pipeline.job import Job
from wsync_engine.pipeline.local_database import SnapshotLost
from wsync_engine.state.records import NewRejection
from wsync_engine.state.tasks import Kind, Task, TaskBoard, TaskError, TaskState
from wsync_sdk import ConfigError, FatalError, PlanExpired, PluginError, RetryableError, WsyncError

__all__ = ["Result", "Work", "error_of", "execute_task", "spread", "stored_error"]

POLL_S = 0.5
"""How often is looked whether others have done the last tasks."""
_ERRORS: dict[str, type[WsyncError]] = {
    kind.__name__: kind for kind in (ConfigError, FatalError, PlanExpired, PluginError, RetryableError, SnapshotLost)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a task: values to be stored, and rows that are to be listed as refused."""

    values: Mapping[str, Any] = field(default_factory=dict)
    rejections: Sequence[NewRejection] = ()


class Work(Protocol):
    """What a task of one phase does."""

    def execute(self, part: int, epoch: int) -> Result:
        """Do it. May be done twice, by two processes, of which the later one has the higher epoch."""
        ...

    def clean_up(self, part: int) -> None:
        """Called once its result is stored."""
        ...


def spread(job: Job, kind: Kind, parts: Sequence[int], work: Work, *, is_left: bool = True) -> dict[int, Mapping[str, Any]]:
    """Have each part of a phase done once; its result by part.

    :param is_left: the run may be left between two tasks and taken up again.
    :raises WsyncError: what a task ended with, here or elsewhere.
    """
    if len(parts) == 1:
        return {parts[0]: _execute_alone(job, parts[0], work)}
    board = TaskBoard(job.books)
    job.context.call_helpers(board.open(kind, parts))
    while True:
        if is_left:
            job.context.border()
        job.context.check()
        task = board.claim(kind)
        if task is not None:
            execute_task(job, board, task, work)
            continue
        states = board.states(kind)
        _raise_failure(states)
        job.context.count_beside(board.counts_of_helpers())
        if all(state.is_done for state in states):
            return {state.part: state.result for state in states}
        job.context.pause(POLL_S)


def _execute_alone(job: Job, part: int, work: Work) -> Mapping[str, Any]:
    result = work.execute(part, job.books.claim.epoch)
    if result.rejections:
        with job.books.fenced() as cursor:
            job.books.insert_rejections(cursor, result.rejections)
    return result.values


def execute_task(job: Job, board: TaskBoard, task: Task, work: Work) -> None:
    """One that this process has claimed, until its result is stored."""
    result = work.execute(task.part, task.epoch)
    job.context.faults("before_task_done")
    with board.done(task, result.values) as cursor:
        job.books.insert_rejections(cursor, result.rejections)
    job.context.faults("after_task_done")
    work.clean_up(task.part)
    job.context.count("tasks", 1)


def _raise_failure(states: Sequence[TaskState]) -> None:
    for state in states:
        if state.error is not None:
            raise error_of(state.error)


def error_of(stored: TaskError) -> WsyncError:
    """What a task ended with in another process."""
    kind = _ERRORS.get(stored.error_class, FatalError)
    if issubclass(kind, RetryableError):
        return kind(stored.message, next_step=stored.next_step, retry_after_s=stored.retry_after_s)
    return kind(stored.message, next_step=stored.next_step)


def stored_error(error: WsyncError) -> TaskError:
    """What `error_of` turns back: as the nearest class that every process knows."""
    name = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), FatalError.__name__)
    after_s = error.retry_after_s if isinstance(error, RetryableError) else None
    return TaskError(error_class=name, message=error.message, next_step=error.next_step, retry_after_s=after_s)
