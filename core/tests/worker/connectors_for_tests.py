"""Connectors that a worker's child opens: a source of numbered rows, and a sink that appends what it is sent to a file, so that kills show."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from wsync_engine.worker.messages import Assignment
from wsync_sdk import (
    CheckReport,
    Chunk,
    Estimate,
    Held,
    Operation,
    PlanContext,
    Preview,
    Query,
    ReadLimits,
    ReadPlan,
    RetryableError,
    Sink,
    Source,
    Split,
    StreamLimits,
    StreamSpec,
    WriteResult,
)

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])


def open_connectors(assignment: Assignment) -> tuple[Source, Sink]:
    return NumberSource(assignment.source.config), FileSink(assignment.sink.config)


def hold(folder: Path, name: str) -> None:
    """Stop here while the test holds this gate shut; a test that does not, is not stopped."""
    while (folder / f"{name}.shut").exists():
        (folder / f"{name}.at.{os.getpid()}").touch()
        (folder / f"{name}.reached").touch()
        time.sleep(0.01)


class NumberSource(Source):
    def __init__(self, config: Any) -> None:
        self.folder = Path(config["folder"])
        self.rows = int(config["rows"])
        self.failure = config.get("failure", "")
        self.splits = int(config.get("splits", 1))

    def check(self) -> CheckReport:
        return CheckReport(findings=())

    def estimate(self, query: Query) -> Estimate:
        return Estimate()

    def preview(self, query: Query, rows: int) -> Preview:
        return Preview(schema=SCHEMA, rows=pa.RecordBatch.from_pylist([], schema=SCHEMA), estimate=Estimate())

    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        ctx.started(b"handle")
        (self.folder / "environment").write_text(json.dumps(dict(os.environ)))
        (self.folder / "initial_environment").write_bytes(Path("/proc/self/environ").read_bytes())
        if self.failure == "retryable":
            raise RetryableError("the warehouse is busy", next_step="wait")
        if self.failure == "bug":
            raise ZeroDivisionError("row 7 holds a secret")
        if self.failure == "memory":
            self.hoard = bytearray(os.urandom(1024) * 400_000)
        (self.folder / "pid").write_text(str(os.getpid()))
        hold(self.folder, "plan")
        splits = tuple(Split(index=n, token=b"") for n in range(self.splits))
        return ReadPlan(schema=SCHEMA, splits=splits, lifetime=Held(), handle=b"handle", connector_version="1", estimated_rows=self.rows)

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        for first in range(split.index * 10, self.rows, 10 * self.splits):
            hold(self.folder, "read")
            yield pa.RecordBatch.from_pylist([{"id": n, "name": f"name {n}"} for n in range(first, first + 10)], schema=SCHEMA)

    def release(self, plan: ReadPlan) -> None:
        pass

    def cancel(self, handle: bytes) -> None:
        (self.folder / "cancelled").write_bytes(handle)
        for gate in self.folder.glob("*.shut"):
            gate.unlink(missing_ok=True)


class FileSink(Sink):
    def __init__(self, config: Any) -> None:
        self.folder = Path(config["folder"])
        self.calls_per_s = config.get("calls_per_s")

    def check(self) -> CheckReport:
        return CheckReport(findings=())

    def streams(self) -> Sequence[StreamSpec]:
        limits = StreamLimits(max_rows=5, concurrency=1, calls_per_s=self.calls_per_s)
        return [StreamSpec(name="people", title="People", operations=frozenset(Operation), limits=limits)]

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        if (self.folder / "away").exists():
            with (self.folder / "refused").open("a") as refused:
                refused.write(f"{chunk.run.run_id}\n")
            said = (self.folder / "away").read_text() or "the destination is away"
            raise RetryableError(said, next_step="nothing to do: it is tried again")
        if (self.folder / "throttle").exists():
            (self.folder / "throttle").unlink()
            raise RetryableError("slow down", next_step="nothing to do: it is tried again", retry_after_s=2.0)
        line = (
            json.dumps(
                {
                    "at_s": time.monotonic(),
                    "key": chunk.key,
                    "ids": [row["id"] for row in chunk.to_rows()],
                    "epoch": chunk.fence.epoch,
                    "pid": os.getpid(),
                }
            )
            + "\n"
        )
        descriptor = os.open(self.folder / "sent", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        if chunk.range.first >= 20:
            (self.folder / "pid").write_text(str(os.getpid()))
            hold(self.folder, "write")
        return WriteResult(accepted_rows=chunk.rows)
