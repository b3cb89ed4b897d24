"""Mapped values on their way into the table's types."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal

import pyarrow as pa

from wsync_postgres.sink import PostgresSink
from wsync_sdk import Target

from .chunks import RUN, chunk
from .conftest import Database


def test_every_mapped_type_makes_a_column_and_arrives(sink: PostgresSink, database: Database) -> None:
    nested = pa.struct([("a", pa.int32()), ("b", pa.list_(pa.struct([("c", pa.string())]))), ("n", pa.null()), ("f", pa.float64())])
    schema = pa.schema(
        [
            pa.field("id", pa.int32()),
            pa.field("u", pa.uint64()),
            pa.field("d", pa.decimal128(10, 2)),
            pa.field("f", pa.float32()),
            pa.field("ok", pa.bool_()),
            pa.field("raw", pa.large_binary()),
            pa.field("day", pa.date32()),
            pa.field("clock", pa.time64("us")),
            pa.field("seen", pa.timestamp("ms", tz="Europe/Berlin")),
            pa.field("local", pa.timestamp("us")),
            pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
            pa.field("doc", pa.string(), metadata={b"wsync.logical": b"json"}),
            pa.field("nest", nested),
            pa.field("tags", pa.list_(pa.string())),
        ]
    )
    awkward = 'q"uote\\ back\nline \x01 é 😀'
    row = {
        "id": 1,
        "u": 2**64 - 1,
        "d": Decimal("-12.50"),
        "f": 1.5,
        "ok": True,
        "raw": b"\0\xff",
        "day": date(2026, 1, 2),
        "clock": time(3, 4, 5, 6),
        "seen": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "local": datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - without zone is meant
        "kind": "k",
        "doc": '{"x": [1, null]}',
        "nest": {"a": 1, "b": [{"c": awkward}, None, {"c": None}], "n": None, "f": float("inf")},
        "tags": ["a", None, 'b"'],
    }
    target = Target(stream="things", key=("id",), schema=schema)
    token = sink.begin(RUN, target)

    sink.write(chunk([row, {"id": 2}, {"id": 3, "tags": [], "nest": {}}], target=target), token)

    (got,) = database.execute("SELECT id, u, d, f, ok, raw, day, clock, seen, local, kind, doc, nest, tags FROM things WHERE id = 1")
    expected = dict(row, doc={"x": [1, None]}, nest=dict(row["nest"], f="Infinity"))  # type: ignore[call-overload]
    assert got == tuple(expected.values())
    assert database.execute("SELECT nest, tags FROM things WHERE id > 1 ORDER BY id") == [
        (None, None),
        ({"a": None, "b": None, "f": None, "n": None}, []),
    ]


def test_values_are_cast_to_the_tables_own_types(sink: PostgresSink, database: Database) -> None:
    database.execute(
        "CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE mixed (id uuid PRIMARY KEY, m mood, n numeric, tags text[], day date, c char(3), j json)"
    )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("m", pa.string()),
            ("n", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("day", pa.string()),
            ("c", pa.string()),
            ("j", pa.list_(pa.int64())),
        ]
    )
    target = Target(stream="mixed", key=("id",), schema=schema)
    token = sink.begin(RUN, target)
    key = "11111111-1111-1111-1111-111111111111"

    sink.write(
        chunk([{"id": key, "m": "glad", "n": "1.10", "tags": ["x"], "day": "2026-01-02", "c": "abc", "j": [1]}], target=target), token
    )

    assert database.execute("SELECT m::text, n::text, tags, day, c, j FROM mixed") == [
        ("glad", "1.10", ["x"], date(2026, 1, 2), "abc", [1])
    ]
    sink.write(chunk([{"op": "delete", "id": key}], first=1, target=target), token)
    assert database.execute("SELECT 1 FROM mixed") == []
