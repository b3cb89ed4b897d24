"""Cut rows into chunks, and find which rows of a partition still need sending: pure functions over row numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from wsync_sdk import RowRange

__all__ = ["cut", "halves", "leaves", "remaining", "verdict_ranges"]


def cut(first: int, record_bytes: npt.NDArray[np.int64], *, max_rows: int, max_bytes: int) -> list[RowRange]:
    """Consecutive chunks over rows numbered from `first`, each within both bounds; a row larger than `max_bytes` stands alone."""
    ends = np.cumsum(record_bytes)
    chunks, start, rows = [], 0, len(record_bytes)
    while start < rows:
        spent = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, spent + max_bytes, side="right"))
        stop = max(start + 1, min(stop, start + max_rows))
        chunks.append(RowRange(first + start, first + stop - 1))
        start = stop
    return chunks


def halves(chunk: RowRange) -> tuple[RowRange, RowRange]:
    """The two halves of a chunk of at least two rows."""
    middle = (chunk.first + chunk.last) // 2
    return RowRange(chunk.first, middle), RowRange(middle + 1, chunk.last)


def leaves(chunks: Iterable[RowRange]) -> list[RowRange]:
    """Of chunks that were bisected only the smallest. Both halves are stored in one transaction, so they always cover their parent."""
    ordered = sorted(set(chunks), key=lambda chunk: (chunk.first, -chunk.last))
    pairs = zip_longest(ordered, ordered[1:])
    return [chunk for chunk, after in pairs if after is None or after.last > chunk.last or after.first > chunk.last]


def remaining(rows: int, done: Sequence[RowRange]) -> list[RowRange]:
    """The rows 0..rows-1 that no range of `done` covers, as ranges in order."""
    gaps, at = [], 0
    for span in sorted(done):
        if span.first > at:
            gaps.append(RowRange(at, span.first - 1))
        at = max(at, span.last + 1)
    if at < rows:
        gaps.append(RowRange(at, rows - 1))
    return gaps


def verdict_ranges(chunk: RowRange, rejected: Iterable[int], unknown: Iterable[int]) -> list[tuple[RowRange, str]]:
    """A chunk's verdicts as few ranges; `rejected` and `unknown` are places in the chunk, all others were accepted."""
    verdicts = dict.fromkeys(rejected, "rejected") | dict.fromkeys(unknown, "unknown")
    ranges: list[tuple[RowRange, str]] = []
    at = 0
    for place in sorted(verdicts):
        if place > at:
            ranges.append((RowRange(chunk.first + at, chunk.first + place - 1), "accepted"))
        ranges.append((RowRange(chunk.first + place, chunk.first + place), verdicts[place]))
        at = place + 1
    if at < chunk.rows:
        ranges.append((RowRange(chunk.first + at, chunk.last), "accepted"))
    return ranges
