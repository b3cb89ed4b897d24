"""One run's delivery through a sink as the engine makes it, without the engine: begin, chunks with ranges and keys, commit."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from wsync_sdk.sink import (
    BEFORE,
    OP,
    Chunk,
    Fence,
    Operation,
    RowRange,
    RunRef,
    Sink,
    StreamSpec,
    Target,
    WriteMode,
    WriteResult,
    before_type,
)
from wsync_sdk.testing.harness import SinkHarness
from wsync_sdk.testing.rules import absent, differing_rows, require

__all__ = ["PEOPLE", "Delivery", "changes_of", "delete", "delivering", "differing_contents", "people", "require_contents", "target_of"]

PEOPLE = pa.schema([("id", pa.int64()), ("name", pa.string())])
TIMEOUT_S = 30.0
Row = Mapping[str, Any]


def people(ids: Sequence[int], name: str = "row") -> list[dict[str, Any]]:
    """Rows of PEOPLE."""
    return [{"id": number, "name": f"{name} {number}"} for number in ids]


def delete(key: Row) -> dict[str, Any]:
    """A change that deletes a key."""
    return {OP: Operation.DELETE.value, **key}


def changes_of(rows: Sequence[Row], schema: pa.Schema, before: Sequence[str] = ()) -> pa.RecordBatch:
    """Rows as changes: upserts, unless they say otherwise. With fields in `before` they have the column `BEFORE`."""
    known = {BEFORE: None} if before else {}
    table = [
        {OP: row.get(OP, Operation.UPSERT.value), **{name: row.get(name) for name in schema.names}, **known, **_before_of(row)}
        for row in rows
    ]
    fields = [pa.field(OP, pa.string()), *schema, *([pa.field(BEFORE, before_type(before))] if before else [])]
    return pa.RecordBatch.from_pylist(table, schema=pa.schema(fields))


def _before_of(row: Row) -> dict[str, Any]:
    return {BEFORE: row[BEFORE]} if BEFORE in row else {}


def target_of(harness: SinkHarness, schema: pa.Schema = PEOPLE, key: tuple[str, ...] = ("id",)) -> Target:
    """A new target for these fields; the rule is left out where the destination has none."""
    target = harness.target(schema, key)
    if target is None:
        absent(f"the harness has no stream with the fields {', '.join(schema.names)} and the key {', '.join(key)}")
    return target


class Delivery:
    """A run that writes to one target.

    :param sync_id: of a sync that other deliveries belong to as well; a new one if it is left out.
    """

    def __init__(self, sink: Sink, target: Target, *, sync_id: str = "", number: int = 1, write_mode: WriteMode = WriteMode.MERGE) -> None:
        self.sink = sink
        self.target = target
        self.run = RunRef(
            tenant_id="acme",
            sync_id=sync_id or f"sync-{uuid.uuid4().hex[:12]}",
            run_id=f"run-{uuid.uuid4().hex[:12]}",
            delivery=number,
            write_mode=write_mode,
            stream=target.stream,
        )
        self.token = sink.begin(self.run, target)
        self._next_row: dict[int, int] = {}
        self._known: dict[tuple[Any, ...], dict[str, list[str]]] = {}

    @property
    def before(self) -> list[str]:
        """The fields of the target whose former values the stream asks for."""
        return sorted(self.stream.needs_before & set(self.target.schema.names))

    @property
    def stream(self) -> StreamSpec:
        """What the sink says of the target's stream."""
        return self.sink.stream(self.target.stream)

    def fitting(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As many of the rows, from the first on, as the stream takes in one call."""
        return rows[: self.stream.limits.max_rows]

    def require_deletes(self) -> None:
        """Leave a rule out where the stream has no deletes."""
        if Operation.DELETE not in self.stream.operations:
            absent("the stream takes no deletes")

    def chunk(self, rows: Sequence[Row], *, partition: int = 0, epoch: int = 1, first: int | None = None) -> Chunk:
        """Rows, in key order, as the next chunk of the partition, or as the one that begins at the row `first`."""
        start = self._next_row.get(partition, 0) if first is None else first
        span = RowRange(start, start + len(rows) - 1)
        self._next_row[partition] = span.last + 1
        changes = changes_of([self._with_before(row) for row in rows] if self.before else rows, self.target.schema, self.before)
        return Chunk(
            key=f"{self.run.run_id}.{partition}.{span.first}-{span.last}",
            run=self.run,
            partition=partition,
            range=span,
            target=self.target,
            changes=changes,
            records=self.sink.render(changes, self.target),
            fence=Fence(sync_id=self.run.sync_id, delivery=self.run.delivery, partition=partition, epoch=epoch),
            timeout_s=TIMEOUT_S,
        )

    def _with_before(self, row: Row) -> Row:
        """The row with what was sent of its key before, as the engine remembers it."""
        key = tuple(row.get(name) for name in self.target.key)
        known = self._known.get(key)
        if row.get(OP) == Operation.DELETE:
            self._known.pop(key, None)
        else:
            self._known[key] = {name: [json.dumps(row[name], default=str)] for name in self.before if row.get(name) is not None}
        return {BEFORE: known, **row}

    def write(self, rows: Sequence[Row], *, partition: int = 0, epoch: int = 1, first: int | None = None) -> None:
        """Send rows, in as many chunks as the stream's limits ask for."""
        most = self.stream.limits.max_rows
        for start in range(0, len(rows), most):
            place = None if first is None else first + start
            self.send(self.chunk(rows[start : start + most], partition=partition, epoch=epoch, first=place))

    def send(self, chunk: Chunk) -> WriteResult:
        """Send a chunk, perhaps again."""
        return self.sink.write(chunk, self.token)

    def commit(self) -> None:
        """End the run as the engine ends one that went well."""
        self.sink.commit(self.token, self.totals)

    @property
    def totals(self) -> dict[str, int]:
        """Of what was sent: all of it was accepted."""
        rows = sum(self._next_row.values())
        return {"upserts": rows, "accepted": rows}


@contextmanager
def delivering(harness: SinkHarness, schema: pa.Schema = PEOPLE, key: tuple[str, ...] = ("id",)) -> Iterator[Delivery]:
    """A delivery to a new target, through a sink of its own."""
    target = target_of(harness, schema, key)
    with harness.sink() as sink:
        yield Delivery(sink, target)


def differing_contents(harness: SinkHarness, target: Target, expected: Sequence[Row]) -> str:
    """How the destination differs from these rows, in numbers; empty if it does not."""
    names = target.schema.names
    found = [{name: row.get(name) for name in names} for row in harness.contents(target)]
    return differing_rows(found, [{name: row.get(name) for name in names} for row in expected])


def require_contents(harness: SinkHarness, delivery: Delivery, expected: Sequence[Row], advice: str) -> None:
    """Commit, then hold the destination to exactly these rows."""
    delivery.commit()
    difference = differing_contents(harness, delivery.target, expected)
    require(not difference, f"{advice} ({difference})")
