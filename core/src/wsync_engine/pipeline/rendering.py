"""Render rows of a change log and cut them into chunks, block by block: little enough that a few blocks fit into memory, enough to be quick.

One thread. A chunk's rows are slices of its block, so the block's memory is free when its last chunk is settled: `Rendering.held_bytes` says how much
is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.chunking import cut, remaining
from wsync_sdk import PluginError, RowRange, Sink, StreamLimits, Target

__all__ = ["Oversized", "Piece", "Rendering", "part_of"]

BLOCK_CHUNKS = 16
MOST_BLOCK_ROWS = 32_768
BLOCK_BYTES = 8 * 1024 * 1024
"""What a block is to take, as far as the rows before it tell."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Block:
    """Rendered rows from `first` on. `open_pieces`: chunks of it that are not settled."""

    first: int
    changes: pa.RecordBatch
    records: Any
    bytes: int
    open_pieces: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows for one call, as slices of their block."""

    range: RowRange
    changes: pa.RecordBatch
    records: Any
    block: _Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Oversized:
    """A row whose record is larger than the stream takes; `change`: the row."""

    row: int
    change: pa.RecordBatch


class Rendering:
    """Pieces of one partition, in the order of their rows. `held_bytes`: of blocks that have unsettled pieces."""

    def __init__(self, reader: ChangeLogReader, sink: Sink, target: Target, limits: StreamLimits) -> None:
        self._reader = reader
        self._sink = sink
        self._target = target
        self._limits = limits
        self._bytes_per_row = 0.0
        self.held_bytes = 0

    def again(self, span: RowRange) -> list[Piece]:
        """The rows of a chunk that was cut before, as one piece."""
        block = self._block(span)
        return self._pieces(block, [span])

    def fresh(self, gaps: Sequence[RowRange]) -> Iterator[tuple[list[Piece], list[Oversized]]]:
        """Rows that were never sent, cut by the stream's limits, a block at a time; rows beyond its limit of a record apart."""
        for gap in gaps:
            first = gap.first
            while first <= gap.last:
                block = self._block(self._window(RowRange(first, min(gap.last, first + self._block_rows() - 1))))
                sizes = _record_bytes(block)
                chunks = cut(first, sizes, max_rows=self._limits.max_rows, max_bytes=self._limits.max_bytes)
                oversized = self._oversized(block, sizes)
                yield self._pieces(block, _without(chunks, [one.row for one in oversized])), oversized
                first += block.changes.num_rows

    def half(self, piece: Piece, span: RowRange) -> Piece:
        """A part of a piece, of the same block."""
        return self._pieces(piece.block, [span])[0]

    def settled(self, piece: Piece) -> None:
        """Nothing is to be done with the piece any more."""
        piece.block.open_pieces -= 1
        if not piece.block.open_pieces:
            self.held_bytes -= piece.block.bytes

    def _window(self, span: RowRange) -> RowRange:
        """As much of the span as is rendered at once: wide rows are few in a row group. Whole chunks, where it holds some."""
        near = self._reader.within(span)
        whole = near.rows // self._limits.max_rows * self._limits.max_rows
        return RowRange(near.first, near.first + whole - 1) if near.last < span.last and whole else near

    def _block_rows(self) -> int:
        """A multiple of the most rows of a chunk: none is cut short for the block's end, where rows are what limits it."""
        most = self._limits.max_rows
        wanted = min(most * BLOCK_CHUNKS, MOST_BLOCK_ROWS)
        if self._bytes_per_row:
            wanted = min(wanted, int(BLOCK_BYTES / self._bytes_per_row))
        return max(1, wanted // most) * most

    def _block(self, span: RowRange) -> _Block:
        changes = self._reader.read(span)
        records = self._sink.render(changes, self._target)
        if records is not None and len(records) != changes.num_rows:
            raise PluginError(
                "render gave another number of records than there are changes", next_step="report it to the connector's author"
            )
        held = int(changes.nbytes) + (0 if records is None else int(records.nbytes))
        self._bytes_per_row = held / max(1, changes.num_rows)
        return _Block(first=span.first, changes=changes, records=records, bytes=held)

    def _pieces(self, block: _Block, spans: Sequence[RowRange]) -> list[Piece]:
        if spans and not block.open_pieces:
            self.held_bytes += block.bytes
        block.open_pieces += len(spans)
        pieces = []
        for span in spans:
            start = span.first - block.first
            records = None if block.records is None else block.records.slice(start, span.rows)
            pieces.append(Piece(range=span, changes=part_of(block.changes, start, span.rows), records=records, block=block))
        return pieces

    def _oversized(self, block: _Block, sizes: npt.NDArray[np.int64]) -> list[Oversized]:
        limit = self._limits.max_record_bytes
        if limit is None or int(sizes.max(initial=0)) <= limit:
            return []
        places = [int(place) for place in np.flatnonzero(sizes > limit)]
        return [Oversized(row=block.first + place, change=part_of(block.changes, place, 1)) for place in places]


def part_of(changes: pa.RecordBatch, start: int, rows: int) -> pa.RecordBatch:
    """Some rows of a batch; nothing is copied."""
    return changes.slice(start, rows)


def _without(chunks: Sequence[RowRange], rows: Sequence[int]) -> list[RowRange]:
    """The chunks, cut around some rows."""
    if not rows:
        return list(chunks)
    kept = []
    for chunk in chunks:
        inside = [RowRange(row - chunk.first, row - chunk.first) for row in rows if chunk.first <= row <= chunk.last]
        kept += [RowRange(chunk.first + gap.first, chunk.first + gap.last) for gap in remaining(chunk.rows, inside)]
    return kept


def _record_bytes(block: _Block) -> npt.NDArray[np.int64]:
    """Bytes of each record as the limits count them; without records, the batch's mean."""
    if block.records is None:
        return np.full(block.changes.num_rows, max(1, block.changes.nbytes // max(1, block.changes.num_rows)), dtype=np.int64)
    lengths: npt.NDArray[np.int64] = pc.binary_length(block.records).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths
