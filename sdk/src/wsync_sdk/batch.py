"""The row adapter: lets a simple connector yield dicts and still give Arrow batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa

from wsync_sdk.errors import PluginError

__all__ = ["batches_from_rows"]


def batches_from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, *, batch_rows: int = 10_000) -> Iterator[pa.RecordBatch]:
    """Batches of `schema` from an iterable of mappings, at most `batch_rows` in memory; a missing name is NULL.

    Some microseconds a row: right for APIs, too slow for warehouses.

    :raises PluginError: a row has a name that is not in the schema, or a value that its type can't hold.
    """
    names = frozenset(schema.names)
    iterator = iter(rows)
    while page := list(islice(iterator, batch_rows)):
        for row in page:
            if extra := row.keys() - names:
                raise PluginError(
                    f"a row has the column `{min(extra)}`, which the schema lacks",
                    next_step="add the column to the schema",
                )
        try:
            yield pa.RecordBatch.from_pylist(page, schema=schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as exc:
            raise PluginError("a value does not fit its column's type", next_step="mend the row or the schema") from exc
