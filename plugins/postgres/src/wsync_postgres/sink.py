"""The Postgres sink: a chunk, its ack and the check of its fence are one transaction, so every row is applied exactly once.

    begin ── makes the table and the bookkeeping, raises the sync's fence; the token holds the columns' types
    write ── BEGIN · hold the fence · record the range · COPY into a temporary table · INSERT … ON CONFLICT, DELETE … USING · COMMIT

A chunk whose range is already recorded is answered as accepted, and nothing is applied a second time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import pyarrow as pa
import pyarrow.compute as pc

from wsync_postgres.bookkeeping import SYNC_PARTITION, Bookkeeping, missing_rows
from wsync_postgres.config import PostgresConfig
from wsync_postgres.driver import ArrowConnection, Row, RowConnection, Translate, connect, connect_arrow, identifier, literal
from wsync_postgres.keys import TableColumn, key_check
from wsync_postgres.problems import Problem, apply_error, write_error
from wsync_postgres.source import OLDEST_VERSION, table_parts
from wsync_postgres.staging import has_nul, sql_type, staged
from wsync_sdk import (
    CheckReport,
    Chunk,
    ConfigError,
    FieldSpec,
    Finding,
    Operation,
    RetryableError,
    RowError,
    RowRange,
    RunRef,
    StateError,
    StreamLimits,
    StreamSpec,
    Target,
    TransactionalSink,
    WriteResult,
    WsyncError,
)

__all__ = ["PostgresSink"]

LIMITS = StreamLimits(max_rows=20_000, max_bytes=8 * 1024 * 1024, concurrency=2, idempotent=True)
OPERATIONS = frozenset({Operation.UPSERT, Operation.DELETE})
_NO_PRIVILEGE = "insufficient_privilege"
_UPSERTS, _DELETES = "wsync_upserts", "wsync_deletes"
_DDL_LOCK = "SELECT pg_advisory_xact_lock(hashtext('wsync_sink'))"


class PostgresSink(TransactionalSink):
    """One Postgres database as destination; a stream is a table. See the module's docstring."""

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config
        self._books = Bookkeeping(schema=identifier(config.bookkeeping_schema), literal=literal)
        self._lock = threading.Lock()
        self._idle: list[ArrowConnection] = []

    def check(self) -> CheckReport:
        """Reachable, login, version, and whether the bookkeeping is there or can be made."""
        try:
            with self._session() as session:
                return CheckReport(findings=self._findings(session))
        except WsyncError as exc:
            name = "login" if isinstance(exc, ConfigError) else "reachable"
            return CheckReport(findings=(Finding(name=name, ok=False, message=exc.message, next_step=exc.next_step),))

    def streams(self) -> Sequence[StreamSpec]:
        """The tables that the login may insert into."""
        with self._session() as session:
            rows = session.rows(_TABLES.format(books=literal(self._config.bookkeeping_schema)), translate=_doing("streams"))
        fields: dict[str, list[FieldSpec]] = {}
        for table, name, required in rows:
            fields.setdefault(str(table), []).append(FieldSpec(name=str(name), required=bool(required)))
        return [_stream(table, tuple(specs)) for table, specs in fields.items()]

    def stream(self, name: str) -> StreamSpec:
        """The table of that name; one that is not there yet is made by `begin`."""
        table_parts(name)
        return next((spec for spec in self.streams() if spec.name == name), _stream(name, ()))

    def begin(self, run: RunRef, target: Target) -> bytes:
        """Make what is missing, fence off earlier deliveries, and give what writes need to know of the columns as token.

        :raises ConfigError: a column is missing, the key is not unique, the table tells keys apart otherwise than wsync, a type has no counterpart,
            a permission is missing; the run continues deliveries of which this database knows nothing, or the table is gone.
        :raises StateError: a later delivery of the sync has begun.
        """
        made_types = {field.name: sql_type(field) for field in target.schema}
        _check_key(target)
        with self._session() as session, _transaction(session):
            if run.continues > 0:
                self._check_known(session, run, target)
            self._make_bookkeeping(session)
            columns = _table_columns(session, target.stream)
            if not columns:
                _make_table(session, target, made_types)
                columns = _table_columns(session, target.stream)
            _require_privileges(target.stream, session.rows(_privileges(target.stream), translate=_preparing))
            _check_table(session, target, columns)
            token = _Token(types={name: columns[name].cast for name in target.schema.names}, key_checks=_key_checks(target, columns))
        with self._session() as session:
            self._raise_delivery(session, run)
        return token.encode()

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """Apply the chunk in one transaction, or find it recorded."""
        deadline_s = monotonic() + chunk.timeout_s
        with self._connection(chunk.timeout_s) as connection:
            _Delivery(connection, self._books, chunk, _Token.decode(token), deadline_s).write()
        return WriteResult(accepted_rows=chunk.rows)

    def recorded(self, run: RunRef, target: Target, partition: int) -> Sequence[RowRange]:
        """The ranges that were applied, in order."""
        with self._session() as session:
            if not session.rows(self._books.exists(), translate=_doing("recorded"))[0][0]:
                return []
            statement = self._books.ack_all(_sync(run), run.run_id, partition=partition)
            return [RowRange(first, last) for first, last in session.rows(statement, translate=_doing("recorded"))]

    def close(self) -> None:
        """End the idle sessions."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _findings(self, session: RowConnection) -> tuple[Finding, ...]:
        version = session.server_version
        has_books = session.rows(self._books.exists(), translate=_doing("check"))[0][0]
        may_create = session.rows("SELECT has_database_privilege(current_database(), 'CREATE')", translate=_doing("check"))[0][0]
        schema = self._config.bookkeeping_schema
        return (
            Finding(name="reachable", ok=True, message="the server answers and takes the login"),
            Finding(
                name="version",
                ok=version >= OLDEST_VERSION,
                message=f"PostgreSQL {version // 10000}",
                next_step="" if version >= OLDEST_VERSION else "upgrade the server to release 12 or later",
            ),
            Finding(
                name="permission",
                ok=bool(has_books or may_create),
                message=f"the schema `{schema}` is there" if has_books else f"the schema `{schema}` is not there yet",
                next_step=""
                if has_books or may_create
                else "GRANT CREATE ON DATABASE to the login, or make the schema and its tables for it",
            ),
        )

    def _check_known(self, session: RowConnection, run: RunRef, target: Target) -> None:
        """The run brings changes only: in a database that never had the rest, or without the table that has it, they would look complete."""
        has_books = session.rows(self._books.exists(), translate=_preparing)[0][0]
        if not has_books or not session.rows(self._books.fence_lock(_sync(run), SYNC_PARTITION), translate=_preparing):
            problem = "this database has never seen this sync"
        elif not _table_columns(session, target.stream):
            problem = f"the table `{target.stream}` is gone"
        else:
            return
        raise ConfigError(
            f"{problem}, though delivery {run.continues} is taken as delivered to it",
            next_step="`wsync-engine sync resync NAME` offers everything again, `wsync-engine sync adopt NAME` takes what is there as delivered",
        )

    def _make_bookkeeping(self, session: RowConnection) -> None:
        if session.rows(self._books.exists(), translate=_preparing)[0][0]:
            return
        session.rows(_DDL_LOCK, translate=_preparing)
        for statement in self._books.create():
            session.rows(statement, translate=_preparing)

    def _raise_delivery(self, session: RowConnection, run: RunRef) -> None:
        sync = _sync(run)
        session.rows(self._books.fence_raise(sync, SYNC_PARTITION, delivery=run.delivery, epoch=0), translate=_preparing)
        with _transaction(session):
            rows = session.rows(self._books.fence_lock(sync, SYNC_PARTITION), translate=_preparing)
            if rows[0][1] > run.delivery:
                raise _fenced_off()
            for statement in self._books.forget(sync, run.run_id, delivery=run.delivery):
                session.rows(statement, translate=_preparing)

    @contextmanager
    def _session(self) -> Iterator[RowConnection]:
        session = connect(self._config, name="wsync:sink", settings=_settings(self._config.probe_timeout_s))
        try:
            yield session
        finally:
            session.close()

    @contextmanager
    def _connection(self, timeout_s: float) -> Iterator[ArrowConnection]:
        """A session that is idle or new; kept if its transaction ended as meant, else ended with it."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            settings = _settings(self._config.probe_timeout_s)
            connection = connect_arrow(self._config, name="wsync:sink", settings=settings, patience_s=timeout_s)
        try:
            yield connection
        except (RowError, StateError):
            self._keep(connection)  # rolled back by _Delivery; a bisected chunk would else connect for each half
            raise
        except BaseException:
            connection.close()
            raise
        self._keep(connection)

    def _keep(self, connection: ArrowConnection) -> None:
        with self._lock:
            self._idle.append(connection)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """What `begin` tells each write: the columns' types, and what a staged row `s` must fulfil for the table to keep its key as it is."""

    types: Mapping[str, str]
    key_checks: Sequence[str]

    def encode(self) -> bytes:
        return json.dumps({"types": self.types, "key_checks": self.key_checks}).encode()

    @staticmethod
    def decode(token: bytes) -> _Token:
        said = json.loads(token)
        return _Token(types=said["types"], key_checks=said["key_checks"])


class _Delivery:
    """One chunk on one connection."""

    def __init__(self, connection: ArrowConnection, books: Bookkeeping, chunk: Chunk, token: _Token, deadline_s: float) -> None:
        self._connection = connection
        self._books = books
        self._chunk = chunk
        self._types = token.types
        self._key_checks = token.key_checks
        self._deadline_s = deadline_s
        self._sync = _sync(chunk.run)

    def write(self) -> None:
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
            self._connection.execute("COMMIT", translate=_applying)  # deferred constraints speak now
        except RowError:
            self._execute("ROLLBACK")
            raise

    def _check_privileges(self) -> None:
        """A privilege taken away in mid-run would else refuse each row by itself."""
        _require_privileges(self._chunk.target.stream, self._rows(_privileges(self._chunk.target.stream)))

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
            raise _fenced_off()

    def _is_fence_ours(self) -> bool:
        """
        :raises StateError: it is higher.
        """
        fence = self._chunk.fence
        seen = {row[0]: (row[1], row[2]) for row in self._rows(self._books.fence_lock(self._sync, fence.partition))}
        ours = {SYNC_PARTITION: (fence.delivery, 0), fence.partition: (fence.delivery, fence.epoch)}
        if any(seen.get(partition, value) > value for partition, value in ours.items()):
            raise _fenced_off()
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
        target = self._chunk.target
        names = list(target.schema.names)
        columns = ", ".join(identifier(name) for name in names)
        values = ", ".join(self._cast(name) for name in names)
        key = ", ".join(identifier(name) for name in target.key)
        updates = ", ".join(f"{identifier(name)} = EXCLUDED.{identifier(name)}" for name in names if name not in target.key)
        action = f"DO UPDATE SET {updates}" if updates else "DO NOTHING"
        self._apply(
            _UPSERTS,
            rows,
            f"INSERT INTO {self._table()} ({columns}) SELECT {values} FROM pg_temp.{_UPSERTS} AS s ON CONFLICT ({key}) {action}",
        )

    def _delete(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows == 0:
            return
        same = " AND ".join(f"t.{identifier(name)} = {self._cast(name)}" for name in self._chunk.target.key)
        self._apply(_DELETES, rows, f"DELETE FROM {self._table()} AS t USING pg_temp.{_DELETES} AS s WHERE {same}")

    def _apply(self, name: str, rows: pa.RecordBatch, statement: str) -> None:
        self._limit_time()
        self._connection.ingest(name, rows, translate=_doing("write"))
        self._limit_time()
        self._check_keys(name)
        self._connection.execute(statement, translate=_applying)
        self._execute(f"DROP TABLE pg_temp.{name}")

    def _check_keys(self, name: str) -> None:
        """Before anything is applied: `07` and `7` are two keys for wsync, and one row of an integer column."""
        if not self._key_checks:
            return
        kept = " AND ".join(self._key_checks)
        if self._connection.rows(f"SELECT 1 FROM pg_temp.{name} AS s WHERE NOT ({kept}) LIMIT 1", translate=_applying):
            raise RowError(
                "the table would keep the row's key as another value",
                code="key_not_canonical",
                next_step="write the key as the column's type shows it, or change the column to text",
            )

    def _cast(self, name: str) -> str:
        return f"CAST(s.{identifier(name)} AS {self._types[name]})"

    def _table(self) -> str:
        return identifier(*table_parts(self._chunk.target.stream))

    def _execute(self, statement: str) -> None:
        self._connection.execute(statement, translate=_doing("write"))

    def _rows(self, statement: str) -> list[Row]:
        return self._connection.rows(statement, translate=_doing("write"))


_TABLES = """
SELECT CASE WHEN n.nspname = current_schema() THEN c.relname::text ELSE n.nspname || '.' || c.relname END, a.attname::text,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', {books})
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'INSERT')
ORDER BY 1, a.attnum"""

# Types without typmod: CAST(x AS varchar(5)) would cut silently, the assignment of a varchar refuses.
_COLUMNS = """
WITH RECURSIVE under AS (
    SELECT a.attnum, a.attname, a.atttypid AS declared, a.atttypmod, a.attcollation, a.atttypid AS oid
    FROM pg_attribute a
    WHERE a.attrelid = to_regclass({table}) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT u.attnum, u.attname, u.declared, u.atttypmod, u.attcollation, d.typbasetype
    FROM under u
    JOIN pg_type d ON d.oid = u.oid AND d.typtype = 'd')
SELECT u.attname::text, format_type(u.declared, -1), format_type(u.declared, u.atttypmod), format_type(u.oid, -1), t.typtype = 'e',
       coalesce(c.collisdeterministic, true)
FROM under u
JOIN pg_type t ON t.oid = u.oid AND t.typtype <> 'd'
LEFT JOIN pg_collation c ON c.oid = u.attcollation
ORDER BY u.attnum"""

_PRIVILEGES = """
SELECT p.name
FROM (VALUES (1, 'TEMPORARY on the database', has_database_privilege(current_database(), 'TEMPORARY')),
             (2, 'SELECT', has_table_privilege(to_regclass({table}), 'SELECT')),
             (3, 'INSERT', has_table_privilege(to_regclass({table}), 'INSERT')),
             (4, 'UPDATE', has_table_privilege(to_regclass({table}), 'UPDATE')),
             (5, 'DELETE', has_table_privilege(to_regclass({table}), 'DELETE'))) AS p (place, name, has_it)
WHERE NOT p.has_it
ORDER BY p.place"""

_UNIQUE_KEYS = """
SELECT array_agg(a.attname::text),
       (SELECT coalesce(bool_and(c.collisdeterministic), true) FROM pg_collation c WHERE c.oid = ANY (i.indcollation))
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
WHERE i.indrelid = to_regclass({table}) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid, i.indcollation"""


def _stream(name: str, fields: tuple[FieldSpec, ...]) -> StreamSpec:
    return StreamSpec(name=name, title=f"table {name}", operations=OPERATIONS, limits=LIMITS, fields=fields)


def _sync(run: RunRef) -> str:
    """The sync's name in the bookkeeping: two tenants may share a destination, and ids have no blanks."""
    return f"{run.tenant_id} {run.sync_id}"


def _settings(timeout_s: float) -> dict[str, str]:
    """What every session of a sink is set to; texts that the server casts mean the same on every server."""
    return {
        "statement_timeout": str(max(1, round(timeout_s * 1000))),
        "idle_in_transaction_session_timeout": "60000",
        "standard_conforming_strings": "on",
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
    }


def _regclass(stream: str) -> str:
    return literal(identifier(*table_parts(stream)))


def _table_columns(session: RowConnection, stream: str) -> dict[str, TableColumn]:
    """By name; empty if there is no such table."""
    rows = session.rows(_COLUMNS.format(table=_regclass(stream)), translate=_preparing)
    return {
        str(name): TableColumn(cast=cast, declared=declared, base=base, kind="enum" if is_enum else "base", deterministic=deterministic)
        for name, cast, declared, base, is_enum, deterministic in rows
    }


def _key_checks(target: Target, columns: Mapping[str, TableColumn]) -> Sequence[str]:
    checks = (key_check(target.stream, target.schema.field(name), columns[name], quoted=identifier(name)) for name in target.key)
    return [check for check in checks if check]


def _make_table(session: RowConnection, target: Target, types: Mapping[str, str]) -> None:
    session.rows(_DDL_LOCK, translate=_preparing)
    columns = ", ".join(f"{identifier(name)} {type_name}" for name, type_name in types.items())
    key = ", ".join(identifier(name) for name in target.key)
    table = identifier(*table_parts(target.stream))
    session.rows(f"CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY ({key}))", translate=_preparing)


def _privileges(stream: str) -> str:
    return _PRIVILEGES.format(table=_regclass(stream))


def _require_privileges(stream: str, missing: Sequence[Row]) -> None:
    """
    :raises ConfigError: some are missing.
    """
    if missing:
        names = ", ".join(str(name) for (name,) in missing)
        raise ConfigError(
            f"permission denied for table `{stream}`: the login lacks {names}", next_step=f"GRANT {names} ON the table to the login"
        )


def _check_key(target: Target) -> None:
    if not target.key:
        raise ConfigError("the sync has no key", next_step="name the key's columns under `key:`")
    if missing := [name for name in target.key if name not in target.schema.names]:
        raise ConfigError(f"the key's column `{missing[0]}` is not mapped", next_step=f"map `{missing[0]}`")


def _check_table(session: RowConnection, target: Target, columns: Mapping[str, TableColumn]) -> None:
    if missing := [name for name in target.schema.names if name not in columns]:
        raise ConfigError(
            f"the table `{target.stream}` has no column `{missing[0]}`", next_step=f"add the column, or do not map `{missing[0]}`"
        )
    rows = session.rows(_UNIQUE_KEYS.format(table=_regclass(target.stream)), translate=_preparing)
    collations = [is_deterministic for key, is_deterministic in rows if set(key) == set(target.key)]
    names = ", ".join(f"`{name}`" for name in target.key)
    if not collations:
        raise ConfigError(
            f"the table `{target.stream}` has no unique index on exactly {names}",
            next_step=f"make a unique index or primary key on {names}",
        )
    if not all(collations):
        # ON CONFLICT takes every unique index on these columns, so one such index is enough to let two keys meet.
        raise ConfigError(
            f"a unique index of `{target.stream}` on {names} has a collation that calls different texts equal",
            next_step="make the index with a deterministic collation",
        )


@contextmanager
def _transaction(session: RowConnection) -> Iterator[None]:
    """Committed at the end; an error leaves it to the closing of the session."""
    session.rows("BEGIN", translate=_preparing)
    yield
    session.rows("COMMIT", translate=_preparing)


def _doing(what: str) -> Translate:
    return lambda problem: write_error(what, problem)


def _applying(problem: Problem) -> WsyncError:
    return apply_error("write", problem)


def _preparing(problem: Problem) -> WsyncError:
    """`begin` carries no rows, so what looks like a refused row is two that made the same thing at once."""
    error = write_error("begin", problem)
    return RetryableError(error.message, next_step="nothing to do: it is tried again") if isinstance(error, RowError) else error


def _fenced_off() -> StateError:
    return StateError("another delivery or a newer lease of this sync writes now", next_step="nothing to do: the newer one goes on")
