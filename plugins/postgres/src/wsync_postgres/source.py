"""The Postgres source: a plan is an exported snapshot, a split is a range of it, a read is one COPY stream.

`plan` opens the keeper, a connection with a REPEATABLE READ, READ ONLY transaction whose snapshot every read imports: all splits see the same
instant, in any process. The keeper lives until `release` or `close`; when it is gone, its snapshot can't be imported any more: PlanExpired.

Every connection of a plan carries the plan's handle in its `application_name`, so `cancel` finds and ends them from any process.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise

import pyarrow as pa

from wsync_postgres import __version__
from wsync_postgres.columns import Column, PgType, arrow_schema, column, conform, select_list
from wsync_postgres.config import PostgresConfig
from wsync_postgres.driver import (
    OLDEST_VERSION,
    ArrowConnection,
    Row,
    RowConnection,
    Translate,
    connect,
    connect_arrow,
    identifier,
    literal,
    table_identifier,
)
from wsync_postgres.problems import Problem, read_error
from wsync_postgres.statement import Statement, prepare
from wsync_sdk import (
    CheckReport,
    ConfigError,
    Estimate,
    FatalError,
    Finding,
    Held,
    PlanContext,
    PlanExpired,
    Preview,
    Query,
    ReadLimits,
    ReadPlan,
    Source,
    Split,
    WsyncError,
)

__all__ = ["PostgresSource"]

POLL_S = 0.2
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SNAPSHOT_STATE = "SELECT CAST(txid_current_snapshot() AS text)"
_HANDLE = re.compile(r"[0-9a-f]{24}")
_INTEGERS = frozenset({20, 21, 23})
_PREVIEW_BATCH_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """What a split's bytes hold. `state` tells a snapshot from another that has the same name after the server restarted."""

    name: str
    snapshot: str
    state: str
    sql: str
    schema: str
    batch_rows: int
    batch_bytes: int
    timeout_s: float
    version: str = __version__

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> _Token:
        return cls(**json.loads(data))

    def arrow_schema(self) -> pa.Schema:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.schema)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """A query with its columns known: all that is needed to wrap it."""

    statement: Statement
    columns: tuple[Column, ...]
    schema: pa.Schema

    def select(self, what: str, where: str = "") -> str:
        aliases = ", ".join(item.alias for item in self.columns)
        return f"SELECT {what} FROM (\n{self.statement.text}\n) AS q({aliases}){where}"

    def read(self, where: str = "") -> str:
        return self.select(select_list(self.columns, [literal(item.field.name) for item in self.columns]), where)


class PostgresSource(Source):
    """One Postgres database, read only. See the module's docstring."""

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config
        self._keepers: dict[bytes, RowConnection] = {}

    def check(self) -> CheckReport:
        """Reachable, login, version, and whether the login could write."""
        try:
            with self._probe() as probe:
                return CheckReport(findings=_findings(probe))
        except ConfigError as exc:
            return _failed("login", exc)
        except WsyncError as exc:
            return _failed("reachable", exc)

    def estimate(self, query: Query) -> Estimate:
        """The planner's rows and cost."""
        statement = _statement(query)
        with self._probe() as probe:
            return _estimate(probe, statement)

    def preview(self, query: Query, rows: int) -> Preview:
        """First rows, by the same statement and the same driver as a read, so that types can't differ."""
        statement = _statement(query)
        with self._probe() as probe:
            described = _describe(probe, statement)
            estimate = _estimate(probe, statement)
        batches = self._first_rows(described, rows)
        table = pa.Table.from_batches(batches, schema=described.schema).combine_chunks()
        first = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=described.schema)]
        return Preview(schema=described.schema, rows=first[0], estimate=estimate)

    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        """Describe the query under a new exported snapshot and cut it into ranges."""
        statement = _statement(query)
        handle = secrets.token_hex(12).encode()
        ctx.started(handle)
        name = _application_name(handle, ctx.tag)
        keeper = connect(self._config, name=name, settings=_settings(limits.statement_timeout_s))
        try:
            plan = _Planner(keeper, ctx, limits, name).plan(query, statement, handle)
        except BaseException:
            keeper.close()
            raise
        self._keepers[handle] = keeper
        return plan

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        """The split's rows under the plan's snapshot, on a connection of its own."""
        if offset:
            raise ConfigError("a Postgres split can't be read from an offset", next_step="read it from its start")
        return self._read(_Token.from_bytes(split.token))

    def release(self, plan: ReadPlan) -> None:
        """Let the snapshot go: by closing the keeper if it is ours, else by ending it where it lives."""
        keeper = self._keepers.pop(plan.handle, None)
        if keeper is not None:
            keeper.close()
        else:
            self.cancel(plan.handle)

    def cancel(self, handle: bytes) -> None:
        """End every connection of the plan, its keeper too."""
        text = handle.decode("ascii", errors="replace")
        if not _HANDLE.fullmatch(text):
            return
        ours = "pid <> pg_backend_pid() AND usename = current_user"
        statement = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours} AND application_name LIKE 'wsync:{text}%'"
        with self._probe() as probe:
            probe.rows(statement, translate=_doing("cancel"))

    def close(self) -> None:
        """End the keepers of all plans."""
        while self._keepers:
            _, keeper = self._keepers.popitem()
            keeper.close()

    @contextmanager
    def _probe(self) -> Iterator[RowConnection]:
        connection = connect(self._config, name="wsync:probe", settings=_settings(self._config.probe_timeout_s))
        try:
            yield connection
        finally:
            connection.close()

    def _first_rows(self, described: _Described, rows: int) -> list[pa.RecordBatch]:
        statement = described.read(f" LIMIT {int(rows)}")
        connection = connect_arrow(self._config, name="wsync:preview", settings=_settings(self._config.probe_timeout_s))
        try:
            connection.execute(_BEGIN, translate=_doing("preview"))
            stream = connection.stream(statement, batch_bytes=_PREVIEW_BATCH_BYTES, translate=_doing("preview"))
            return [conform(batch, described.schema) for batch in stream]
        finally:
            connection.close()

    def _read(self, token: _Token) -> Iterator[pa.RecordBatch]:
        if token.version != __version__:
            raise _expired("it was made by another version of this connector")
        schema = token.arrow_schema()
        connection = connect_arrow(self._config, name=token.name, settings=_settings(token.timeout_s))
        try:
            _enter_snapshot(connection, token)
            for batch in connection.stream(token.sql, batch_bytes=token.batch_bytes, translate=_doing("read")):
                yield from _sliced(conform(batch, schema), token.batch_rows)
        finally:
            connection.close()


class _Planner:
    """Makes one plan on its keeper."""

    def __init__(self, keeper: RowConnection, ctx: PlanContext, limits: ReadLimits, name: str) -> None:
        self._keeper = keeper
        self._ctx = ctx
        self._limits = limits
        self._name = name

    def plan(self, query: Query, statement: Statement, handle: bytes) -> ReadPlan:
        self._rows(_BEGIN)
        snapshot = str(self._rows("SELECT pg_export_snapshot()")[0][0])
        state = str(self._rows(_SNAPSHOT_STATE)[0][0])
        described = _describe(self._keeper, statement)
        estimate = _estimate(self._keeper, statement)
        wheres, warnings = self._ranges(described, query.split_by, estimate.rows)
        tokens = [
            _Token(
                name=self._name,
                snapshot=snapshot,
                state=state,
                sql=described.read(where),
                schema=base64.b64encode(described.schema.serialize().to_pybytes()).decode("ascii"),
                batch_rows=self._limits.batch_rows,
                batch_bytes=self._limits.batch_bytes,
                timeout_s=self._limits.statement_timeout_s,
            )
            for where in wheres
        ]
        rows = estimate.rows
        share = rows // len(tokens) if rows is not None else None
        return ReadPlan(
            schema=described.schema,
            splits=tuple(Split(index=i, token=token.to_bytes(), estimated_rows=share) for i, token in enumerate(tokens)),
            lifetime=Held(),
            handle=handle,
            connector_version=__version__,
            estimated_rows=rows,
            warnings=warnings,
        )

    def _ranges(self, described: _Described, split_by: str | None, rows: int | None) -> tuple[list[str], tuple[str, ...]]:
        """The WHERE of each split, and what a person should know. `rows`: how many there are, about."""
        is_any_worth_it = rows is None or self._limits.rows_per_split == 1
        worth = self._limits.max_splits if is_any_worth_it else -(-(rows or 0) // self._limits.rows_per_split)
        count = min(self._limits.max_splits, max(worth, 1))
        if split_by is None or count == 1:
            return [""], ()
        by = next((item for item in described.columns if item.field.name == split_by), None)
        if by is None:
            raise ConfigError(f"the query has no column `{split_by}` to split by", next_step="name a column of the result in `split_by`")
        bounds = self._bounds(described, by, count)
        if not bounds:
            return [""], (f"one split: `{split_by}` has fewer than two values",)
        return _wheres(by.alias, bounds), ()

    def _bounds(self, described: _Described, by: Column, count: int) -> list[str]:
        """Inner bounds, rising, as SQL: equal steps for integers (an index answers min and max at once), else equal counts."""
        if by.pg_type.oid in _INTEGERS:
            low, high = self._rows(described.select(f"CAST(min({by.alias}) AS bigint), CAST(max({by.alias}) AS bigint)"))[0]
            return _steps(low, high, count) if low is not None else []
        shares = ", ".join(str(i / count) for i in range(count))
        ranked = f"percentile_disc(ARRAY[{shares}]) WITHIN GROUP (ORDER BY {by.alias})"
        # The values and their type come from the server and go back to it: text in, the same text out.
        values, type_name = self._rows(described.select(f"CAST({ranked} AS text[]), format_type({by.pg_type.oid}, -1)"))[0]
        low, *inner = values or (None,)
        return [f"CAST({literal(value)} AS {type_name})" for value in dict.fromkeys(inner) if value is not None and value != low]

    def _rows(self, statement: str) -> list[Row]:
        """Run a statement on the keeper while asking, five times a second, whether the run was cancelled."""
        if self._ctx.is_cancelled():
            raise _cancelled()
        with ThreadPoolExecutor(max_workers=1) as pool:
            rows = pool.submit(self._keeper.rows, statement, translate=_doing("plan"))
            while not wait([rows], timeout=POLL_S).done:
                if self._ctx.is_cancelled():
                    self._keeper.cancel()
            return rows.result()


def _statement(query: Query) -> Statement:
    if query.sql is not None:
        return prepare(query.sql, query.parameters, literal)
    if query.parameters:
        raise ConfigError("a table takes no parameters", next_step="remove `parameters`, or write the query as SQL")
    columns = ", ".join(identifier(name) for name in query.columns) or "*"
    text = f"SELECT {columns} FROM {table_identifier(query.table or '')}"
    return Statement(text=text, source=text)


def _settings(timeout_s: float) -> dict[str, str]:
    """What every session of a source is set to; the second lock against writes, and what makes texts the same on every server."""
    return {
        "default_transaction_read_only": "on",
        "statement_timeout": str(max(1, round(timeout_s * 1000))),
        "idle_in_transaction_session_timeout": "0",
        "standard_conforming_strings": "on",
        "TimeZone": "UTC",
        "DateStyle": "ISO",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "synchronize_seqscans": "off",
    }


def _application_name(handle: bytes, tag: str) -> str:
    return f"wsync:{handle.decode('ascii')}:{re.sub(r'[^ -~]', '?', tag)}"


def _describe(connection: RowConnection, statement: Statement) -> _Described:
    """Ask the server for the columns: LIMIT 0 starts the query and fetches nothing from it."""
    prefix = "SELECT * FROM (\n"
    described = connection.describe(f"{prefix}{statement.text}\n) AS q LIMIT 0", translate=_placed(statement, len(prefix)))
    types = _types(connection, [item.oid for item in described])
    columns = tuple(
        column(i, item.name, PgType(oid=item.oid, element=types.get(item.oid, 0), typmod=item.typmod), is_any_bytes=connection.is_any_bytes)
        for i, item in enumerate(described)
    )
    return _Described(statement=statement, columns=columns, schema=arrow_schema(columns))


def _types(connection: RowConnection, oids: Sequence[int]) -> dict[int, int]:
    """The element type of each type number that is a true array."""
    listed = ", ".join(str(int(oid)) for oid in {0, *oids})
    statement = f"SELECT a.oid, e.oid FROM pg_type a JOIN pg_type e ON e.oid = a.typelem AND e.typarray = a.oid WHERE a.oid IN ({listed})"
    return {int(array): int(element) for array, element in connection.rows(statement, translate=_doing("plan"))}


def _estimate(connection: RowConnection, statement: Statement) -> Estimate:
    prefix = "EXPLAIN (FORMAT JSON) SELECT * FROM (\n"
    rows = connection.rows(f"{prefix}{statement.text}\n) AS q", translate=_placed(statement, len(prefix)))
    plan = rows[0][0][0]["Plan"]
    return Estimate(rows=int(plan["Plan Rows"]), cost=float(plan["Total Cost"]), cost_unit="planner cost")


def _steps(low: int, high: int, count: int) -> list[str]:
    width = high - low + 1
    bounds = sorted({low + width * i // count for i in range(1, count)} - {low})
    return [f"CAST({literal(bound)} AS bigint)" for bound in bounds]


def _wheres(alias: str, bounds: list[str]) -> list[str]:
    """Half-open ranges without a gap; the first also has the NULL keys, the last has no end, so NaN is in it."""
    first = f" WHERE {alias} < {bounds[0]} OR {alias} IS NULL"
    middle = [f" WHERE {alias} >= {low} AND {alias} < {high}" for low, high in pairwise(bounds)]
    return [first, *middle, f" WHERE {alias} >= {bounds[-1]}"]


def _enter_snapshot(connection: ArrowConnection, token: _Token) -> None:
    connection.execute(_BEGIN, translate=_doing("read"))
    connection.execute(f"SET TRANSACTION SNAPSHOT '{token.snapshot}'", translate=_importing)
    if connection.rows(_SNAPSHOT_STATE, translate=_doing("read"))[0][0] != token.state:
        raise _expired("the server restarted since")


def _importing(problem: Problem) -> WsyncError:
    error = read_error("read", problem)
    return error if isinstance(error, FatalError) or problem.sqlstate is None else _expired("the connection that held it is gone")


def _sliced(batch: pa.RecordBatch, batch_rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, batch_rows):
        yield batch.slice(start, batch_rows)


def _doing(what: str) -> Translate:
    return lambda problem: read_error(what, problem)


def _placed(statement: Statement, prefix_characters: int) -> Translate:
    return lambda problem: read_error(
        "the query was refused", problem, place=statement.place(problem.position - prefix_characters) if problem.position >= 0 else ""
    )


def _expired(why: str) -> PlanExpired:
    return PlanExpired(f"the plan's snapshot can't be read any more: {why}", next_step="nothing to do: the query is planned again")


def _cancelled() -> FatalError:
    return FatalError("plan: cancelled", next_step="start the run again if nobody meant to end it")


def _failed(name: str, exc: WsyncError) -> CheckReport:
    return CheckReport(findings=(Finding(name=name, ok=False, message=exc.message, next_step=exc.next_step),))


_COULD_WRITE = """
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')"""
_LOGIN = "SELECT current_user::text, rolsuper FROM pg_roles WHERE rolname = current_user"


def _findings(probe: RowConnection) -> tuple[Finding, ...]:
    version = probe.server_version
    user, is_superuser = probe.rows(_LOGIN, translate=_doing("check"))[0]
    writable = int(probe.rows(_COULD_WRITE, translate=_doing("check"))[0][0])
    could = "is a superuser" if is_superuser else f"could write to {writable} tables" if writable else ""
    advice = "make a login that may only SELECT; every session is read only in any case" if could else ""
    return (
        Finding(name="reachable", ok=True, message="the server answers"),
        Finding(name="login", ok=True, message=f"logged in as `{user}`"),
        Finding(
            name="version",
            ok=version >= OLDEST_VERSION,
            message=f"PostgreSQL {version // 10000}",
            next_step="" if version >= OLDEST_VERSION else "upgrade the server to release 12 or later",
        ),
        Finding(name="read_only", ok=True, message=f"the login {could}" if could else "the login can't write to a table", next_step=advice),
    )
