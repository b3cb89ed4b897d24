"""Arrow's kernels for texts that records are put together from: joining, cutting, laying out in order. Columnar: no Python object per value."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["NARROW_LIMIT", "Bools", "Text", "bytes_of", "interleaved", "joined", "large", "narrowed", "sliced"]

NARROW_LIMIT = 2**31 - 1
"""Bytes that an array of 32-bit offsets can hold."""
Bools = npt.NDArray[np.bool_]
Text: TypeAlias = pa.StringArray | pa.LargeStringArray


def large(text: str | None) -> pa.LargeStringScalar:
    """A text as a scalar that joins with large arrays."""
    return pa.scalar(text, pa.large_string())


def joined(*parts: str | pa.LargeStringArray) -> pa.LargeStringArray:
    """Text by text; NULL where a part is NULL."""
    return pc.binary_join_element_wise(*(large(part) if isinstance(part, str) else part for part in parts), large(""))


def sliced(text: Text, *, head: int, tail: int, rows: Bools | None = None) -> pa.LargeStringArray:
    """Each text, or that of `rows`, without `head` bytes before and `tail` bytes after; it has at least so many.

    Not by `binary_slice`: without an end, Arrow 26's fails.
    """
    wide = text.cast(pa.large_string())
    _, offsets_buffer, data_buffer = wide.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[wide.offset : wide.offset + len(wide) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8)[int(offsets[0]) : int(offsets[-1])]
    offsets = offsets - offsets[0]
    cut = np.ones(len(wide), dtype=bool) if rows is None else rows
    kept = np.ones(len(data), dtype=bool)
    for place in range(head):
        kept[offsets[:-1][cut] + place] = False
    for place in range(tail):
        kept[offsets[1:][cut] - 1 - place] = False
    shorter = np.concatenate([[0], np.cumsum(np.diff(offsets) - (head + tail) * cut)]).astype(np.int64)
    return pa.LargeStringArray.from_buffers(len(wide), pa.py_buffer(shorter), pa.py_buffer(data[kept]))


def narrowed(wide: pa.LargeStringArray) -> Text:
    """The same texts with 32-bit offsets where they fit."""
    return wide if wide.nbytes > NARROW_LIMIT else wide.cast(pa.string())


def interleaved(is_second: pa.BooleanArray, first: Text, second: Text) -> Text:
    """The texts of two arrays in the order of the rows they belong to: row by row, whether it is the next of `second`."""
    wide = pa.concat_arrays([part.cast(pa.large_string()) for part in (first, second)])
    places = np.argsort(is_second.to_numpy(zero_copy_only=False), kind="stable")  # where each row of `wide` came from
    back = np.empty(len(places), dtype=np.int64)
    back[places] = np.arange(len(places))
    return narrowed(wide.take(pa.array(back)))


def bytes_of(records: Text) -> memoryview:
    """The records' bytes, one after the other, not copied."""
    _, offsets, values = records.buffers()
    if len(records) == 0 or values is None:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, dtype=np.int32 if isinstance(records, pa.StringArray) else np.int64)
    return memoryview(values)[int(bounds[records.offset]) : int(bounds[records.offset + len(records)])]
