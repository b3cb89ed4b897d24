"""A change log of wide rows: DuckDB sorts texts of megabytes in memory only, so the keys are sorted alone and the rows fetched in that order.

The stage's row groups are small where rows are wide (`sql.ROW_GROUP_BYTES`), so a fetch by key reads little beside the rows it is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsync_engine.pipeline.local_database import arrow_table
from wsync_engine.pipeline.sql import ROW_GROUP_BYTES, identifier, text
from wsync_sdk import OP, Operation

__all__ = ["WIDE_ROW_BYTES", "widest_row_bytes", "write_wide_log"]

WIDE_ROW_BYTES = 65_536
"""From this average of a row group on, rows are wide."""
_PLACE = "wsync_place"


def widest_row_bytes(files: Sequence[Path]) -> int:
    """Of the files' row groups the highest average of a row."""
    groups = (meta.row_group(place) for meta in map(pq.read_metadata, files) for place in range(meta.num_row_groups))
    return max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)


def write_wide_log(
    connection: duckdb.DuckDBPyConnection, narrow: str, *, key: Sequence[str], fields: Sequence[str], hashed: str, row_bytes: int, log: Path
) -> None:
    """Write the log in key order, some megabytes at a time.

    :param narrow: SQL of the changes: OP, the key, `hashed`, what else is no field. A row of `offered` is told by key and hash.
    :param row_bytes: of the widest rows. :param log: the file.
    """
    keys = ", ".join(identifier(name) for name in key)
    connection.execute(f"CREATE TEMP TABLE wide_key AS SELECT *, row_number() OVER (ORDER BY {keys}) - 1 AS {_PLACE} FROM ({narrow})")
    step = max(1, ROW_GROUP_BYTES // row_bytes)
    writer: pq.ParquetWriter | None = None
    try:
        for window in _windows(connection, key, fields, hashed, step):
            writer = writer or pq.ParquetWriter(log, window.schema, compression="snappy")
            writer.write_table(window)
    finally:
        if writer is not None:
            writer.close()


def _windows(
    connection: duckdb.DuckDBPyConnection, key: Sequence[str], fields: Sequence[str], hashed: str, step: int
) -> Iterator[pa.Table]:
    """The changes in order; one empty table where there are none."""
    ((count,),) = connection.execute("SELECT count(*) FROM wide_key").fetchall()
    on = " AND ".join(f"s.{identifier(name)} = k.{identifier(name)}" for name in key)
    others = ", ".join(f"s.{identifier(name)}" for name in fields if name not in key)
    for first in range(0, max(1, count), step):
        window = f"(SELECT * FROM wide_key WHERE {_PLACE} BETWEEN {first} AND {first + step - 1})"
        upserts = (
            f"SELECT k.*{', ' if others else ''}{others} FROM {window} k JOIN offered s ON {on} AND s.{hashed} = k.{hashed}"
            f" WHERE k.{OP} = {text(Operation.UPSERT)}"
        )
        deletes = f"SELECT * FROM {window} k WHERE k.{OP} = {text(Operation.DELETE)}"
        rows = arrow_table(
            connection,
            f"SELECT * REPLACE (unhex(replace(CAST({hashed} AS VARCHAR), '-', '')) AS {hashed})"
            f" FROM ({upserts} UNION ALL BY NAME {deletes}) ORDER BY {_PLACE}",
        )
        yield _with_uuid(rows.drop_columns([_PLACE]), hashed)


def _with_uuid(rows: pa.Table, hashed: str) -> pa.Table:
    """The hash as the UUID that DuckDB itself writes; it hands UUIDs to Arrow as texts."""
    storage = pc.cast(rows.column(hashed).combine_chunks(), pa.binary(16))
    place = rows.schema.get_field_index(hashed)
    return rows.set_column(place, hashed, pa.ExtensionArray.from_storage(pa.uuid(), storage))
