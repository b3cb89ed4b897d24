"""The only module that imports the drivers: psycopg for statements, ADBC for Arrow in and out. Translates their errors.

Two drivers, because each lacks what the other has: psycopg describes a result and gives every error its SQLSTATE, ADBC turns COPY BINARY into
Arrow and back without a Python object per value. Both take the same libpq string, made in one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import adbc_driver_manager
import adbc_driver_manager._reader as adbc_reader
import psycopg
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions, dbapi
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from wsync_postgres.config import PostgresConfig
from wsync_postgres.problems import Problem, connect_error, read_error
from wsync_sdk import ConfigError, ParameterValue, WsyncError

__all__ = [
    "OLDEST_VERSION",
    "ArrowConnection",
    "Described",
    "RowConnection",
    "connect",
    "connect_arrow",
    "identifier",
    "literal",
    "table_identifier",
]

PATIENCE_S = 60.0
_DIAGNOSTICS = ("message_primary", "statement_position", "context", "constraint_name", "column_name")
NAME_BYTES = 63  # of every name in Postgres, also of application_name; the server cuts the rest
OLDEST_VERSION = 120000

Row = tuple[Any, ...]
Translate = Callable[[Problem], WsyncError]

_TYPE_NAME_BY_CLASS = {
    bool: "boolean",
    float: "double precision",
    bytes: "bytea",
    str: "text",
}


def literal(value: ParameterValue) -> str:
    """The value as SQL, quoted by psycopg, with its type.

    :raises ConfigError: text that Postgres can't hold: a NUL, or half of a surrogate pair.
    """
    if value is None:
        return "NULL"
    if isinstance(value, str) and "\0" in value:
        raise ConfigError("a parameter's text has a NUL character, which Postgres can't hold", next_step="remove the NUL character")
    try:
        quoted = sql.Literal(value).as_string(None).strip()
    except (UnicodeEncodeError, psycopg.Error):
        raise ConfigError("a parameter's value can't be written as SQL", next_step="give valid Unicode text, or another type") from None
    return f"CAST({quoted} AS {_type_name(value)})"


def _type_name(value: ParameterValue) -> str:
    if name := _TYPE_NAME_BY_CLASS.get(type(value)):
        return name
    if isinstance(value, int):  # as Postgres types a number in a query: the smallest that holds it
        return "integer" if -(2**31) <= value < 2**31 else "bigint" if -(2**63) <= value < 2**63 else "numeric"
    return _CAST_NAME[type(value).__name__] + ("tz" if getattr(value, "tzinfo", None) is not None else "")


_CAST_NAME = {"Decimal": "numeric", "UUID": "uuid", "date": "date", "time": "time", "datetime": "timestamp"}


def identifier(*parts: str) -> str:
    """A name, quoted: `identifier("public", "user")` is `"public"."user"`."""
    return sql.Identifier(*parts).as_string(None)


def table_identifier(name: str) -> str:
    """`schema.table` or `table`, quoted.

    :raises ConfigError: not such a name.
    """
    parts = name.split(".")
    if len(parts) > 2 or any(not part or "\0" in part or len(part.encode()) > NAME_BYTES for part in parts):
        raise ConfigError("a table is written `table` or `schema.table`", next_step="correct the table's name")
    return identifier(*parts)


def _dsn(config: PostgresConfig, *, name: str, settings: dict[str, str], patience_s: float) -> str:
    """The libpq string. Settings go with the start of the session, so that no statement runs without them."""
    url = config.url.reveal()
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        raise connect_error("invalid URI") from None  # the driver's words repeat pieces of the URL
    escaped = (re.sub(r"([\\ ])", r"\\\1", value) for value in settings.values())
    options = " ".join([str(given.get("options") or ""), *(f"-c {key}={value}" for key, value in zip(settings, escaped, strict=True))])
    probe_s = max(1, int(patience_s / 3))
    keepalives = {
        "keepalives_idle": probe_s,
        "keepalives_interval": probe_s,
        "keepalives_count": 2,
        "tcp_user_timeout": int(patience_s * 1000),
    }
    unset = {key: value for key, value in keepalives.items() if key not in given}
    return make_conninfo(
        url,
        application_name=name[:NAME_BYTES],
        client_encoding="utf8",
        connect_timeout=max(2, min(config.connect_timeout_s, int(patience_s))),  # libpq takes no less than 2
        options=options.strip(),
        **unset,
    )


def _problem(exc: Exception) -> Problem:
    """What either driver's exception says."""
    code: str | None = getattr(exc, "sqlstate", None)
    said = _diagnostics(exc)
    # Without a code the words are libpq's, unless the driver lost the code of what the server said.
    is_nested = bool(said["context"]) or (code is None and "ERROR:" in str(exc))
    return Problem(
        sqlstate=code,
        words=said["message_primary"] or str(exc).split("ERROR:", 1)[-1],
        condition=_condition(code),
        position=int(said["statement_position"] or 0) - 1,
        is_nested=is_nested,
        constraint=said["constraint_name"],
        column=said["column_name"],
    )


def _diagnostics(exc: Exception) -> dict[str, str]:
    if isinstance(exc, psycopg.Error):
        return {name: getattr(exc.diag, name) or "" for name in _DIAGNOSTICS}
    details: dict[bytes | str, bytes] = dict(getattr(exc, "details", None) or ())
    by_name = {key.decode() if isinstance(key, bytes) else key: value.decode(errors="replace") for key, value in details.items()}
    return {name: by_name.get(f"PG_DIAG_{name.upper()}", "") for name in _DIAGNOSTICS}


def _condition(code: str | None) -> str:
    if not code:
        return ""
    try:
        name = errors.lookup(code).__name__
    except KeyError:
        return f"sqlstate_{code.lower()}"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


@contextmanager
def _translated(translate: Translate) -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, adbc_driver_manager.Error, OSError) as exc:
        problem = _problem(exc)
        # An exception that quotes values must not come along as the cause: causes are logged.
        raise translate(problem) from (None if problem.may_quote else exc)


def _reading(doing: str) -> Translate:
    return lambda problem: read_error(doing, problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A column of a result: its name, type number and typmod."""

    name: str
    oid: int
    typmod: int


class RowConnection:
    """A psycopg connection in autocommit; every statement goes by the extended protocol, which takes one statement at a time."""

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection

    @property
    def server_version(self) -> int:
        """As libpq says it: 180006 is 18.6."""
        return self._connection.info.server_version

    @property
    def is_any_bytes(self) -> bool:
        """True where the database takes any bytes for a text."""
        return self._connection.info.parameter_status("server_encoding") == "SQL_ASCII"

    @property
    def is_open(self) -> bool:
        """False once the line is known to be cut."""
        return not (self._connection.closed or self._connection.broken)

    def rows(self, statement: str, *, translate: Translate) -> list[Row]:
        """All rows; for small results only."""
        with _translated(translate), self._connection.cursor(binary=True) as cursor:
            cursor.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def describe(self, statement: str, *, translate: Translate) -> list[Described]:
        """The columns of a statement's result; run it with LIMIT 0."""
        with _translated(translate), self._connection.cursor(binary=True) as cursor:
            cursor.execute(statement.encode())
            result = cursor.pgresult
            columns = range(result.nfields) if result else ()
            return [
                Described(name=(result.fname(i) or b"").decode(), oid=result.ftype(i), typmod=result.fmod(i))
                for i in columns
                if result is not None
            ]

    def cancel(self) -> None:
        """End the statement that runs; from any thread."""
        with suppress(psycopg.Error):  # it may be over already; the caller asks again
            self._connection.cancel_safe(timeout=5.0)

    def close(self) -> None:
        """End the session."""
        self._connection.close()


class ArrowConnection:
    """An ADBC connection; transactions are begun and ended by statements. Used by one thread, but for `close`."""

    def __init__(self, connection: dbapi.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, *, translate: Translate) -> int:
        """Run a statement without a result; gives the number of rows it touched, -1 where there is none to tell."""
        with _translated(translate), self._connection.cursor() as cursor:
            cursor.execute(statement)
            return int(cursor.rowcount)

    def rows(self, statement: str, *, translate: Translate) -> list[Row]:
        """All rows; for small results only."""
        with _translated(translate), self._connection.cursor() as cursor:
            cursor.execute(statement)
            rows: list[Row] = cursor.fetchall()
            return rows

    def stream(self, statement: str, *, batch_bytes: int, translate: Translate) -> Iterator[pa.RecordBatch]:
        """The result in batches of about `batch_bytes`, by COPY BINARY; memory holds one or two of them."""
        options = {StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(batch_bytes)}
        cursor = self._connection.cursor(adbc_stmt_kwargs=options)
        try:
            with _translated(translate):
                cursor.execute(statement)
                # Not cursor.fetch_record_batch(): its errors have lost their SQLSTATE.
                handle = cursor.fetch_arrow()
                reader = adbc_reader.AdbcRecordBatchReader._import_from_c(handle.address)
            with reader:
                yield from self._batches(reader, translate)
        finally:
            cursor.close()

    @staticmethod
    def _batches(reader: Any, translate: Translate) -> Iterator[pa.RecordBatch]:
        while True:
            with _translated(translate):
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            yield batch

    def ingest(self, table: str, rows: pa.RecordBatch, *, translate: Translate) -> None:
        """Make a temporary table of that name and COPY the rows into it, inside the open transaction."""
        with _translated(translate), self._connection.cursor() as cursor:
            cursor.adbc_ingest(table, rows, mode="create", temporary=True)

    def close(self) -> None:
        """End the session; an open transaction is rolled back."""
        self._connection.close()


def connect(config: PostgresConfig, *, name: str, settings: dict[str, str], patience_s: float = PATIENCE_S) -> RowConnection:
    """A psycopg connection.

    :param name: its `application_name`. :param settings: of the session. :param patience_s: after so long a silent line counts as cut.
    :raises ConfigError: wrong URL or login. :raises RetryableError: not reachable.
    """
    dsn = _dsn(config, name=name, settings=settings, patience_s=patience_s)
    try:
        return RowConnection(psycopg.connect(dsn, autocommit=True, prepare_threshold=None))
    except psycopg.Error as exc:
        raise connect_error(str(exc)) from None


def connect_arrow(config: PostgresConfig, *, name: str, settings: dict[str, str], patience_s: float = PATIENCE_S) -> ArrowConnection:
    """An ADBC connection; parameters and errors as of `connect`."""
    dsn = _dsn(config, name=name, settings=settings, patience_s=patience_s)
    try:
        return ArrowConnection(dbapi.connect(dsn, autocommit=True))
    except adbc_driver_manager.Error as exc:
        raise connect_error(str(exc)) from None
