"""One chunk in one transaction: nothing is applied without its record, and nothing recorded without its rows.

    BEGIN · hold the fence · record the range · COPY into a temporary table · INSERT … ON CONFLICT, DELETE … USING · COMMIT

Rows that are appended are inserted as they come.

A chunk whose range is already recorded ends without a change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic

import pyarrow as pa
import pyarrow.compute as pc

from wsync_postgres.bookkeeping import SYNC_PARTITION, Bookkeeping, fenced_off, missing_rows, sync_name
from wsync_postgres.driver import ArrowConnection, Row
from wsync_postgres.merge import Merge
from wsync_postgres.problems import apply_error, write_error
from wsync_postgres.staging import has_nul, staged
from wsync_postgres.table import missing_privileges, require_privileges
from wsync_sdk import Chunk, Operation, RetryableError, RowError, RowRange, StateError, WriteMode

__all__ = ["ChunkTransaction", "WriteToken"]

_NO_PRIVILEGE = "insufficient_privilege"
_UPSERTS, _DELETES = "wsync_upserts", "wsync_deletes"
_WRITING = partial(write_error, "write")
_APPLYING = partial(apply_error, "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteToken:
    """What `begin` tells each write of the table; see `Merge`."""

    types: Mapping[str, str]
    declared: Mapping[str, str]
    key_checks: Sequence[str]

    def encode(self) -> bytes:
        """As the engine stores it."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def decode(token: bytes) -> WriteToken:
        """What `encode` made."""
        return WriteToken(**json.loads(token))


class ChunkTransaction:
    """One chunk on one connection."""

    def __init__(self, connection: ArrowConnection, books: Bookkeeping, chunk: Chunk, token: WriteToken, deadline_s: float) -> None:
        self._connection = connection
        self._books = books
        self._chunk = chunk
        self._types = token.types
        self._merge = Merge(target=chunk.target, types=token.types, declared=token.declared, key_checks=token.key_checks)
        self._deadline_s = deadline_s
        self._sync = sync_name(chunk.run)

    def write(self) -> None:
        """Apply the chunk, or find it recorded.

        :raises RowError: the table refuses a row. :raises StateError: the chunk's numbers are old. :raises RetryableError: it may be sent again.
        """
        upserts, deletes = self._staged()
        self._begin()
        try:
            self._pass_fence()
            if self._record():
                self._upsert(upserts)
                self._delete(deletes)
        except RowError as exc:
            self._execute("ROLLBACK")
            if exc.code == _NO_PRIVILEGE:
                self._check_privileges()
            raise
        except StateError:
            self._execute("ROLLBACK")
            raise
        self._commit()

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT", translate=_APPLYING)  # deferred constraints speak now
        except RowError:
            self._execute("ROLLBACK")
            raise

    def _check_privileges(self) -> None:
        """A privilege taken away in mid-run would else refuse each row by itself."""
        stream = self._chunk.target.stream
        require_privileges(stream, self._rows(missing_privileges(stream)))

    def _staged(self) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """The upserts with all columns and the deletes with the key's, as COPY takes them."""
        changes, target = self._chunk.changes, self._chunk.target
        is_upsert = pc.equal(changes.column(0), Operation.UPSERT.value)
        upserts = self._columns(changes.filter(is_upsert), target.schema.names)
        return upserts, self._columns(changes.filter(pc.invert(is_upsert)), target.key)

    def _columns(self, changes: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        try:
            arrays = [staged(changes.column(name), self._chunk.target.schema.field(name), column_type=self._types[name]) for name in names]
        except pa.ArrowInvalid:
            raise RowError("a value is outside what Postgres can hold", code="out_of_range", next_step="correct it in the query") from None
        if any(has_nul(array) for array in arrays):
            raise RowError(
                "a text has a NUL character, which Postgres can't hold", code="untranslatable_character", next_step="remove it in the query"
            )
        return pa.RecordBatch.from_arrays(arrays, names=list(names))

    def _begin(self) -> None:
        self._execute("BEGIN")
        self._limit_time()

    def _limit_time(self) -> None:
        left_s = self._deadline_s - monotonic()
        if left_s <= 0:
            raise RetryableError("write: out of time", next_step="nothing to do: it is tried again")
        self._execute(f"SET LOCAL statement_timeout = {max(1, int(left_s * 1000))}")

    def _pass_fence(self) -> None:
        """Hold the fence FOR SHARE until the commit; raise it first where it is lower than we are."""
        if self._is_fence_ours():
            return
        # Raised outside the transaction: two that hold it FOR SHARE and both want to raise it would wait for each other.
        self._execute("ROLLBACK")
        fence = self._chunk.fence
        self._execute(self._books.fence_raise(self._sync, SYNC_PARTITION, delivery=fence.delivery, epoch=0))
        self._execute(self._books.fence_raise(self._sync, fence.partition, delivery=fence.delivery, epoch=fence.epoch))
        self._begin()
        if not self._is_fence_ours():
            raise fenced_off()

    def _is_fence_ours(self) -> bool:
        """
        :raises StateError: it is higher.
        """
        fence = self._chunk.fence
        seen = {row[0]: (row[1], row[2]) for row in self._rows(self._books.fence_lock(self._sync, fence.partition))}
        ours = {SYNC_PARTITION: (fence.delivery, 0), fence.partition: (fence.delivery, fence.epoch)}
        if any(seen.get(partition, value) > value for partition, value in ours.items()):
            raise fenced_off()
        return seen == ours

    def _record(self) -> bool:
        """Record the range; False if it is recorded already."""
        chunk = self._chunk
        near = self._rows(self._books.ack_near(self._sync, chunk.run.run_id, partition=chunk.partition, rows=chunk.range))
        missing = missing_rows(chunk.range, [RowRange(first, last) for first, last in near])
        if missing == 0:
            return False
        if missing != chunk.range.rows:
            raise StateError(
                "some of the chunk's rows were applied by another chunk", next_step="ask `recorded` before cutting chunks anew"
            )
        insert = self._books.ack_insert(
            self._sync, chunk.run.run_id, delivery=chunk.fence.delivery, partition=chunk.partition, rows=chunk.range
        )
        return bool(self._rows(insert))  # no row: the same chunk came twice at once, and the other was first

    def _upsert(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows == 0:
            return
        with self._staging(_UPSERTS, rows):
            is_stored = self._insert(rows.num_rows)
        if not is_stored:
            raise RowError(
                "the table did not keep the row under its key",
                code="not_stored",
                next_step="see whether a trigger of the table drops rows or changes their key",
            )

    def _insert(self, count: int) -> bool:
        """Whether the table has the staged rows."""
        if self._chunk.run.write_mode is WriteMode.APPEND:
            return bool(self._connection.execute(self._merge.append(_UPSERTS), translate=_APPLYING) == count)
        return self._upsert_values() if self._merge.values else self._insert_keys(count)

    def _upsert_values(self) -> bool:
        places = self._apply(self._merge.upsert(_UPSERTS))[0][0]
        # A trigger may leave out updates that change nothing: the row did not come back, and is as it shall be.
        return places is None or not self._apply(self._merge.differing(_UPSERTS, places))

    def _insert_keys(self, count: int) -> bool:
        self._connection.execute(self._merge.insert_keys(_UPSERTS), translate=_APPLYING)
        return bool(self._apply(self._merge.present(_UPSERTS))[0][0] == count)

    def _delete(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows == 0:
            return
        with self._staging(_DELETES, rows):
            deleted = self._connection.execute(self._merge.delete(_DELETES), translate=_APPLYING)
            # A look at every key only where some were not there, or stayed.
            is_gone = deleted == rows.num_rows or self._apply(self._merge.present(_DELETES))[0][0] == 0
        if not is_gone:
            raise RowError(
                "the table still has the row",
                code="not_deleted",
                next_step="see whether a trigger or a policy of the table keeps rows from being deleted",
            )

    @contextmanager
    def _staging(self, name: str, rows: pa.RecordBatch) -> Iterator[None]:
        """The rows in a temporary table `name`, their keys checked."""
        self._limit_time()
        self._connection.ingest(name, rows, translate=_WRITING)
        self._limit_time()
        self._check_keys(name)
        yield
        self._execute(f"DROP TABLE pg_temp.{name}")

    def _apply(self, statement: str) -> list[Row]:
        return self._connection.rows(statement, translate=_APPLYING)

    def _check_keys(self, name: str) -> None:
        """Before anything is applied."""
        misfit = self._merge.misfit(name)
        if misfit and self._apply(misfit):
            raise RowError(
                "the table would keep the row's key as another value",
                code="key_not_canonical",
                next_step="write the key as the column's type shows it, or change the column to text",
            )

    def _execute(self, statement: str) -> None:
        self._connection.execute(statement, translate=_WRITING)

    def _rows(self, statement: str) -> list[Row]:
        return self._connection.rows(statement, translate=_WRITING)
