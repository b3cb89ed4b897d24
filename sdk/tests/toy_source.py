"""The reference source: a toy warehouse in a folder, whose tables are Arrow files, with a query language of four statements.

    SELECT * FROM t     SELECT :a AS a, :b AS b     SLEEP 5     DROP t

It is small enough to be read in one go, and honest: it passes the whole contract, from any process.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from wsync_sdk import (
    REFUSED_COLUMNS,
    CheckReport,
    ConfigError,
    Durable,
    Estimate,
    FatalError,
    Finding,
    PlanContext,
    PlanExpired,
    Preview,
    Query,
    ReadLimits,
    ReadPlan,
    Source,
    SourceCapabilities,
    Split,
)
from wsync_sdk.testing import SourceHarness, Unrepresentable

PASSWORD = "open-sesame-1851"
WRONG_PASSWORD = "open-barley-1851"
STORED_ROWS = 1000
TICK_S = 0.02
SLOW_TICKS = 250
VERSION = "1"
ALL = SourceCapabilities(parallel=True, resumable=True, cancels=True, estimates=True, read_only=True)
HANDLE = re.compile(r"[0-9a-f]{32}")
SCAN = re.compile(r"SELECT \* FROM (\w+)")
ECHO = re.compile(r"SELECT (.+)")
DROP = re.compile(r"DROP (\w+)")
SLEEP = re.compile(r"SLEEP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Warehouse:
    """The toy's server side: folders for tables, results and open reads."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Warehouse:
        for name in ("tables", "results", "open"):
            (folder / name).mkdir(parents=True)
        (folder / "password").write_text(PASSWORD)
        (folder / "executions").write_bytes(b"")
        return cls(folder=folder)

    def table(self, name: str) -> Path:
        return self.folder / "tables" / f"{name}.arrow"

    def result(self, handle: str) -> Path:
        return self.folder / "results" / handle

    def store(self, rows: pa.Table) -> str:
        name = f"t{uuid.uuid4().hex}"
        write_arrow(self.table(name), rows)
        return name

    def count_execution(self) -> None:
        with (self.folder / "executions").open("ab") as log:
            log.write(b".")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A session, as long as it lasts."""
        session = self.folder / "open" / uuid.uuid4().hex
        session.touch()
        try:
            yield
        finally:
            session.unlink()


def write_arrow(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=STORED_ROWS)


def read_arrow(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def schema_of(path: Path) -> pa.Schema:
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
        return reader.schema


class ToySource(Source):
    """See the module's docstring. Each private method is a step that a twin gets wrong."""

    def __init__(self, folder: Path, password: str) -> None:
        self.warehouse = Warehouse(folder=folder)
        self.password = password

    def check(self) -> CheckReport:
        try:
            self._log_in()
        except ConfigError as exc:
            return CheckReport(findings=(Finding(name="login", ok=False, message=exc.message, next_step=exc.next_step),))
        return CheckReport(findings=(Finding(name="login", ok=True, message="the warehouse takes the login"),))

    def estimate(self, query: Query) -> Estimate:
        self._log_in()
        return Estimate(rows=sum(batch.num_rows for batch in self._answer(query)[1]))

    def preview(self, query: Query, rows: int) -> Preview:
        self._log_in()
        schema, batches = self._answer(query)
        first = pa.Table.from_batches(batches, schema=schema).slice(0, rows).combine_chunks().to_batches()
        return Preview(schema=schema, rows=first[0] if first else pa.RecordBatch.from_pylist([], schema=schema), estimate=Estimate())

    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        self._log_in()
        handle = uuid.uuid4().hex
        ctx.started(handle.encode())
        schema, rows = self._execute(query, handle)
        tokens = self._tokens(query, limits, handle, rows)
        return ReadPlan(
            schema=schema,
            splits=tuple(Split(index=index, token=json.dumps(token).encode()) for index, token in enumerate(tokens)),
            lifetime=Durable(until=datetime(2100, 1, 1, tzinfo=UTC)),
            handle=handle.encode(),
            connector_version=VERSION,
        )

    def renew(self, plan: ReadPlan) -> ReadPlan:
        return plan if self.warehouse.result(plan.handle.decode()).exists() else super().renew(plan)

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        return self._read(json.loads(split.token), offset)

    def release(self, plan: ReadPlan) -> None:
        shutil.rmtree(self.warehouse.result(plan.handle.decode()), ignore_errors=True)

    def cancel(self, handle: bytes) -> None:
        text = handle.decode("ascii", errors="replace")
        if HANDLE.fullmatch(text) and (result := self.warehouse.result(text)).exists():
            (result / "cancelled").touch()

    def _log_in(self) -> None:
        if (self.warehouse.folder / "password").read_text() != self.password:
            raise ConfigError("the warehouse refuses the login", next_step="correct the password")

    def _answer(self, query: Query) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The schema and rows of a query, or what is wrong with it."""
        sql = query.sql or ""
        if found := SCAN.fullmatch(sql):
            path = self.warehouse.table(found[1])
            return schema_of(path), read_arrow(path)
        if found := ECHO.fullmatch(sql):
            row = self._bound(found[1], query.parameters)
            return row.schema, iter([row])
        if SLEEP.fullmatch(sql):
            tick = pa.RecordBatch.from_pydict({"tick": [0]})
            return tick.schema, iter([tick])
        if found := DROP.fullmatch(sql):
            self._drop(found[1])
        raise ConfigError("the query was refused: not a SELECT", next_step="write a SELECT")

    def _bound(self, columns: str, parameters: Mapping[str, Any]) -> pa.RecordBatch:
        names = [column.rpartition(" AS ")[2] for column in columns.split(", ")]
        self._check_names(names, parameters)
        return pa.RecordBatch.from_arrays([pa.array([self._value(parameters.get(name))]) for name in names], names=names)

    def _check_names(self, names: list[str], parameters: Mapping[str, Any]) -> None:
        if odd := set(names) ^ set(parameters):
            raise ConfigError(f"the parameter `{min(odd)}` is missing or unknown", next_step="correct `parameters`")

    def _value(self, value: Any) -> Any:
        return value

    def _drop(self, table: str) -> None:
        raise ConfigError("the query was refused: it would write", next_step="write a SELECT")

    def _execute(self, query: Query, handle: str) -> tuple[pa.Schema, int]:
        """Store the query's result under the handle: what a warehouse does for a day."""
        schema, batches = self._answer(query)
        self.warehouse.count_execution()
        self.warehouse.result(handle).mkdir()
        rows = 0
        with (
            pa.OSFile(str(self.warehouse.result(handle) / "rows.arrow"), "wb") as file,
            pa.ipc.new_stream(file, schema) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        return schema, rows

    def _tokens(self, query: Query, limits: ReadLimits, handle: str, rows: int) -> list[dict[str, Any]]:
        """Splits are ranges of the stored result's row numbers."""
        count = limits.max_splits if query.split_by else 1
        bounds = [rows * n // count for n in range(count + 1)]
        return [
            {
                "handle": handle,
                "first": bounds[n],
                "end": bounds[n + 1],
                "batch_rows": limits.batch_rows,
                "slow": query.sql == "SLEEP",
                "split_by": query.split_by,
                "timeout_s": limits.statement_timeout_s,
            }
            for n in range(count)
        ]

    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        path = self.warehouse.result(token["handle"]) / "rows.arrow"
        if not path.exists():
            raise PlanExpired("the result is gone", next_step="nothing to do: the query is planned again")
        with self.warehouse.reading():
            position = 0
            first = token["first"] + offset
            for batch in self._stored(path):
                lower, upper = max(first - position, 0), min(token["end"] - position, batch.num_rows)
                for start in range(lower, upper, token["batch_rows"]):
                    yield batch.slice(start, min(token["batch_rows"], upper - start))
                position += batch.num_rows
            if token["slow"]:
                self._dawdle(token["handle"], token["timeout_s"])

    def _stored(self, path: Path) -> Iterator[pa.RecordBatch]:
        return read_arrow(path)

    def _dawdle(self, handle: str, timeout_s: float) -> None:
        cancelled = self.warehouse.result(handle) / "cancelled"
        for tick in range(SLOW_TICKS):
            if tick * TICK_S > timeout_s:
                raise FatalError("the query is out of time", next_step="narrow the query, or raise its time limit")
            if cancelled.exists():
                raise FatalError("the query was cancelled", next_step="start the run again if nobody meant to end it")
            threading.Event().wait(TICK_S)


class PlainSource(ToySource):
    """Can do only what every source must."""

    def estimate(self, query: Query) -> Estimate:
        return Estimate()

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        if offset:
            raise ConfigError("this source reads splits from their start", next_step="read it from its start")
        return super().read(split)

    def cancel(self, handle: bytes) -> None:
        pass

    def _tokens(self, query: Query, limits: ReadLimits, handle: str, rows: int) -> list[dict[str, Any]]:
        return super()._tokens(query, replace(limits, max_splits=1), handle, rows)

    def renew(self, plan: ReadPlan) -> ReadPlan:
        return Source.renew(self, plan)


class ToySourceHarness(SourceHarness):
    """The toy warehouse in a folder of its own; `kind` is the source or one of its twins."""

    secrets = (PASSWORD, WRONG_PASSWORD)
    patience_s = 1.0

    def __init__(self, folder: Path, kind: Callable[[Path, str], Source] = ToySource, capabilities: SourceCapabilities = ALL) -> None:
        self.capabilities = capabilities
        self.warehouse = Warehouse.make(folder / uuid.uuid4().hex)
        self.kind = kind
        self.kept = self.warehouse.store(pa.table({"id": [1]}))

    def factory(self) -> Callable[[], Source]:
        return partial(self.kind, self.warehouse.folder, PASSWORD)

    def load(self, rows: pa.Table, *, split_by: str | None = None) -> Query:
        return Query(sql=f"SELECT * FROM {self.warehouse.store(rows)}", split_by=split_by)

    def bad_sql(self) -> Query:
        return Query(sql="SELEKT 1")

    def write_sql(self) -> Query:
        return Query(sql=f"DROP {self.kept}")

    def is_unchanged(self) -> bool:
        return self.warehouse.table(self.kept).exists()

    def wrong_login(self) -> Source:
        return self.kind(self.warehouse.folder, WRONG_PASSWORD)

    def slow(self) -> Query:
        return Query(sql="SLEEP")

    def unrepresentable(self) -> Unrepresentable:
        rows = pa.table(
            {
                "day": pa.array([None, None], pa.date32()),
                REFUSED_COLUMNS: pa.array([["day"], None], pa.list_(pa.string())),
            }
        )
        return Unrepresentable(query=self.load(rows), column="day")

    def executions(self) -> int:
        return (self.warehouse.folder / "executions").stat().st_size

    def held(self) -> int:
        return sum(len(list((self.warehouse.folder / name).iterdir())) for name in ("results", "open"))
