"""From a batch of changes to the records of a request: an object per change, and where the config says so the operation in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from wsync_sdk import OP, Operation
from wsync_sdk.records import JsonStyle, Text, interleaved, json_records

__all__ = ["Style", "rendered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How the records of one operation are written.

    :param op_field: the field that tells upserts from deletes; None: there is none.
    """

    json: JsonStyle
    op_field: str | None = None


def rendered(changes: pa.RecordBatch, key: Sequence[str], upserts: Style, deletes: Style) -> Text:
    """One record per change, in order. A delete's record holds the key, and the operation where the style says so."""
    schema = changes.schema
    is_delete = pc.equal(changes.column(0), str(Operation.DELETE))
    fields = [place for place, name in enumerate(schema.names) if place > 0 and name != OP]
    keys = [place for place in fields if schema.names[place] in key]
    if not pc.any(is_delete).as_py():
        return _records(changes.select(fields), upserts, Operation.UPSERT)
    if pc.all(is_delete).as_py():
        return _records(changes.select(keys), deletes, Operation.DELETE)
    return interleaved(
        is_delete,
        _records(changes.filter(pc.invert(is_delete)).select(fields), upserts, Operation.UPSERT),
        _records(changes.filter(is_delete).select(keys), deletes, Operation.DELETE),
    )


def _records(fields: pa.RecordBatch, style: Style, operation: Operation) -> Text:
    if style.op_field is not None:
        word = pa.repeat(pa.scalar(str(operation)), fields.num_rows)
        fields = fields.add_column(0, pa.field(style.op_field, pa.string()), word)
    return json_records(fields, style.json)
