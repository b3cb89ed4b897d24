"""Rows that are made up when they are read: the same ones for the same number, in any process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa

from wsync_generated.config import GeneratedConfig
from wsync_sdk import (
    CheckReport,
    ConfigError,
    Durable,
    Estimate,
    Finding,
    PlanContext,
    Preview,
    Query,
    ReadLimits,
    ReadPlan,
    Source,
    Split,
)

__all__ = ["SCHEMA", "GeneratedSource", "made_up"]

SCHEMA = pa.schema([("id", pa.int64()), ("score", pa.int32()), ("tier", pa.string())])
TIERS = pa.array(["free", "starter", "team", "business", "enterprise"])
LIFETIME = timedelta(days=7)
_VERSION = "1"
_PRIME = 1_000_003
_PARTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    first: int
    rows: int
    revision: int
    changed_parts: int
    batch_rows: int


def made_up(first: int, rows: int, *, revision: int, changed_parts: int) -> pa.RecordBatch:
    """Rows `first`…; each revision changes the score of `changed_parts` in 10,000 of them."""
    ids = np.arange(first, first + rows, dtype=np.int64)
    mixed = (ids * _PRIME) % 2_147_483_647
    scores = (mixed % 100_000).astype(np.int32)
    for number in range(1, revision + 1):
        scores[(mixed + number * 7_919) % _PARTS < changed_parts] += np.int32(number)
    tiers = pa.DictionaryArray.from_arrays(pa.array((mixed % len(TIERS)).astype(np.int8)), TIERS)
    return pa.record_batch([pa.array(ids), pa.array(scores), tiers.cast(pa.string())], schema=SCHEMA)


class GeneratedSource(Source):
    """A result of as many rows as the config says, whatever the query is."""

    def __init__(self, config: GeneratedConfig) -> None:
        self._config = config

    def check(self) -> CheckReport:
        """There is nothing to reach."""
        return CheckReport(
            findings=(Finding(name="reachable", ok=True, message=f"{self._config.rows} rows are made up when they are read"),)
        )

    def estimate(self, query: Query) -> Estimate:
        """Exact."""
        _refuse_parameters(query)
        return Estimate(rows=self._config.rows)

    def preview(self, query: Query, rows: int) -> Preview:
        """The first rows."""
        _refuse_parameters(query)
        first = self._batch(0, min(rows, self._config.rows))
        return Preview(schema=SCHEMA, rows=first, estimate=self.estimate(query))

    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        """As many splits as are wanted, each of rows in a row."""
        _refuse_parameters(query)
        ctx.started(b"generated")
        rows = self._config.rows
        count = max(1, min(limits.max_splits, -(-rows // limits.rows_per_split)))
        bounds = [rows * number // count for number in range(count + 1)]
        tokens = [
            _Token(
                first=low,
                rows=high - low,
                revision=self._config.revision,
                changed_parts=self._changed_parts,
                batch_rows=limits.batch_rows,
            )
            for low, high in pairwise(bounds)
        ]
        splits = tuple(
            Split(index=index, token=json.dumps(asdict(token)).encode(), estimated_rows=token.rows) for index, token in enumerate(tokens)
        )
        return ReadPlan(
            schema=SCHEMA,
            splits=splits,
            lifetime=Durable(until=datetime.now(UTC) + LIFETIME),
            handle=b"generated",
            connector_version=_VERSION,
            estimated_rows=rows,
        )

    def renew(self, plan: ReadPlan) -> ReadPlan:
        """It does not grow old."""
        return plan

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        """The split's rows, from any of them on."""
        token = _Token(**json.loads(split.token))
        for first in range(token.first + offset, token.first + token.rows, token.batch_rows):
            rows = min(token.batch_rows, token.first + token.rows - first)
            yield made_up(first, rows, revision=token.revision, changed_parts=token.changed_parts)

    def release(self, plan: ReadPlan) -> None:
        """Nothing is held."""

    def cancel(self, handle: bytes) -> None:
        """Nothing runs elsewhere."""

    @property
    def _changed_parts(self) -> int:
        return round(self._config.changed_percent * _PARTS / 100)

    def _batch(self, first: int, rows: int) -> pa.RecordBatch:
        return made_up(first, rows, revision=self._config.revision, changed_parts=self._changed_parts)


def _refuse_parameters(query: Query) -> None:
    if query.parameters:
        raise ConfigError("made-up rows take no parameters", next_step="remove `parameters`")
