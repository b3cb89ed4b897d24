"""A destination that writes down how many rows it was sent, and forgets them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from wsync_generated.config import CountingConfig
from wsync_generated.counted import Counted
from wsync_sdk import (
    OP,
    CheckReport,
    Chunk,
    ConfigError,
    FatalError,
    FieldSpec,
    Finding,
    Operation,
    RunRef,
    Sink,
    StreamLimits,
    StreamSpec,
    Target,
    WriteResult,
)

__all__ = ["CountingSink"]


class CountingSink(Sink):
    """Takes everything. One file per process, so that no two write to one."""

    def __init__(self, config: CountingConfig) -> None:
        self._config = config

    def check(self) -> CheckReport:
        """Can the folder be written?"""
        try:
            self._made()
        except FatalError as exc:
            return CheckReport(findings=(Finding(name="reachable", ok=False, message=exc.message, next_step=exc.next_step),))
        return CheckReport(findings=(Finding(name="reachable", ok=True, message=f"counts in {self._config.folder}"),))

    def streams(self) -> Sequence[StreamSpec]:
        """One that any name means."""
        return (self.stream("subscribers"),)

    def stream(self, name: str) -> StreamSpec:
        """Any name."""
        limits = StreamLimits(max_rows=self._config.max_rows, max_bytes=64 * 1024 * 1024, concurrency=2)
        return StreamSpec(
            name=name,
            title=name,
            operations=frozenset(Operation),
            limits=limits,
            fields=(FieldSpec(name="id", required=True),),
            key=("id",),
        )

    def begin(self, run: RunRef, target: Target) -> bytes:
        """Make the folder.

        :raises ConfigError: there is no whole number `id`, of which a sum could be made.
        """
        if "id" not in target.schema.names or not str(target.schema.field("id").type).startswith("int"):
            raise ConfigError("the sums are those of a field `id` of whole numbers", next_step="map a column to `id`")
        self._made()
        return b""

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """One line: complete, or not there."""
        counted = Counted(
            chunk=chunk.key,
            rows=chunk.rows,
            ids=int(pc.sum(chunk.changes.column("id")).as_py() or 0),
            deletes=int(pc.sum(pc.equal(chunk.changes.column(OP), str(Operation.DELETE))).as_py() or 0),
        )
        line = (json.dumps(counted.to_json()) + "\n").encode()
        try:
            descriptor = os.open(self._config.folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise _not_writable(self._config.folder, exc) from exc
        return WriteResult(accepted_rows=chunk.rows)

    def _made(self) -> None:
        try:
            self._config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise _not_writable(self._config.folder, exc) from exc


def _not_writable(folder: Path, exc: OSError) -> FatalError:
    return FatalError(f"`{folder}` can't be written: {exc.strerror}", next_step="correct the folder's permissions, or free space")
