"""The rows of a chunk: which can be sent, which are refused already, and the verdicts of their requests put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wsync_sdk import Chunk, Operation, Rejection, WriteResult
from wsync_sdk.records import SEPARATOR_BYTES, Text, is_marked, mark_of, values_in
from wsync_suprsend.answers import Refusal, Verdicts
from wsync_suprsend.refusals import REASONS

__all__ = ["Places", "Rows", "values_of"]

Places = npt.NDArray[np.int64]


class Rows:
    """Collects what became of a chunk's rows; a row of which nothing is noted was accepted."""

    def __init__(self, chunk: Chunk) -> None:
        assert chunk.records is not None
        self.chunk = chunk
        self.records: Text = chunk.records
        self._rejections: dict[int, Rejection] = {}
        self._unknown: set[int] = set()
        self.is_marked = is_marked(self.records)
        for row in np.flatnonzero(self.is_marked):
            code, field = mark_of(str(self.records[int(row)]))
            if code in REASONS:
                self._rejections[int(row)] = Rejection(row=int(row), code=code, message=f"`{field}` {REASONS[code]}")

    def of(self, operation: Operation) -> Places:
        """Places of the rows of that operation that can be sent, ascending."""
        is_it = pc.equal(self.chunk.changes.column(0), str(operation)).to_numpy(zero_copy_only=False)
        return np.flatnonzero(is_it & ~self.is_marked)

    def picked(self, places: Places) -> Text:
        """The records of these rows; not copied where they are all."""
        return self.records if len(places) == len(self.records) else self.records.take(pa.array(places))

    def note(self, places: Places, verdicts: Verdicts) -> None:
        """Keep the verdicts of a request that carried these rows."""
        for place, refusal in verdicts.refused.items():
            self.refuse(int(places[place]), refusal)
        self._unknown.update(int(places[place]) for place in verdicts.unknown)

    def refuse(self, row: int, refusal: Refusal) -> None:
        """Keep a refusal."""
        self._rejections[row] = Rejection(row=row, code=refusal.code, message=refusal.message, retryable=refusal.retryable)

    def doubt(self, places: Sequence[int] | Places) -> None:
        """Nothing is known of these rows."""
        self._unknown.update(int(place) for place in places)

    def result(self) -> WriteResult:
        """The verdicts on the whole chunk."""
        rejections = tuple(self._rejections[row] for row in sorted(self._rejections))
        accepted = self.chunk.rows - len(rejections) - len(self._unknown)
        return WriteResult(accepted_rows=accepted, rejections=rejections, unknown=tuple(sorted(self._unknown)))


def values_of(records: Text, row: int) -> list[str]:
    """What a record holds, as a message might quote it."""
    return values_in(str(records[row])[:-SEPARATOR_BYTES])
