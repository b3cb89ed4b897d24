"""Nested Arrow values become JSON text, the same as Python's json would write."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsync_postgres.staging import has_nul, sql_type, staged

NESTED = pa.struct(
    [
        ("n", pa.int64()),
        ("f", pa.float64()),
        ("ok", pa.bool_()),
        ('odd "name"', pa.string()),
        ("list", pa.list_(pa.struct([("s", pa.string()), ("deep", pa.list_(pa.list_(pa.int8())))]))),
    ]
)
TEXTS = st.none() | st.text(max_size=8) | st.text(alphabet='"\\\n\t\0\x1f é😀', max_size=8)
VALUES = st.none() | st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "ok": st.none() | st.booleans(),
        'odd "name"': TEXTS,
        "list": st.none()
        | st.lists(
            st.none()
            | st.fixed_dictionaries(
                {"s": TEXTS, "deep": st.none() | st.lists(st.none() | st.lists(st.none() | st.integers(-128, 127), max_size=2), max_size=2)}
            ),
            max_size=3,
        ),
    }
)


@given(rows=st.lists(VALUES, max_size=6), start=st.integers(0, 3))
def test_nested_values_are_the_json_they_say(rows: list[Any], start: int) -> None:
    array = pa.array(rows, NESTED).slice(start)

    texts = staged(array, pa.field("x", NESTED), column_type="jsonb").to_pylist()

    assert [None if text is None else json.loads(text) for text in texts] == rows[start:]


def test_json_inside_a_struct_is_nested_not_quoted() -> None:
    type_ = pa.struct([pa.field("doc", pa.string(), metadata={b"wsync.logical": b"json"})])

    (text,) = staged(pa.array([{"doc": '{"a": 1}'}], type_), pa.field("x", type_), column_type="jsonb").to_pylist()

    assert json.loads(text) == {"doc": {"a": 1}}


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (pa.decimal128(5, 2), "numeric(5, 2)"),
        (pa.uint64(), "numeric(20, 0)"),
        (pa.timestamp("s"), "timestamp"),
        (pa.timestamp("s", tz="UTC"), "timestamptz"),
        (pa.large_string(), "text"),
        (pa.list_(pa.int32()), "jsonb"),
    ],
)
def test_a_made_column_has_the_type_of_its_field(type_: pa.DataType, expected: str) -> None:
    assert sql_type(pa.field("x", type_)) == expected


def test_a_nul_is_found_in_texts_only() -> None:
    assert has_nul(pa.array(["a", "b\0"]))
    assert not has_nul(pa.array(["a", None]))
    assert not has_nul(pa.array([b"\0"]))
