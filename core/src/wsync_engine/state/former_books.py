"""The books of a run that ended, as the run that finishes its change log writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from wsync_engine.state.books import DELIVERY_WAIT_S, IS_OVER, TERMINAL, RunBooks
from wsync_engine.state.records import RunRecord
from wsync_sdk import RetryableError

__all__ = ["FormerBooks"]


class FormerBooks(RunBooks):
    """Chunks, acks and rejections go to the ended run; each write needs the claim of its successor, which alone is executed.

    :param successor: the books of the run that is executed. :param run_id: the one that ended.
    """

    def __init__(self, successor: RunBooks, run_id: UUID) -> None:
        super().__init__(successor.connection, tenant_id=successor.tenant_id, run_id=run_id, claim=successor.claim)
        self._successor = successor

    @contextmanager
    def fenced(
        self, event: str | None = None, detail: Mapping[str, Any] | None = None, *, lock: str = "FOR SHARE"
    ) -> Iterator[psycopg.Cursor[Any]]:
        """A transaction in which the successor's claim holds; an event is the successor's.

        :raises StateError: it does not hold any more.
        """
        with self._successor.fenced(event, detail, lock=lock) as cursor:
            yield cursor

    def take(self, sync_id: UUID) -> RunRecord | None:
        """Let the successor, and nobody else, finish the change log, under a delivery number that fences off all before it; None: it is folded.

        :raises RetryableError: another run is at it.
        """
        detail = {"run": str(self.run_id)}
        with self.fenced("log.taken", detail) as cursor:
            cursor.execute("SELECT FROM wsync.sync WHERE sync_id = %s FOR NO KEY UPDATE", (sync_id,))
            row = cursor.execute(
                "SELECT folded_at IS NOT NULL, finisher FROM wsync.run WHERE run_id = %s FOR UPDATE", (self.run_id,)
            ).fetchone()
            if row is None or row[0]:
                return None
            if row[1] != self._successor.run_id:
                self._await_finisher(cursor, row[1])
                cursor.execute(
                    "WITH raised AS (UPDATE wsync.sync SET delivery = delivery + 1 WHERE sync_id = %s RETURNING delivery)"
                    " UPDATE wsync.run SET delivery = raised.delivery, finisher = %s FROM raised WHERE run_id = %s",
                    (sync_id, self._successor.run_id, self.run_id),
                )
            return self._record(cursor, self.run_id)

    def settle(self, counts: Mapping[str, int]) -> None:
        """Store what became of all rows of the log, in place of what was known when the run ended."""
        with self.fenced("log.finished", {"run": str(self.run_id), **counts}) as cursor:
            cursor.execute("UPDATE wsync.run SET counts = %s WHERE run_id = %s", (Jsonb(dict(counts)), self.run_id))

    def _await_finisher(self, cursor: psycopg.Cursor[Any], finisher: UUID | None) -> None:
        row = cursor.execute(f"SELECT {IS_OVER} FROM wsync.run WHERE run_id = %s", (list(TERMINAL), finisher)).fetchone()
        if row is not None and not row[0]:
            raise RetryableError(
                "another run of the sync finishes an earlier one's change log",
                next_step="nothing: this one goes on after it",
                retry_after_s=DELIVERY_WAIT_S,
            )
