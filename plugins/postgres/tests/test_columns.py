"""Every type by the written rule, and no value that means something else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from wsync_postgres.columns import JSON_METADATA
from wsync_postgres.config import PostgresConfig
from wsync_postgres.source import PostgresSource
from wsync_sdk import REFUSED_COLUMNS, Query, Secret

from .conftest import Database, Server

TZ = pa.timestamp("us", tz="UTC")


@pytest.fixture(scope="module")
def source(server: Server) -> Iterator[PostgresSource]:
    with PostgresSource(PostgresConfig(url=Secret(server.url("postgres")))) as opened:
        yield opened


def one(source: PostgresSource, expression: str) -> tuple[pa.Field, Any, Any]:
    """Field, value and refused columns of a query with one row."""
    preview = source.preview(Query(sql=f"SELECT {expression} AS v"), 1)
    row = preview.rows.to_pylist()[0]
    return preview.schema.field("v"), row["v"], row.get(REFUSED_COLUMNS)


@pytest.mark.parametrize(
    ("expression", "type_", "value"),
    [
        ("true", pa.bool_(), True),
        ("1::int2", pa.int16(), 1),
        ("1::int4", pa.int32(), 1),
        ("1::int8", pa.int64(), 1),
        ("1.5::float4", pa.float32(), 1.5),
        ("'-Infinity'::float8", pa.float64(), float("-inf")),
        ("'é😀'::text", pa.string(), "é😀"),
        ("'a'::varchar(3)", pa.string(), "a"),
        ("'a'::char(3)", pa.string(), "a  "),
        ("'a'::name", pa.string(), "a"),
        ("'a'::\"char\"", pa.string(), "a"),
        ("'\\x00ff'::bytea", pa.binary(), b"\0\xff"),
        ("'6F9619FF-8B86-D011-B42D-00CF4FC964FF'::uuid", pa.string(), "6f9619ff-8b86-d011-b42d-00cf4fc964ff"),
        ("1.50::numeric(10,2)", pa.decimal128(10, 2), Decimal("1.50")),
        (
            "(-99999999999999999999999999999999999999)::numeric(38)",
            pa.decimal128(38, 0),
            Decimal("-99999999999999999999999999999999999999"),
        ),
        ("1.50::numeric", pa.string(), "1.5"),
        ("100.00::numeric", pa.string(), "100"),
        ("1200::numeric", pa.string(), "1200"),
        ("(-0.0)::numeric", pa.string(), "0"),
        ("'NaN'::numeric", pa.string(), "NaN"),
        ("1::numeric(39,2)", pa.string(), "1.00"),
        ("1234::numeric(2,-2)", pa.string(), "1200"),
        ("DATE '0001-01-01'", pa.date32(), date(1, 1, 1)),
        ("DATE '9999-12-31'", pa.date32(), date(9999, 12, 31)),
        ("TIME '23:59:59.999999'", pa.time64("us"), time(23, 59, 59, 999999)),
        ("TIMESTAMP '9999-12-31 23:59:59.999999'", pa.timestamp("us"), datetime(9999, 12, 31, 23, 59, 59, 999999)),  # noqa: DTZ001 - without zone is meant
        ("TIMESTAMPTZ '0001-01-01 00:00:00+00'", TZ, datetime(1, 1, 1, tzinfo=UTC)),
        ("TIMESTAMPTZ '2026-01-01 02:00:00+02'", TZ, datetime(2026, 1, 1, tzinfo=UTC)),
        ("TIMETZ '01:02:03+04'", pa.string(), "01:02:03+04"),
        ("INTERVAL '1 year 2 days 3 seconds'", pa.string(), "1 year 2 days 00:00:03"),
        ("'10.0.0.1/8'::inet", pa.string(), "10.0.0.1/8"),
        ("B'101'", pa.string(), "101"),
        ("int4range(1, 5)", pa.string(), "[1,5)"),
        ("'(1,2)'::point", pa.string(), "(1,2)"),
        ("ROW(1, 'a')", pa.string(), "(1,a)"),
        ("1::oid", pa.string(), "1"),
        ("'1 2'::int2vector", pa.string(), "1 2"),
        ("to_tsvector('simple', 'a b')", pa.string(), "'a':1 'b':2"),
        ("NULL", pa.string(), None),
        ("ARRAY[1, NULL]", pa.list_(pa.int32()), [1, None]),
        ("'{}'::int[]", pa.list_(pa.int32()), []),
        ("NULL::text[]", pa.list_(pa.string()), None),
        ("ARRAY['a', '']", pa.list_(pa.string()), ["a", ""]),
        ("ARRAY[1.50, 2]", pa.list_(pa.string()), ["1.50", "2"]),
        ("ARRAY[uuid '6F9619FF-8B86-D011-B42D-00CF4FC964FF']", pa.list_(pa.string()), ["6f9619ff-8b86-d011-b42d-00cf4fc964ff"]),
        ("ARRAY[DATE '2026-01-01', NULL]", pa.list_(pa.date32()), [date(2026, 1, 1), None]),
        ("ARRAY[TIMESTAMPTZ '2026-01-01 00:00+00']", pa.list_(TZ), [datetime(2026, 1, 1, tzinfo=UTC)]),
        ("ARRAY['\\x00'::bytea]", pa.list_(pa.binary()), [b"\0"]),
    ],
)
def test_a_value_arrives_by_the_rule_of_its_type(source: PostgresSource, expression: str, type_: pa.DataType, value: Any) -> None:
    field, got, refused = one(source, expression)

    assert (field.type, got, refused) == (type_, value, None)
    assert field.metadata is None


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'{\"a\": [1]}'::json", '{"a": [1]}'),
        ("'{\"a\":[1]}'::jsonb", '{"a": [1]}'),
        ("ARRAY['{\"a\":1}'::jsonb, NULL]", '[{"a": 1}, null]'),
    ],
)
def test_json_is_text_that_is_marked_as_json(source: PostgresSource, expression: str, value: str) -> None:
    field, got, _ = one(source, expression)

    assert (field.type, field.metadata, got) == (pa.string(), JSON_METADATA, value)


@pytest.mark.parametrize(
    "expression",
    [
        "DATE 'infinity'",
        "DATE '-infinity'",
        "DATE '0001-12-31 BC'",
        "DATE '10000-01-01'",
        "TIME '24:00'",
        "TIMESTAMP 'infinity'",
        "TIMESTAMP '-infinity'",
        "TIMESTAMP '0044-03-15 BC'",
        "TIMESTAMP '10000-01-01'",
        "TIMESTAMPTZ 'infinity'",
        "TIMESTAMPTZ '0001-01-01 00:00:00+01'",
        "TIMESTAMPTZ '294276-01-01 00:00:00+00'",
        "ARRAY[DATE '2026-01-01', 'infinity']",
        "ARRAY[NULL, TIMESTAMP '0044-03-15 BC']",
        "ARRAY[TIMESTAMPTZ '-infinity']",
        "ARRAY[[1, 2], [3, 4]]",
        "'NaN'::numeric(10,2)",
    ],
)
def test_a_value_without_an_arrow_form_is_null_and_named(source: PostgresSource, expression: str) -> None:
    _, got, refused = one(source, expression)

    assert (got, refused) == (None, ["v"])


def test_two_refused_values_of_a_row_are_both_named(source: PostgresSource) -> None:
    sql = "SELECT DATE 'infinity' AS a, 1 AS b, TIME '24:00' AS \"it's\""

    (row,) = source.preview(Query(sql=sql), 1).rows.to_pylist()

    assert row == {"a": None, "b": 1, "it's": None, REFUSED_COLUMNS: ["a", "it's"]}


def test_enums_domains_and_arrays_of_them_follow_their_values(database: Database) -> None:
    database.execute("CREATE TYPE mood AS ENUM ('glad'); CREATE DOMAIN small AS int CHECK (VALUE < 10)")
    sql = "SELECT 'glad'::mood AS m, ARRAY['glad'::mood] AS ms, 1::small AS d, ARRAY[1::small] AS ds"

    with PostgresSource(PostgresConfig(url=Secret(database.url))) as source:
        preview = source.preview(Query(sql=sql), 1)

    assert [field.type for field in preview.schema][:4] == [pa.string(), pa.list_(pa.string()), pa.int32(), pa.list_(pa.string())]
    assert preview.rows.to_pylist()[0] == {"m": "glad", "ms": ["glad"], "d": 1, "ds": ["1"], REFUSED_COLUMNS: None}
