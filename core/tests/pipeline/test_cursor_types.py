"""What can be a cursor: each type's first and next value, what is stored of it, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from wsync_engine.model.sync import Cursor, Mode
from wsync_engine.pipeline.cursor import CursorValue, Kind, read_from
from wsync_sdk import ConfigError

from .ledger import Ledger, instant


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


def wall(at: datetime) -> datetime:
    return at.replace(tzinfo=None)


def autumn(minute: int) -> datetime:
    return datetime(2025, 10, 26, 0, minute, tzinfo=UTC)


LONG = 12345678901234567890123456789012345679
NOW = datetime.now(UTC).replace(microsecond=0)
VALUES: dict[str, tuple[pa.DataType, list[Any], Any, Any]] = {
    # type, values, the lowest value of the type, the usual overlap before the highest value
    "timestamptz": (pa.timestamp("us", tz="UTC"), [instant(1), instant(30)], datetime(1, 1, 1, tzinfo=UTC), instant(20)),
    "nanoseconds": (pa.timestamp("ns", tz="UTC"), [instant(1), instant(30)], datetime(1, 1, 1, tzinfo=UTC), instant(20)),
    "timestamp": (
        pa.timestamp("us"),
        [wall(instant(0)), wall(instant(0, day=2))],
        wall(datetime.min.replace(tzinfo=UTC)),
        wall(instant(23 * 60 + 50)),
    ),
    "date": (pa.date32(), [date(2026, 3, 1), date(2026, 3, 5)], date(1, 1, 1), date(2026, 3, 4)),
    "integer": (pa.int32(), [5, 10], -(2**63), 10),
    # each of the two is in the hour that the clocks there show twice
    "zone": (pa.timestamp("us", tz="Europe/Berlin"), [autumn(0), autumn(59)], datetime(1, 1, 1, tzinfo=UTC), autumn(49)),
    "decimal": (pa.decimal128(5, 2), [Decimal("9.50"), Decimal("10.25")], Decimal("-999.99"), Decimal("10.25")),
    "long decimal": (pa.decimal128(38), [Decimal(LONG - 1), Decimal(LONG)], Decimal(1 - 10**38), Decimal(LONG)),
    "float": (pa.float64(), [9.5, 10.25, float("inf"), float("nan")], float("-inf"), 10.25),
    "text": (pa.string(), ["a@example.com", "b@example.com"], "", "b@example.com"),
    "padded text": (pa.string(), ["a   ", "b   "], "", "b"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_each_type_goes_on_at_its_highest_value(ledger: Ledger, kind: str) -> None:
    ledger.source.type, values, lowest, next_asked = VALUES[kind]
    ledger.source.entries = {key: (f"name {key}", value) for key, value in enumerate(values)}

    ledger.run()
    ledger.run()

    assert [asked["cursor"] for asked in ledger.source.asked] == [lowest, next_asked]
    assert type(ledger.last_asked()) is type(next_asked)


@pytest.mark.parametrize(
    ("kind", "initial", "asked"),
    [
        ("timestamptz", "2026-03-01T02:00:00+02:00", instant(0)),
        ("timestamp", "2026-03-01T00:00:00", wall(instant(0))),
        ("date", "2026-03-01", date(2026, 3, 1)),
        ("integer", 7, 7),
        ("decimal", 7.5, Decimal("7.5")),
        ("float", 7, 7.0),
        ("text", "b", "b"),
    ],
)
def test_an_initial_value_is_of_the_columns_type(ledger: Ledger, kind: str, initial: Any, asked: Any) -> None:
    ledger.source.type = VALUES[kind][0]
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", initial=initial))

    ledger.run()

    assert (ledger.last_asked(), type(ledger.last_asked())) == (asked, type(asked))


@pytest.mark.parametrize(
    ("kind", "initial"),
    [
        ("timestamptz", "2026-03-01"),
        ("timestamp", "2026-03-01T00:00:00Z"),
        ("date", "soon"),
        ("integer", 7.5),
        ("decimal", "NaN"),
        ("float", float("inf")),
        ("text", 7),
    ],
)
def test_an_initial_value_of_another_type_is_refused_before_anything_is_read(ledger: Ledger, kind: str, initial: Any) -> None:
    ledger.source.type = VALUES[kind][0]
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", initial=initial))

    refused = ledger.failed_run()

    assert isinstance(refused, ConfigError)
    assert ("`initial`" in refused.message, ledger.source.plans) == (True, 0)


def test_a_text_cursor_is_stored_encrypted(ledger: Ledger) -> None:
    ledger.source.type = pa.string()
    ledger.source.entries = {1: ("a", "zoe@example.com")}

    ledger.run()

    assert ledger.scalar("SELECT count(*) FROM wsync.snapshot WHERE cursor::text LIKE '%%zoe%%'") == 0
    assert ledger.scalar("SELECT count(*) FROM wsync.run WHERE change_log::text LIKE '%%zoe%%'") == 0
    assert ledger.scalar("SELECT count(*) FROM wsync.split WHERE counts::text LIKE '%%zoe%%'") == 0


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
def test_a_row_from_the_future_does_not_keep_later_ones_from_being_read(ledger: Ledger, kind: str) -> None:
    ledger.source.type = VALUES[kind][0]
    future = {
        "timestamptz": NOW + timedelta(days=999),
        "timestamp": wall(NOW) + timedelta(days=999),
        "date": NOW.date() + timedelta(days=999),
    }[kind]
    present = {"timestamptz": NOW, "timestamp": wall(NOW), "date": NOW.date()}[kind]
    ledger.source.entries = {1: ("from the future", future)}
    ledger.run()
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", overlap_ms=86_400_000))
    ledger.source.entries[2] = ("of today", present)

    ledger.run()

    assert ledger.sink.contents == ledger.names()


@pytest.mark.parametrize(
    ("kind", "value", "cursor", "asked"),
    [
        (Kind.INSTANT, datetime(1, 1, 1, 0, 5, tzinfo=UTC), Cursor(column="seen"), datetime(1, 1, 1, tzinfo=UTC)),
        (Kind.DATE, date(2026, 3, 5), Cursor(column="seen", overlap_ms=86_400_001), date(2026, 3, 3)),
        (Kind.DATE, date(1, 1, 1), Cursor(column="seen"), date(1, 1, 1)),
        (Kind.DATE, date(2026, 3, 5), Cursor(column="seen", overlap_ms=0), date(2026, 3, 5)),
        (Kind.INTEGER, 10, Cursor(column="seen", overlap_by=2.5), 7),
        (Kind.INTEGER, -(2**63) + 1, Cursor(column="seen", overlap_by=10), -(2**63)),
        (Kind.DECIMAL, Decimal("10.25"), Cursor(column="seen", overlap_by=0.1), Decimal("10.15")),
        (Kind.FLOAT, 10.25, Cursor(column="seen", overlap_by=1), 9.25),
    ],
)
def test_an_overlap_is_never_shorter_than_it_says_and_ends_where_the_type_does(kind: Kind, value: Any, cursor: Cursor, asked: Any) -> None:
    assert read_from(cursor, CursorValue(kind=kind, value=value)) == asked


# -- what is refused


def test_a_cursor_column_of_another_type_names_both_types_and_changes_nothing(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.source.type = pa.timestamp("us", tz="UTC")
    ledger.source.entries = {}

    refused = ledger.failed_run()

    assert isinstance(refused, ConfigError)
    assert refused.message == "the cursor column `seen` was an integer, and is a timestamp with time zone now"
    assert "sync resync" in refused.next_step
    assert ledger.stored() == "30"
    ledger.ask_for_resync()
    ledger.source.entries = {key: (f"name {key}", instant(key)) for key in range(30)}
    assert ledger.run().state == "succeeded"


def test_a_missing_cursor_column_suggests_the_nearest(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="sen"))

    refused = ledger.failed_run()

    assert (refused.message, refused.next_step) == ("the query has no column `sen` to be the cursor", "did you mean `seen`?")


@pytest.mark.parametrize(
    ("kind", "cursor", "next_step"),
    [
        (pa.int64(), Cursor(column="seen", overlap_ms=1_000), "write a number"),
        (pa.timestamp("us"), Cursor(column="seen", overlap_by=5), "write a duration"),
        (pa.string(), Cursor(column="seen", overlap_by=5), "remove `overlap`"),
        (pa.string(), Cursor(column="seen", overlap_ms=5), "remove `overlap`"),
        (pa.bool_(), Cursor(column="seen"), "name a column with"),
        (pa.float16(), Cursor(column="seen"), "name a column with"),
    ],
)
def test_what_can_be_no_cursor_is_refused_before_anything_is_read(
    ledger: Ledger, kind: pa.DataType, cursor: Cursor, next_step: str
) -> None:
    ledger.source.type = kind
    ledger.spec = replace(ledger.spec, cursor=cursor)

    refused = ledger.failed_run()

    assert isinstance(refused, ConfigError)
    assert (refused.next_step.startswith(next_step), ledger.source.plans) == (True, 0)


def test_a_part_of_a_result_is_never_mirrored(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, mode=Mode.MIRROR)

    assert "`mirror` deletes what is not in the result" in ledger.failed_run().message
