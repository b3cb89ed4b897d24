"""What the sink's tests send: one target, and chunks of it."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa

from wsync_sdk import OP, Chunk, Fence, RowRange, RunRef, Target

from .conftest import Database

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
TARGET = Target(stream="people", key=("id",), schema=SCHEMA)
RUN = RunRef(tenant_id="acme", sync_id="people", run_id="run-1", delivery=1)


def chunk(
    rows: list[dict[str, Any]],
    *,
    first: int = 0,
    run: RunRef = RUN,
    target: Target = TARGET,
    epoch: int = 1,
    partition: int = 0,
    timeout_s: float = 9.0,
) -> Chunk:
    """Rows with `op` (default: upsert) as a chunk."""
    schema = pa.schema([pa.field(OP, pa.string()), *target.schema])
    table = [{OP: row.get("op", "upsert"), **{name: row.get(name) for name in target.schema.names}} for row in rows]
    changes = pa.RecordBatch.from_pylist(table, schema=schema)
    span = RowRange(first, first + len(rows) - 1)
    fence = Fence(sync_id=run.sync_id, delivery=run.delivery, partition=partition, epoch=epoch)
    return Chunk(
        key=f"log:{span.first}:{span.last}",
        run=run,
        partition=partition,
        range=span,
        target=target,
        changes=changes,
        records=None,
        fence=fence,
        timeout_s=timeout_s,
    )


def people(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT id, name FROM people ORDER BY id")


def wait_for_waiting(database: Database, count: int) -> None:
    """Until so many sessions of the database wait for a lock."""
    waiting = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.name}' AND wait_event_type = 'Lock'"
    for _ in range(500):
        if database.admin(waiting)[0][0] >= count:
            return
        threading.Event().wait(0.01)
    raise AssertionError("nobody waits for a lock")
