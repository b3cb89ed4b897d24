"""Extract: read one split, map and hash its rows, write them as Parquet into the stage, by partition of the key.

One DuckDB statement per split pulls batches from the source's iterator: the driver, the mapping and the Parquet writer work at the same time, and at
most a few batches are in memory. Files count once `RunBooks.publish_split` has named them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from wsync_engine.pipeline.cursor import CursorColumn, CursorValue, HighestSeen
from wsync_engine.pipeline.local_database import Budget, opened
from wsync_engine.pipeline.mapping import PARTITION, REFUSAL, CompiledMapping
from wsync_engine.pipeline.source_columns import placed
from wsync_engine.pipeline.sql import PARQUET, ROW_GROUP_BYTES, text
from wsync_sdk import PluginError, Source, Split, WsyncError

__all__ = ["StagedSplit", "extract_split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSplit:
    """What one split became.

    :param files: per partition that got rows, the file's path. :param read_rows: rows the source gave, counted from its batches.
    :param unreadable_keys: rows whose key could not be read: they block the run's deletes. :param cursor: the highest value of the cursor's column.
    """

    part: int
    files: dict[int, list[Path]]
    read_rows: int
    refused_rows: int
    unreadable_keys: int
    cursor: CursorValue | None = None
    null_cursors: int = 0


class _Feed:
    """A source's batches on their way to DuckDB: counts them, checks their schema, ends on cancel, and keeps the error that ended it.

    DuckDB turns an exception of a reader into text; the original is kept here and raised by `extract_split`.
    """

    def __init__(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, on_batch: Callable[[int], None], highest: HighestSeen | None
    ) -> None:
        self.rows = 0
        self._highest = highest
        self.error: BaseException | None = None
        self._batches = batches
        self._schema = schema
        self._placed = placed(schema)
        self._on_batch = on_batch

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._placed, self._stream())

    def _stream(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                if not batch.schema.equals(self._schema):
                    raise PluginError("a batch's schema is not its plan's", next_step="report it to the connector's author")
                self._on_batch(batch.num_rows)
                if self._highest is not None:
                    self._highest.take(batch)
                self.rows += batch.num_rows
                yield pa.RecordBatch.from_arrays(batch.columns, schema=self._placed)
        except BaseException as exc:
            self.error = exc
            raise


def extract_split(
    source: Source,
    split: Split,
    *,
    schema: pa.Schema,
    mapping: CompiledMapping,
    partitions: int,
    folder: Path,
    scratch: Path,
    attempt: str,
    budget: Budget,
    on_batch: Callable[[int], None],
    cursor: CursorColumn | None = None,
) -> StagedSplit:
    """Read, map and stage one split.

    :param attempt: unique text for this try; files of a try that died are never mistaken for this one's.
    :param on_batch: called with each batch's rows before they count; may raise to stop (lease lost, cancelled).
    :param cursor: whose highest value is looked for.
    """
    target = folder / f"split-{split.index}-{attempt}"
    batches = source.read(split)
    highest = None if cursor is None else HighestSeen(cursor)
    feed = _Feed(batches, schema, on_batch, highest)
    try:
        with opened(scratch, budget) as connection:
            _copy(connection, feed, mapping, target, partitions)
            files = _staged_files(target, partitions)
            refused, unreadable = _count_refusals(connection, [path for paths in files.values() for path in paths])
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return StagedSplit(
        part=split.index,
        files=files,
        read_rows=feed.rows,
        refused_rows=refused,
        unreadable_keys=unreadable,
        cursor=None if highest is None else highest.value,
        null_cursors=0 if highest is None else highest.nulls,
    )


def _copy(connection: duckdb.DuckDBPyConnection, feed: _Feed, mapping: CompiledMapping, target: Path, partitions: int) -> None:
    connection.register("source", feed.reader())
    groups = f"{PARQUET}, ROW_GROUP_SIZE 61440, ROW_GROUP_SIZE_BYTES {ROW_GROUP_BYTES}"
    if partitions == 1:
        target.mkdir()
        destination = text(str(target / "part-0.parquet"))
        options = groups
    else:
        destination = text(str(target))
        options = f"{groups}, PARTITION_BY ({PARTITION}), WRITE_PARTITION_COLUMNS true"
    try:
        connection.execute(f"COPY ({mapping.select}) TO {destination} ({options})")
    except duckdb.Error as exc:
        if isinstance(feed.error, WsyncError) or (feed.error is not None and not isinstance(feed.error, Exception)):
            raise feed.error from exc
        if feed.error is not None:
            raise PluginError(f"the source's read ended with {type(feed.error).__name__}", next_step="see the worker's log") from feed.error
        raise


def _staged_files(target: Path, partitions: int) -> dict[int, list[Path]]:
    if partitions == 1:
        return {0: [target / "part-0.parquet"]}
    files: dict[int, list[Path]] = {}
    for folder in target.glob(f"{PARTITION}=*"):
        files[int(folder.name.partition("=")[2])] = sorted(folder.glob("*.parquet"))
    return files


def _count_refusals(connection: duckdb.DuckDBPyConnection, paths: list[Path]) -> tuple[int, int]:
    if not paths:
        return 0, 0
    row = connection.execute(
        f"SELECT count({REFUSAL}), count(*) FILTER (WHERE {REFUSAL} LIKE 'key_%' AND {REFUSAL} NOT LIKE 'key_null:%')"
        " FROM read_parquet($paths, hive_partitioning = false)",
        {"paths": [str(path) for path in paths]},
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])
