"""What the HTTP sink adds to JSON records: operations, and deletes that hold their key only. The JSON itself: sdk/tests/test_records.py."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from wsync_http.records import Style, rendered
from wsync_sdk import OP
from wsync_sdk.records import JsonStyle

JSON = JsonStyle(separator=b"\n", nulls_sent=True, non_finite_rejected=True, decimals_as_text=False)


def records(columns: dict[str, list[Any]], ops: list[str], *, op_field: str | None = None) -> list[str]:
    batch = pa.RecordBatch.from_pydict({OP: ops, **columns})
    style = Style(json=JSON, op_field=op_field)
    return [str(record) for record in rendered(batch, ["id"], style, style)]


def test_a_delete_holds_the_key_and_rows_keep_their_order() -> None:
    columns = {"id": [1, 2, 3, 4], "name": ["a", None, "c", None], "score": [1.0, None, 3.0, None]}

    written = records(columns, ["upsert", "delete", "upsert", "delete"], op_field="op")

    assert written == [
        '{"op":"upsert","id":1,"name":"a","score":1.0}\n',
        '{"op":"delete","id":2}\n',
        '{"op":"upsert","id":3,"name":"c","score":3.0}\n',
        '{"op":"delete","id":4}\n',
    ]
    assert records({"id": [7]}, ["delete"]) == ['{"id":7}\n']
