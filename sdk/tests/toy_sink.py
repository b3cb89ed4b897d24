"""The reference sinks: a toy shop in memory, written to by JSON lines (`ToySink`), and a toy database that keeps acks (`ToyDatabase`).

Both are small enough to be read in one go, and honest: they pass the whole contract.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from wsync_sdk import (
    OP,
    CheckReport,
    Chunk,
    ConfigError,
    FatalError,
    Finding,
    Inspection,
    Nulls,
    Operation,
    Rejection,
    RetryableError,
    RowError,
    RowRange,
    RunRef,
    Sink,
    SinkCapabilities,
    StateError,
    StreamLimits,
    StreamSpec,
    Target,
    TransactionalSink,
    WriteMode,
    WriteResult,
    nulls_of,
)
from wsync_sdk.testing import Refusal, SinkHarness

PASSWORD = "open-sesame-1851"
WRONG_PASSWORD = "open-barley-1851"
TICK_S = 0.01
AGED = pa.schema([("id", pa.int64()), ("age", pa.int64())])
OPERATIONS = frozenset(Operation)

Key = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Shop:
    """The toy's server side."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    streams: dict[str, dict[Key, Row]] = field(default_factory=dict)
    runs: dict[bytes, Inspection] = field(default_factory=dict)
    acks: dict[tuple[str, int], list[RowRange]] = field(default_factory=dict)
    deliveries: dict[str, int] = field(default_factory=dict)
    epochs: dict[tuple[str, int], int] = field(default_factory=dict)
    versions: dict[bytes, tuple[str, dict[Key, Row]]] = field(default_factory=dict)
    loses_replies: bool = False

    @contextmanager
    def losing(self) -> Iterator[None]:
        self.loses_replies = True
        try:
            yield
        finally:
            self.loses_replies = False


class PlainSink(Sink):
    """Can do only what every sink must: upserts, one row and one call at a time. Each private method is a step that a twin gets wrong."""

    operations = frozenset({Operation.UPSERT})
    concurrency = 1
    max_rows = 1
    nulls: frozenset[Nulls] = frozenset()
    write_modes = frozenset({WriteMode.MERGE})

    def __init__(self, shop: Shop, password: str) -> None:
        self.shop = shop
        self.password = password

    def check(self) -> CheckReport:
        try:
            self._log_in()
        except ConfigError as exc:
            return CheckReport(findings=(Finding(name="login", ok=False, message=exc.message, next_step=exc.next_step),))
        return CheckReport(findings=(Finding(name="login", ok=True, message="the shop takes the login"),))

    def streams(self) -> Sequence[StreamSpec]:
        limits = StreamLimits(max_rows=self.max_rows, concurrency=self.concurrency)
        return [
            StreamSpec(name=name, title=name, operations=self.operations, limits=limits, nulls=self.nulls, write_modes=self.write_modes)
            for name in self.shop.streams
        ]

    def begin(self, run: RunRef, target: Target) -> bytes:
        self._log_in()
        token = f"{run.sync_id}/{run.run_id}".encode()
        self.shop.runs.setdefault(token, Inspection.OPEN)
        if run.write_mode is WriteMode.REPLACE:
            self.shop.versions[token] = (target.stream, {})
        return token

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        self._log_in()
        if chunk.rows > self.max_rows:
            raise FatalError("the shop takes fewer rows in a call", next_step="keep to the stream's limits")
        codes = self._send(chunk)
        rejections = tuple(Rejection(row=place, code=code, message="the shop refuses the age") for place, code in enumerate(codes) if code)
        return WriteResult(accepted_rows=chunk.rows - len(rejections), rejections=rejections)

    def commit(self, token: bytes, totals: Mapping[str, int]) -> None:
        self.shop.runs[token] = Inspection.COMMITTED
        if token in self.shop.versions:
            self._switch(token)

    def abort(self, token: bytes) -> None:
        self.shop.runs[token] = Inspection.GONE
        self._drop(token)

    def inspect(self, token: bytes) -> Inspection:
        return self.shop.runs.get(token, Inspection.GONE)

    def find_open(self, run: RunRef) -> Sequence[bytes]:
        mine = f"{run.sync_id}/{run.run_id}".encode()
        found = [
            token for token in self.shop.runs if token == mine or (token in self.shop.versions and token.startswith(run.sync_id.encode()))
        ]
        return [token for token in found if self.shop.runs[token] is Inspection.OPEN]

    def _switch(self, token: bytes) -> None:
        stream, rows = self.shop.versions.pop(token)
        self.shop.streams[stream] = rows

    def _drop(self, token: bytes) -> None:
        self.shop.versions.pop(token, None)

    def _rows_of(self, chunk: Chunk) -> dict[Key, Row]:
        """Where the chunk's rows go."""
        if chunk.run.write_mode is WriteMode.REPLACE:
            return self.shop.versions[f"{chunk.run.sync_id}/{chunk.run.run_id}".encode()][1]
        return self.shop.streams[chunk.target.stream]

    def _place(self, chunk: Chunk, key: Key) -> Key:
        """Under which key a row is kept: of an appended one, the chunk's is a part, so that the same chunk twice is harmless."""
        return (chunk.key, *key) if chunk.run.write_mode is WriteMode.APPEND else key

    def _log_in(self) -> None:
        if self.password != PASSWORD:
            raise ConfigError("the shop refuses the login", next_step="correct the password")

    def _send(self, chunk: Chunk) -> list[str]:
        """A code for each row, empty where it was taken."""
        threading.Event().wait(TICK_S)  # as far as a network, so that calls at the same time do meet
        with self.shop.lock:
            rows = self._rows_of(chunk)
            codes = [self._apply(rows, operation, self._place(chunk, key), row) for operation, key, row in self._changes(chunk)]
        if self.shop.loses_replies:
            self._reply_lost()
        return codes

    def _reply_lost(self) -> None:
        raise RetryableError("the shop did not answer", next_step="nothing to do: it is tried again")

    def _changes(self, chunk: Chunk) -> list[tuple[str, Key, Row]]:
        """Operation, key and row of each change."""
        rows = [self._stated(row, chunk.target) for row in chunk.to_rows()]
        return [(row.pop(OP), tuple(row[name] for name in chunk.target.key), row) for row in rows]

    def _stated(self, row: Row, target: Target) -> Row:
        """The row without the fields that are left out where they are NULL."""
        omitted = {field.name for field in target.schema if nulls_of(field) is Nulls.OMIT}
        return {name: value for name, value in row.items() if value is not None or name not in omitted}

    def _apply(self, rows: dict[Key, Row], operation: str, key: Key, row: Row) -> str:
        if (row.get("age") or 0) < 0:
            return "negative_age"
        if operation == Operation.DELETE:
            self._delete(rows, key)
        else:
            self._upsert(rows, key, row)
        return ""

    def _upsert(self, rows: dict[Key, Row], key: Key, row: Row) -> None:
        rows[key] = {**rows.get(key, {}), **row}

    def _delete(self, rows: dict[Key, Row], key: Key) -> None:
        rows.pop(key, None)


class ToySink(PlainSink):
    """Sends JSON lines, from several threads."""

    operations = OPERATIONS
    concurrency = 4
    max_rows = 500
    nulls = frozenset(Nulls)

    def render(self, changes: pa.RecordBatch, target: Target) -> pa.StringArray | None:
        return pa.array([self._line(row, target) for row in changes.to_pylist()], pa.string())

    def _line(self, row: Row, target: Target) -> str:
        row = self._stated(row, target)
        operation = row.pop(OP)
        return json.dumps([operation, [row[name] for name in target.key], row]) + "\n"

    def _changes(self, chunk: Chunk) -> list[tuple[str, Key, Row]]:
        lines = [json.loads(line) for line in bytes(chunk.body()).decode().split("\n") if line]
        return [(operation, tuple(key), row) for operation, key, row in lines]


class ToyVersions(ToySink):
    """Takes rows in every mode."""

    write_modes = frozenset(WriteMode)


class ToyDatabase(PlainSink, TransactionalSink):
    """Keeps acks beside the rows, and refuses whole chunks."""

    operations = OPERATIONS
    concurrency = 4
    max_rows = 500
    nulls = frozenset(Nulls)

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        self._log_in()
        with self._transaction(chunk.target.stream):
            self._pass_fence(chunk)
            if not self._is_recorded(chunk):
                self._record(chunk)
                self._apply_all(chunk)
        if self.shop.loses_replies:
            self._reply_lost()
        return WriteResult(accepted_rows=chunk.rows)

    def recorded(self, run: RunRef, target: Target, partition: int) -> Sequence[RowRange]:
        return sorted(self.shop.acks.get((run.run_id, partition), []))

    @contextmanager
    def _transaction(self, stream: str) -> Iterator[None]:
        with self.shop.lock:
            rows, acks = dict(self.shop.streams[stream]), {key: list(ranges) for key, ranges in self.shop.acks.items()}
            try:
                yield
            except BaseException:
                self._roll_back(stream, rows, acks)
                raise

    def _roll_back(self, stream: str, rows: dict[Key, Row], acks: dict[tuple[str, int], list[RowRange]]) -> None:
        self.shop.streams[stream], self.shop.acks = rows, acks

    def _pass_fence(self, chunk: Chunk) -> None:
        fence = chunk.fence
        self._pass(self.shop.deliveries, fence.sync_id, fence.delivery)
        self._pass(self.shop.epochs, (fence.sync_id, fence.partition), fence.epoch)

    def _pass(self, seen: dict[Any, int], who: Any, number: int) -> None:
        if seen.get(who, 0) > number:
            raise StateError("a newer holder writes now", next_step="nothing to do: the newer one goes on")
        seen[who] = number

    def _is_recorded(self, chunk: Chunk) -> bool:
        return chunk.range in self.shop.acks.get((chunk.run.run_id, chunk.partition), [])

    def _record(self, chunk: Chunk) -> None:
        self.shop.acks.setdefault((chunk.run.run_id, chunk.partition), []).append(chunk.range)

    def _apply_all(self, chunk: Chunk) -> None:
        for operation, key, row in self._changes(chunk):
            if code := self._apply(self._rows_of(chunk), operation, self._place(chunk, key), row):
                raise RowError("the database refuses the age", code=code, next_step="correct the row where it comes from")


LEAST = SinkCapabilities()
JSON_SINK = SinkCapabilities(renders=True)
DATABASE = SinkCapabilities(transactional=True)
NO_JSON = frozenset({"decimal_value", "binary_value", "date_value", "local_value", "instant_value"})


class ToySinkHarness(SinkHarness):
    """A shop of its own; `kind` is a sink or one of its twins."""

    secrets = (PASSWORD, WRONG_PASSWORD)
    unknown_stream = "no-such-stream"

    def __init__(self, kind: Callable[[Shop, str], Sink] = ToySink, capabilities: SinkCapabilities = JSON_SINK) -> None:
        self.kind = kind
        self.capabilities = capabilities
        self.unsupported = NO_JSON if capabilities.renders else frozenset()
        self.shop = Shop()

    def sink(self) -> Sink:
        return self.kind(self.shop, PASSWORD)

    def target(self, schema: pa.Schema, key: tuple[str, ...]) -> Target | None:
        name = f"stream-{len(self.shop.streams)}"
        self.shop.streams[name] = {}
        return Target(stream=name, key=key, schema=schema)

    def contents(self, target: Target) -> Sequence[Mapping[str, Any]]:
        return list(self.shop.streams[target.stream].values())

    def wrong_login(self) -> Sink | None:
        return self.kind(self.shop, WRONG_PASSWORD)

    def refusal(self) -> Refusal | None:
        target = self.target(AGED, ("id",))
        assert target is not None
        return Refusal(target=target, good=[{"id": 1, "age": 30}, {"id": 2, "age": 0}], bad={"id": 3, "age": -1})

    def lose_reply(self) -> AbstractContextManager[None] | None:
        return self.shop.losing()


class PlainSinkHarness(ToySinkHarness):
    """Knows nothing beyond what it must."""

    unknown_stream = None

    def __init__(self, kind: Callable[[Shop, str], Sink] = PlainSink, capabilities: SinkCapabilities = LEAST) -> None:
        super().__init__(kind, capabilities)

    def target(self, schema: pa.Schema, key: tuple[str, ...]) -> Target | None:
        return super().target(schema, key) if key == ("id",) else None

    def wrong_login(self) -> Sink | None:
        return None

    def refusal(self) -> Refusal | None:
        return None

    def lose_reply(self) -> AbstractContextManager[None] | None:
        return None
