"""Read rows of a partition's change log by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wsync_engine.pipeline.before import BeforeField
from wsync_sdk import BEFORE, OP, FatalError, RowRange, before_type

__all__ = ["ChangeLogReader"]


class ChangeLogReader:
    """Rows of one change log file; forward reads keep at most two row groups in memory.

    :param schema: the stream's fields, with which batches are given (`OP` first). :param before: fields whose before-values it holds (`BEFORE` last).
    :raises FatalError: the file is missing or damaged.
    """

    def __init__(self, path: Path, schema: pa.Schema, before: Sequence[BeforeField] = ()) -> None:
        try:
            self._file = pq.ParquetFile(path, memory_map=False)
        except (OSError, pa.ArrowInvalid) as exc:
            raise FatalError("the run's change log is missing or damaged", next_step="run the sync again") from exc
        fields = [pa.field(OP, pa.string(), nullable=False), *schema]
        self.schema = pa.schema([*fields, pa.field(BEFORE, before_type([field.path for field in before]))] if before else fields)
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.metadata.num_row_groups)]
        self._starts = [sum(counts[:group]) for group in range(len(counts) + 1)]
        self.rows: int = self._starts[-1]
        self._cache: dict[int, pa.Table] = {}

    def within(self, span: RowRange) -> RowRange:
        """The span as far as its first two row groups reach: what `read` has in memory anyway."""
        second = next(group for group, stop in enumerate(self._starts[1:]) if stop > span.first) + 2
        return RowRange(span.first, min(span.last, self._starts[min(second, len(self._starts) - 1)] - 1))

    def read(self, span: RowRange) -> pa.RecordBatch:
        """The rows of `span` as one batch."""
        tables = []
        for group in range(len(self._starts) - 1):
            start, stop = self._starts[group], self._starts[group + 1]
            if stop <= span.first or start > span.last:
                continue
            low, high = max(span.first, start), min(span.last + 1, stop)
            tables.append(self._group(group).slice(low - start, high - low))
        batches = pa.concat_tables(tables).combine_chunks().to_batches()
        return batches[0]

    def _group(self, group: int) -> pa.Table:
        if group not in self._cache:
            for old in [other for other in self._cache if other < group - 1 or other > group]:
                del self._cache[old]
            table = self._file.read_row_group(group, columns=self.schema.names)
            self._cache[group] = table.select(self.schema.names).cast(self.schema)
        return self._cache[group]

    def close(self) -> None:
        """Close the file."""
        self._cache.clear()
        self._file.close()
