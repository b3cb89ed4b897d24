"""Golden records: what each Arrow type becomes in JSON, fixed byte by byte, and what is refused rather than altered."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsync_sdk import Nulls, with_nulls
from wsync_sdk.records import JsonStyle, interleaved, is_marked, json_records, mark_of, unsupported
from wsync_sdk.records.values import base64_text

NAN, INFINITY = float("nan"), float("inf")
JSON = {b"wsync.logical": b"json"}


def style(**changes: Any) -> JsonStyle:
    return JsonStyle(
        **{
            "separator": b"\n",
            "nulls_sent": True,
            "non_finite_rejected": True,
            "decimals_as_text": False,
            **changes,
        }
    )


def records(columns: dict[str, Any], *, schema: pa.Schema | None = None, **changes: Any) -> list[str]:
    """The records of a batch whose columns are Arrow arrays or lists, without their separators."""
    arrays = [column if isinstance(column, pa.Array) else pa.array(column) for column in columns.values()]
    fields = schema if schema is not None else pa.schema([pa.field(name, array.type) for name, array in zip(columns, arrays, strict=True)])
    written = json_records(pa.RecordBatch.from_arrays(arrays, schema=fields), style(**changes)).to_pylist()
    assert all(record.endswith("\n") for record in written)
    return [record[:-1] for record in written]


def one(array: pa.Array, **changes: Any) -> list[str]:
    """What the values of a single field become."""
    return [record.removeprefix('{"v":').removesuffix("}") for record in records({"v": array}, **changes)]


GOLDEN = [
    (pa.array([True, False, None]), ["true", "false", "null"]),
    (pa.array([-(2**63), 2**63 - 1, None]), ["-9223372036854775808", "9223372036854775807", "null"]),
    (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
    (pa.array([0.1, 1e300, -0.0, 5e-324, 3.0]), ["0.1", "1.0e300", "-0.0", "5.0e-324", "3.0"]),
    (pa.array([0.1], pa.float32()), ["0.1"]),
    (pa.array([1.5], pa.float32()).cast(pa.float16()), ["1.5"]),
    (pa.array([Decimal("12.340"), Decimal("-0.001"), None], pa.decimal128(10, 3)), ["12.340", "-0.001", "null"]),
    (pa.array([Decimal("1" * 50)], pa.decimal256(50, 0)), ["1" * 50]),
    (pa.array(['é 日本 "\\/\u2028\x00\x1f\n', "", None]), ['"é 日本 \\"\\\\/\u2028\\u0000\\u001f\\n"', '""', "null"]),
    (pa.array(["a", None], pa.large_string()), ['"a"', "null"]),
    (pa.array(["a", None], pa.string_view()), ['"a"', "null"]),
    (pa.array(["a", "b", "a", None]).dictionary_encode(), ['"a"', '"b"', '"a"', "null"]),
    (pa.array([b"", b"\xff", b"\xff\x00", b"abc", b"abcd", None]), ['""', '"/w=="', '"/wA="', '"YWJj"', '"YWJjZA=="', "null"]),
    (pa.array([b"ab", None], pa.binary(2)), ['"YWI="', "null"]),
    (pa.array([date(1, 1, 1), date(9999, 12, 31), None]), ['"0001-01-01"', '"9999-12-31"', "null"]),
    (pa.array([time(1, 2, 3, 4), time(0), None]), ['"01:02:03.000004"', '"00:00:00"', "null"]),
    (pa.array([datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC), None], pa.timestamp("us")), ['"2024-01-02T03:04:05.000006"', "null"]),
    (pa.array([datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), None], pa.timestamp("us", "UTC")), ['"2024-01-02T03:04:05Z"', "null"]),
    (pa.array([datetime(2024, 7, 2, 3, 4, 5, tzinfo=UTC)], pa.timestamp("us", "Europe/Berlin")), ['"2024-07-02T03:04:05Z"']),
    (pa.array([datetime(2024, 1, 2, tzinfo=UTC)], pa.timestamp("us", "Etc/UTC")), ['"2024-01-02T00:00:00Z"']),
    (pa.array([timedelta(seconds=5)], pa.duration("s")), ['"PT5S"']),
    (
        pa.array([UUID("00112233-4455-6677-8899-aabbccddeeff").bytes, None], pa.binary(16)).cast(pa.uuid()),
        ['"00112233-4455-6677-8899-aabbccddeeff"', "null"],
    ),
    (pa.nulls(1), ["null"]),
    (pa.array([[1, None], [], None]), ["[1,null]", "[]", "null"]),
    (pa.array([[b"a", None], None, [b"bc"]]), ['["YQ==",null]', "null", '["YmM="]']),
    (pa.array([[[Decimal("1.50")]], None]), ["[[1.50]]", "null"]),
    (pa.array([{"a": None, "b": b"x"}, None]), ['{"a":null,"b":"eA=="}', "null"]),
    (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), ['{"k":1}', "null"]),
    (pa.array([[("k", b"x")]], pa.map_(pa.string(), pa.binary())), ['{"k":"eA=="}']),
]


@pytest.mark.parametrize(("array", "texts"), GOLDEN, ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "")
def test_each_type_has_its_json(array: pa.Array, texts: list[str]) -> None:
    assert one(array) == texts
    assert one(pa.concat_arrays([array, array])[len(array) :]) == texts, "a slice is written like a whole array"


def test_null_fields_are_left_out_where_that_is_wanted() -> None:
    columns = {"id": [1, 2], "name": ["a", None], "s": pa.array([{"x": None}, None], pa.struct([("x", pa.int64())]))}

    assert records(columns, nulls_sent=False) == ['{"id":1,"name":"a","s":{}}', '{"id":2}']


def test_decimals_are_text_where_that_is_wanted() -> None:
    assert one(pa.array([Decimal("12.340"), None], pa.decimal128(10, 3)), decimals_as_text=True) == ['"12.340"', "null"]
    assert one(pa.array([[Decimal("1.5")]]), decimals_as_text=True) == ['["1.5"]']


# -- JSON text

NESTED = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("extra", pa.string(), metadata=JSON),
        pa.field("s", pa.struct([pa.field("in", pa.string(), metadata=JSON), pa.field("n", pa.int64())])),
    ]
)


def test_json_text_arrives_nested_at_every_depth() -> None:
    structs = pa.array([{"in": "[1]", "n": 1}, {"in": None, "n": None}, None], NESTED.field("s").type)
    columns = {"id": [1, 2, 3], "extra": ['{"a": {"b": "x\\n"}}', "null", None], "s": structs}

    assert records(columns, schema=NESTED) == [
        '{"id":1,"extra":{"a": {"b": "x\\n"}},"s":{"n":1,"in":[1]}}',
        '{"id":2,"extra":null,"s":{"n":null,"in":null}}',
        '{"id":3,"extra":null,"s":null}',
    ]
    assert records(columns, schema=NESTED, nulls_sent=False) == [
        '{"id":1,"extra":{"a": {"b": "x\\n"}},"s":{"n":1,"in":[1]}}',
        '{"id":2,"extra":null,"s":{}}',
        '{"id":3}',
    ]


def test_json_text_of_several_lines_stays_one_record() -> None:
    schema = pa.schema([pa.field("v", pa.string(), metadata=JSON)])

    assert records({"v": ['{\n  "a":\r\n 1\t}']}, schema=schema) == ['{"v":{   "a":   1\t}}']


def test_a_field_name_is_quoted() -> None:
    schema = pa.schema([pa.field('a"b', pa.string(), metadata=JSON)])

    assert records({'a"b': ["1"]}, schema=schema) == ['{"a\\"b":1}']


NO_JSON = [
    "",
    " ",
    "{",
    "nope",
    "NaN",
    "1,2",
    '1,"admin":true',
    '1],"admin":[1',
    '1}{"a":1',
    "1}\n{",
    "'a'",
    "[1,]",
    "\x01",
    '"a\n"',
    "1 2",
    "]",
    "}",
]


@pytest.mark.parametrize("text", NO_JSON)
def test_text_that_is_no_json_value_refuses_its_row_and_no_other(text: str) -> None:
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("v", pa.string(), metadata=JSON)])

    written = records({"id": [1, 2, 3], "v": ['"good"', text, None]}, schema=schema)

    assert written == ['{"id":1,"v":"good"}', "!invalid_json v", '{"id":3,"v":null}']


@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        )
    )
)
def test_any_json_arrives_as_it_was(values: list[Any]) -> None:
    schema = pa.schema([pa.field("v", pa.string(), metadata=JSON)])
    if not values:
        return

    written = records({"v": pa.array([json.dumps(value) for value in values], pa.string())}, schema=schema)

    assert [json.loads(record)["v"] for record in written] == values


# -- values without a JSON form


@pytest.mark.parametrize(
    ("array", "field"),
    [
        (pa.array([1.0, NAN, INFINITY, None]), "v"),
        (pa.array([1.0, NAN, -INFINITY, None], pa.float32()), "v"),
        (pa.array([[1.0], [0.0, NAN], [INFINITY], None]), "v"),
        (pa.array([{"x": 1.0}, {"x": NAN}, {"x": INFINITY}, None]), "v.x"),
        (pa.array([{"x": [1.0]}, {"x": [NAN]}, {"x": [INFINITY]}, None]), "v.x"),
    ],
)
def test_rows_with_nan_or_infinity_are_refused(array: pa.Array, field: str) -> None:
    assert [record.startswith("!") for record in records({"v": array})] == [False, True, True, False]
    assert records({"v": array})[1] == f"!not_finite {field}"


def test_what_a_null_list_covers_refuses_no_row() -> None:
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array([1.0, NAN, INFINITY]), mask=pa.array([False, True, False]))

    assert records({"v": lists}) == ['{"v":[1.0]}', '{"v":null}', "!not_finite v"]


def test_nan_and_infinity_are_null_where_that_is_wanted() -> None:
    assert one(pa.array([1.0, NAN, INFINITY]), non_finite_rejected=False) == ["1.0", "null", "null"]


def test_dates_that_iso_8601_does_not_have_are_refused() -> None:
    days = pa.array([0, 2_932_897, -719_163, None], pa.int32()).cast(pa.date32())
    instants = pa.array([0, 253_402_300_800, -62_135_596_801, None], pa.int64()).cast(pa.timestamp("s"))

    assert [record.startswith("!date_out_of_range") for record in records({"v": days})] == [False, True, True, False]
    assert [record.startswith("!date_out_of_range") for record in records({"v": instants})] == [False, True, True, False]


def test_a_mark_names_the_reason_and_the_field() -> None:
    written = pa.array(["!not_finite a.b\n", "{}\n"])

    assert is_marked(written).tolist() == [True, False]
    assert mark_of(written[0].as_py()) == ("not_finite", "a.b")


# -- order


@given(is_second=st.lists(st.booleans()))
def test_interleaved_texts_stand_in_their_rows_order(is_second: list[bool]) -> None:
    rows = [f"{'second' if flag else 'first'} {number}" for number, flag in enumerate(is_second)]
    first, second = ([row for row in rows if row.startswith(word)] for word in ("first", "second"))

    written = interleaved(pa.array(is_second, pa.bool_()), pa.array(first, pa.string()), pa.array(second, pa.string()))

    assert written.to_pylist() == rows


def test_no_rows_give_no_records() -> None:
    assert records({"id": pa.array([], pa.int64())}) == []


@given(values=st.lists(st.none() | st.binary(max_size=9), min_size=1), start=st.integers(0, 5))
def test_base64_is_that_of_the_standard_library(values: list[bytes | None], start: int) -> None:
    import base64

    array = pa.array(values, pa.binary())[start:]

    assert base64_text(array).to_pylist() == [None if value is None else base64.b64encode(value).decode() for value in values[start:]]


def test_types_that_no_json_can_hold_are_named() -> None:
    interval = pa.month_day_nano_interval()

    assert unsupported(pa.struct([("a", pa.list_(interval))])) == interval
    assert unsupported(pa.map_(pa.int64(), pa.int64())) is not None
    assert unsupported(pa.struct([("a", pa.list_(pa.binary()))])) is None


@pytest.mark.parametrize(("nulls_sent", "expected"), [(True, '{"x":null,"o":{"d":null}}'), (False, '{"s":null,"o":{"c":null}}')])
def test_a_field_that_asks_is_written_its_own_way_whatever_the_style_says(nulls_sent: bool, expected: str) -> None:
    inner = [with_nulls(pa.field("c", pa.string()), Nulls.SEND if not nulls_sent else Nulls.OMIT), pa.field("d", pa.string())]
    asked = Nulls.OMIT if nulls_sent else Nulls.SEND
    schema = pa.schema([pa.field("x", pa.int64()), with_nulls(pa.field("s", pa.string()), asked), pa.field("o", pa.struct(inner))])
    rows = pa.RecordBatch.from_pylist([{"o": {}}, {"x": 1, "s": "a", "o": {"c": "b", "d": "e"}}], schema=schema)

    written = json_records(rows, style(nulls_sent=nulls_sent))

    assert json.loads(str(written[0])) == json.loads(expected)
    assert json.loads(str(written[1])) == {"x": 1, "s": "a", "o": {"c": "b", "d": "e"}}
