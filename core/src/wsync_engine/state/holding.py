"""Writes of one process for one run, each of them fenced.

A write happens in a transaction that holds the row under which the process claimed its work FOR SHARE, with its epoch: the run's own row, or that of a
helper of it. So a process that lost its lease writes nothing more, and nothing is written for a run that has ended. The connection is the task
child's own, as `wsync_api`, with the tenant set in each transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from wsync_sdk import RetryableError, StateError

__all__ = ["Claim", "HeldRun"]

_IS_OURS = "h.epoch = %(epoch)s AND h.worker_id = %(worker_id)s AND h.state IN ('running', 'cancelling')"
_OF_RUN = f"SELECT {_IS_OURS} FROM wsync.run AS h WHERE h.run_id = %(holder)s"
# A helper goes on while its run waits for a slot. Only its own row is locked: many helpers' locks on one run would keep its heartbeats waiting. Whoever
# folds the run waits for the ends of its helpers, and these come after all they wrote.
_OF_HELPER = (
    f"SELECT {_IS_OURS} AND r.state IN ('queued', 'running', 'cancelling')"
    " FROM wsync.run AS h JOIN wsync.run AS r ON r.run_id = h.helps WHERE h.run_id = %(holder)s AND r.run_id = %(run_id)s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """As what a process writes: a claim that Postgres lost in a failover is followed by another one of the same epoch, so the holder counts too.

    :param holder: the row that was claimed: the run's, or its helper's. :param worker_id: who claimed it.
    """

    holder: UUID
    epoch: int
    worker_id: UUID


class HeldRun:
    """One run as its holder, or a helper, writes about it.

    :param conn: autocommit; used by one thread.
    """

    def __init__(self, conn: psycopg.Connection[Any], *, tenant_id: UUID, run_id: UUID, claim: Claim) -> None:
        self._conn = conn
        self.tenant_id = tenant_id
        self.run_id = run_id
        self.claim = claim

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """On which it is written."""
        return self._conn

    @property
    def is_helper(self) -> bool:
        """Whether this process executes tasks only."""
        return self.claim.holder != self.run_id

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One of the tenant's.

        :raises RetryableError: the state store is away.
        """
        try:
            with self._conn.transaction():
                self._conn.execute("SELECT set_config('wsync.tenant_id', %s, true)", (str(self.tenant_id),))
                yield
        except psycopg.OperationalError as exc:
            raise RetryableError(
                "the state store can't be reached", next_step="nothing: it is tried again; if it stays so, look whether Postgres runs"
            ) from exc

    @contextmanager
    def fenced(
        self, event: str | None = None, detail: Mapping[str, Any] | None = None, *, lock: str = "FOR SHARE"
    ) -> Iterator[psycopg.Cursor[Any]]:
        """A transaction in which the claim holds.

        :raises StateError: it does not hold any more.
        """
        with self.transaction(), self._conn.cursor() as cursor:
            columns = {
                "run_id": self.run_id,
                "holder": self.claim.holder,
                "epoch": self.claim.epoch,
                "worker_id": self.claim.worker_id,
            }
            row = cursor.execute(f"{_OF_HELPER if self.is_helper else _OF_RUN} {lock} OF h", columns).fetchone()
            if row is None or not row[0]:
                raise StateError("this run is no longer ours", next_step="nothing to do: another worker goes on with it")
            yield cursor
            if event is not None:
                self.write_event(cursor, event, detail)

    def write_event(self, cursor: psycopg.Cursor[Any], kind: str, detail: Mapping[str, Any] | None) -> None:
        """One event of the run, in a transaction of this process."""
        cursor.execute(
            "INSERT INTO wsync.run_event (tenant_id, schedule_id, run_id, epoch, kind, detail)"
            " SELECT tenant_id, schedule_id, run_id, %s, %s, %s FROM wsync.run WHERE run_id = %s",
            (self.claim.epoch, kind, Jsonb(dict(detail or {})), self.run_id),
        )
