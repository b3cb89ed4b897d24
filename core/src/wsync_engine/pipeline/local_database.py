"""DuckDB as the pipeline uses it: in memory, bounded, spilling into the run's scratch folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from wsync_engine.pipeline.sql import text
from wsync_sdk import FatalError

__all__ = ["LOST_NEXT_STEP", "Budget", "SnapshotLost", "arrow_table", "damaged", "is_damage", "opened"]


LOST_NEXT_STEP = (
    "restore the storage folder from its backup; or `wsync-engine sync resync NAME` offers everything again,"
    " `wsync-engine sync adopt NAME` takes the present result as delivered"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one task may use: DuckDB's memory and threads, and how many rows of a result it has to deal with, about."""

    memory_bytes: int = 128 * 1024 * 1024
    threads: int = 2
    rows_per_partition: int = 2_000_000


@contextmanager
def opened(scratch: Path, budget: Budget) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection within `budget`; a full disk, a damaged file or too little memory becomes one clear FatalError."""
    connection = duckdb.connect()
    try:
        connection.execute(f"SET memory_limit = '{budget.memory_bytes}B'")
        connection.execute(f"SET threads = {budget.threads}")
        connection.execute(f"SET temp_directory = {text(str(scratch))}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET partitioned_write_flush_threshold = 32768")
        connection.execute("SET TimeZone = 'UTC'")
        # Nothing is fetched at run time, and a file is read only where our own SQL names it.
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET autoload_known_extensions = false")
        connection.execute("SET arrow_large_buffer_size = false")
        connection.execute("SET enable_progress_bar = false")  # it would be drawn into the worker's log
        yield connection
    except duckdb.IOException as exc:
        if "No files found" in str(exc):
            raise damaged("missing") from exc
        raise FatalError("the storage folder can't be written or read", next_step="free space on its disk, then run again") from exc
    except duckdb.OutOfMemoryException as exc:
        raise FatalError("the task needs more memory or scratch space than it has", next_step="free disk space, then run again") from exc
    except duckdb.Error as exc:
        if is_damage(exc):
            raise damaged("damaged") from exc
        raise
    finally:
        connection.close()


def is_damage(exc: duckdb.Error) -> bool:
    """Whether a Parquet file could not be decoded; its pages' headers are the one place that has no class of error of its own."""
    return isinstance(exc, duckdb.InvalidInputException) or "TProtocolException" in str(exc)


class SnapshotLost(FatalError):
    """A file that Postgres names is missing or damaged."""


def damaged(how: str) -> SnapshotLost:
    """The error for a file that is `missing` or `damaged`."""
    return SnapshotLost(
        f"snapshot_lost: a file of the snapshot, or of a run that is not folded yet, is {how}",
        next_step=LOST_NEXT_STEP,
    )


def arrow_table(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The whole result of a query that gives rows; for small ones."""
    relation = connection.sql(query)
    assert relation is not None
    return relation.to_arrow_table()
