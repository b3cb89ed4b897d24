"""The Postgres sink: a chunk, its ack and the check of its fence are one transaction, so every row is applied exactly once.

    begin ── makes the table (`table.py`) and the bookkeeping (`bookkeeping.py`), raises the sync's fence; the token holds the columns' types
    write ── one transaction (`transaction.py`): hold the fence · record the range · bring the rows (`staging.py`, `merge.py`) · COMMIT

A chunk whose range is already recorded is answered as accepted, and nothing is applied a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic

from wsync_postgres.bookkeeping import SYNC_PARTITION, Bookkeeping, fenced_off, sync_name
from wsync_postgres.config import PostgresConfig
from wsync_postgres.driver import (
    OLDEST_VERSION,
    ArrowConnection,
    RowConnection,
    connect,
    connect_arrow,
    identifier,
    literal,
    table_identifier,
)
from wsync_postgres.problems import LOCK_TIMEOUT, Problem, prepare_error, write_error
from wsync_postgres.staging import sql_type
from wsync_postgres.table import (
    check_columns,
    check_key,
    check_nulls,
    check_unique_key,
    key_checks,
    make_table,
    missing_privileges,
    require_privileges,
    table_columns,
)
from wsync_postgres.transaction import ChunkTransaction, WriteToken
from wsync_sdk import (
    CheckReport,
    Chunk,
    ConfigError,
    FieldSpec,
    Finding,
    Nulls,
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
    WriteMode,
    WriteResult,
    WsyncError,
)

__all__ = ["PostgresSink"]

LIMITS = StreamLimits(max_rows=20_000, max_bytes=8 * 1024 * 1024, concurrency=2, idempotent=True)
OPERATIONS = frozenset({Operation.UPSERT, Operation.DELETE})
_DDL_LOCK = "SELECT pg_advisory_xact_lock(hashtext('wsync_sink'))"
_BEGINNING = partial(prepare_error, "begin")


class PostgresSink(TransactionalSink):
    """One Postgres database as destination; a stream is a table. See the module's docstring.

    :param writer_wait_s: how long `recorded` waits for a writer that is inside. A writer may be for as long as its chunk has; nobody holds a
        worker's slot for that, it is asked again later.
    """

    def __init__(self, config: PostgresConfig, *, writer_wait_s: float = 15.0) -> None:
        self._config = config
        self._writer_wait_s = writer_wait_s
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
            rows = session.rows(_TABLES.format(books=literal(self._config.bookkeeping_schema)), translate=partial(write_error, "streams"))
        fields: dict[str, list[FieldSpec]] = {}
        for table, name, required in rows:
            fields.setdefault(str(table), []).append(FieldSpec(name=str(name), required=bool(required)))
        return [_stream(table, tuple(specs)) for table, specs in fields.items()]

    def stream(self, name: str) -> StreamSpec:
        """The table of that name; one that is not there yet is made by `begin`."""
        table_identifier(name)
        return next((spec for spec in self.streams() if spec.name == name), _stream(name, ()))

    def begin(self, run: RunRef, target: Target) -> bytes:
        """Make what is missing, fence off earlier deliveries, and give what writes need to know of the columns as token.

        :raises ConfigError: a column is missing, the key is not unique, the table tells keys apart otherwise than wsync, a type has no counterpart,
            a permission is missing; the run continues deliveries of which this database knows nothing, or the table is gone.
        :raises StateError: a later delivery of the sync has begun.
        """
        check_nulls(target)
        made_types = {field.name: sql_type(field) for field in target.schema}
        check_key(target)
        with self._session() as session, _transaction(session):
            if run.continues > 0:
                self._check_known(session, run, target)
            self._make_bookkeeping(session)
            columns = table_columns(session, target.stream)
            if not columns:
                session.rows(_DDL_LOCK, translate=_BEGINNING)
                make_table(session, target, made_types)
                columns = table_columns(session, target.stream)
            require_privileges(target.stream, session.rows(missing_privileges(target.stream), translate=_BEGINNING))
            check_columns(target, columns)
            if run.write_mode is WriteMode.MERGE:
                check_unique_key(session, target)
            token = WriteToken(
                types={name: columns[name].cast for name in target.schema.names},
                declared={name: columns[name].declared for name in target.schema.names},
                key_checks=key_checks(target, columns),
            )
        with self._session() as session:
            self._raise_delivery(session, run)
        return token.encode()

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """Apply the chunk in one transaction, or find it recorded."""
        deadline_s = monotonic() + chunk.timeout_s
        with self._connection(chunk.timeout_s) as connection:
            ChunkTransaction(connection, self._books, chunk, WriteToken.decode(token), deadline_s).write()
        return WriteResult(accepted_rows=chunk.rows)

    def recorded(self, run: RunRef, target: Target, partition: int) -> Sequence[RowRange]:
        """The ranges that were applied, in order; told after a writer of the partition that is inside a transaction.

        :raises RetryableError: it is still inside; `retry_after_s` is set, so that no attempt is used up by waiting.
        """
        asking, sync = partial(write_error, "recorded"), sync_name(run)
        with self._session() as session:
            if not session.rows(self._books.exists(), translate=asking)[0][0]:
                return []
            with _transaction(session):
                session.rows(f"SET LOCAL lock_timeout = {max(1, round(self._writer_wait_s * 1000))}", translate=asking)
                session.rows(self._books.fence_wait(sync, partition), translate=self._waiting)
            statement = self._books.ack_all(sync, run.run_id, partition=partition)
            return [RowRange(first, last) for first, last in session.rows(statement, translate=asking)]

    def close(self) -> None:
        """End the idle sessions."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _findings(self, session: RowConnection) -> tuple[Finding, ...]:
        version, checking = session.server_version, partial(write_error, "check")
        has_books = session.rows(self._books.exists(), translate=checking)[0][0]
        may_create = session.rows("SELECT has_database_privilege(current_database(), 'CREATE')", translate=checking)[0][0]
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
        has_books = session.rows(self._books.exists(), translate=_BEGINNING)[0][0]
        if not has_books or not session.rows(self._books.fence_lock(sync_name(run), SYNC_PARTITION), translate=_BEGINNING):
            problem = "this database has never seen this sync"
        elif not table_columns(session, target.stream):
            problem = f"the table `{target.stream}` is gone"
        else:
            return
        raise ConfigError(
            f"{problem}, though delivery {run.continues} is taken as delivered to it",
            next_step="`wsync-engine sync resync NAME` offers everything again, `wsync-engine sync adopt NAME` takes what is there as delivered",
        )

    def _make_bookkeeping(self, session: RowConnection) -> None:
        if session.rows(self._books.exists(), translate=_BEGINNING)[0][0]:
            return
        session.rows(_DDL_LOCK, translate=_BEGINNING)
        for statement in self._books.create():
            session.rows(statement, translate=_BEGINNING)

    def _raise_delivery(self, session: RowConnection, run: RunRef) -> None:
        sync = sync_name(run)
        session.rows(self._books.fence_raise(sync, SYNC_PARTITION, delivery=run.delivery, epoch=0), translate=_BEGINNING)
        with _transaction(session):
            rows = session.rows(self._books.fence_lock(sync, SYNC_PARTITION), translate=_BEGINNING)
            if rows[0][1] > run.delivery:
                raise fenced_off()
            for statement in self._books.forget(sync, run.run_id, delivery=run.delivery):
                session.rows(statement, translate=_BEGINNING)

    def _waiting(self, problem: Problem) -> WsyncError:
        if problem.sqlstate != LOCK_TIMEOUT:
            return write_error("recorded", problem)
        return RetryableError(
            "recorded: an earlier writer is still inside its transaction",
            next_step="nothing to do: it is asked again",
            retry_after_s=self._writer_wait_s,
        )

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
            self._keep(connection)  # rolled back by ChunkTransaction; a bisected chunk would else connect for each half
            raise
        except BaseException:
            connection.close()
            raise
        self._keep(connection)

    def _keep(self, connection: ArrowConnection) -> None:
        with self._lock:
            self._idle.append(connection)


# A column is required where the table has no value of its own for it: a BEFORE INSERT trigger for each row may have one.
_TABLES = """
SELECT CASE WHEN n.nspname = current_schema() THEN c.relname::text ELSE n.nspname || '.' || c.relname END, a.attname::text,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL
       AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 7 = 7)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', {books})
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'INSERT')
ORDER BY 1, a.attnum"""


def _stream(name: str, fields: tuple[FieldSpec, ...]) -> StreamSpec:
    return StreamSpec(
        name=name,
        title=f"table {name}",
        operations=OPERATIONS,
        limits=LIMITS,
        fields=fields,
        open_fields=not fields,
        nulls=frozenset(Nulls),
        write_modes=frozenset({WriteMode.MERGE, WriteMode.APPEND}),
    )


def _settings(timeout_s: float) -> dict[str, str]:
    """What every session of a sink is set to; texts that the server casts mean the same on every server."""
    return {
        "statement_timeout": str(max(1, round(timeout_s * 1000))),
        "idle_in_transaction_session_timeout": "60000",
        "standard_conforming_strings": "on",
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
    }


@contextmanager
def _transaction(session: RowConnection) -> Iterator[None]:
    """Committed at the end; an error leaves it to the closing of the session."""
    session.rows("BEGIN", translate=_BEGINNING)
    yield
    session.rows("COMMIT", translate=_BEGINNING)
