"""A run's tasks: who executes which, what came of them, and the helpers that are called for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from wsync_engine.model.ids import uuid7
from wsync_engine.state.holding import HeldRun
from wsync_engine.state.statements import load_statements
from wsync_sdk import StateError

__all__ = ["Kind", "Task", "TaskBoard", "TaskError", "TaskState"]

Kind = Literal["extract", "diff", "deliver", "fold"]
MOST_HELPERS = 64
_SQL = load_statements("task")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task that this process holds. `epoch`: how often it had a holder; a destination refuses writes of an earlier one."""

    kind: Kind
    part: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskError:
    """Why a task failed: the error's class in the SDK, and what it says."""

    error_class: str
    message: str
    next_step: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """A task as stored."""

    part: int
    is_done: bool
    result: Mapping[str, Any]
    error: TaskError | None


class TaskBoard:
    """The tasks of one run; `held` says who asks."""

    def __init__(self, held: HeldRun) -> None:
        self._held = held

    def open(self, kind: Kind, parts: Sequence[int]) -> list[dict[str, Any]]:
        """Make the tasks of a phase that are not there yet, open those again that failed, and call helpers for them; gives these, to be told to the index."""
        with self._cursor() as cursor:
            cursor.execute(_SQL["task_open"], {**self._ids, "kind": kind, "parts": list(parts), "epoch": self._held.claim.epoch})
            helper_ids = [uuid7() for _ in range(min(MOST_HELPERS, len(parts)))]
            cursor.execute(_SQL["helper_call"], {**self._ids, "most": MOST_HELPERS, "helper_ids": helper_ids})
            return cursor.fetchall()

    def claim(self, kind: Kind | None = None) -> Task | None:
        """Take the first task that nobody executes; None: there is none.

        :param kind: None: any. A phase that was left is there beside those that come before it.
        """
        with self._cursor() as cursor:
            row = cursor.execute(_SQL["task_claim"], {**self._ours, "kind": kind}).fetchone()
        return None if row is None else Task(**row)

    @contextmanager
    def done(self, task: Task, result: Mapping[str, Any]) -> Iterator[psycopg.Cursor[Any]]:
        """Store what came of a task, and, in the same transaction, whatever is written inside.

        :raises StateError: somebody else holds it by now.
        """
        with self._cursor() as cursor:
            row = cursor.execute(_SQL["task_done"], {**self._ours, **self._named(task), "result": json.dumps(dict(result))}).fetchone()
            if row is None:
                raise StateError("the task is no longer ours", next_step="nothing: whoever holds it now does it")
            cursor.execute(_SQL["run_progressed"], self._ours)
            yield cursor

    def fail(self, task: Task, error: TaskError) -> None:
        """Store why a task failed: nobody takes another one of its kind until it is opened again."""
        document = {name: getattr(error, name) for name in TaskError.__slots__}
        with self._cursor() as cursor:
            cursor.execute(_SQL["task_failed"], {**self._ours, **self._named(task), "error": json.dumps(document)})

    def states(self, kind: Kind) -> list[TaskState]:
        """All tasks of a phase, in order."""
        with self._cursor() as cursor:
            rows = cursor.execute(_SQL["task_states"], {**self._ids, "kind": kind}).fetchall()
        return [
            TaskState(
                part=row["part"],
                is_done=row["state"] == "done",
                result=row["result"] or {},
                error=TaskError(**row["error"]) if row["state"] == "failed" else None,
            )
            for row in rows
        ]

    def counts_of_helpers(self) -> dict[str, int]:
        """What helpers have counted so far, by name; at most a heartbeat old."""
        with self._cursor() as cursor:
            return {row["name"]: int(row["rows"]) for row in cursor.execute(_SQL["task_counts"], self._ids).fetchall()}

    def dismiss(self) -> int:
        """Ask all helpers to end; how many may still be at work."""
        with self._cursor() as cursor:
            cursor.execute(_SQL["helper_dismiss"], self._ids)
            row = cursor.execute(_SQL["helper_left"], self._ids).fetchone()
            cursor.execute(_SQL["helper_forget"], self._ids)
        assert row is not None
        return int(row["helpers"])

    # -- inside

    @property
    def _ids(self) -> dict[str, UUID]:
        return {"run_id": self._held.run_id, "tenant_id": self._held.tenant_id}

    @property
    def _ours(self) -> dict[str, Any]:
        return {**self._ids, "holder": self._held.claim.holder, "holder_epoch": self._held.claim.epoch}

    @staticmethod
    def _named(task: Task) -> dict[str, Any]:
        return {"kind": task.kind, "part": task.part, "epoch": task.epoch}

    @contextmanager
    def _cursor(self) -> Iterator[psycopg.Cursor[dict[str, Any]]]:
        with self._held.fenced() as cursor:
            rows: Any = cursor
            rows.row_factory = dict_row
            yield rows
