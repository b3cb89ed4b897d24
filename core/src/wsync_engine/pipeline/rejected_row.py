"""What is kept of a rejected row, for people to look at: its fields, or of a large one its key."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from wsync_sdk import OP

__all__ = ["MOST_PAYLOAD_BYTES", "largest_field", "payload_of"]

MOST_PAYLOAD_BYTES = 65_536
"""A run lists thousands of rejections, each in a row of the state store."""


def payload_of(row: pa.Table | pa.RecordBatch, key: Sequence[str]) -> bytes:
    """One row as an Arrow stream, small enough to be stored.

    :param key: its fields stay, whatever is left out; even they only as far as they fit.
    """
    if row.nbytes > MOST_PAYLOAD_BYTES:
        row = row.select([name for name in row.schema.names if name in {OP, *key}])
    if row.nbytes > MOST_PAYLOAD_BYTES:
        row = row.select([])
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, row.schema) as writer:
        writer.write(row)
    return bytes(stream.getvalue())


def largest_field(row: pa.RecordBatch) -> str:
    """The name of the top-level field with the most bytes."""
    sizes: dict[str, int] = {field.name: array.nbytes for field, array in zip(row.schema, row.columns, strict=True) if field.name != OP}
    return max(sizes, key=sizes.__getitem__)
