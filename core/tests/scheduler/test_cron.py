"""Each rule of the cron grammar and of daylight saving, against examples and against a walk over every minute."""

from __future__ import annotations

import random
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsync_engine.scheduler.cron import count_fires, last_fire, next_fires
from wsync_sdk.errors import ConfigError

from .walk import Judge, brute_force, transitions, wall_minutes

ZONES = [
    "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca", "Europe/Dublin",
    "Antarctica/Troll", "Pacific/Apia", "Pacific/Kwajalein", "America/Sao_Paulo", "Africa/Cairo", "Asia/Tehran",
    "America/Havana", "America/Caracas", "Asia/Pyongyang", "Asia/Kathmandu", "Pacific/Chatham",
]  # fmt: skip
EXPRESSIONS = [
    "* * * * *", "*/20 2 * * *", "30 2 * * *", "0 2,3 * * *", "0,30 2 * * *", "30 */2 * * *", "0 * * * *", "*/7 * * * *",
    "0 0 * * *", "1 0 * * *", "30 0 * * *", "0 1 * * *", "59 1 * * *", "0 3 * * *", "15 1-3 * * *", "0-59 0-23 * * *",
    "0 0 1 * *", "0 0 L * *", "30 2 * * SUN", "0 0 * * 1-5", "0 0 */2 * MON", "0 12 * * *", "45 23 * * *", "*/15 8-20 * * MON-FRI",
    "0 4 1,15 * 5", "30 1 * MAR,OCT *", "0 0 * * 0#1", "0 2 * * 7#5", "0 2 * 3 SUN#2", "10 0-23/3 * * *", "* 1 * * *", "5 * * * 6",
    "0 */5 * * *", "30 12 30 12 *", "0 0 31 12 *", "*/30 0 * * *", "30 3,4 L * 0", "29 2 * * 0,6", "0 6 */10 * *", "20 2 * 4-10 SAT,SUN",
]  # fmt: skip
JUDGES = {text: Judge(text) for text in EXPRESSIONS}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def shown(expr: str, tz: str, after: str, n: int) -> list[str]:
    return [f"{x:%Y-%m-%dT%H:%M}" for x in next_fires(expr, tz, utc(after), n)]


@pytest.mark.parametrize("name", ZONES)
def test_around_every_change_of_offset_fires_are_those_of_a_walk_over_every_minute(name: str) -> None:
    zone = ZoneInfo(name)
    for change in transitions(zone, 1985, 2040):
        draw = random.Random(zlib.crc32(f"{name} {change}".encode()))
        start, stop = change - timedelta(hours=36), change + timedelta(hours=36)
        walls = wall_minutes(zone, start - timedelta(hours=4), stop)
        for expression in draw.sample(EXPRESSIONS, 3):
            after = draw.choice([start, change - timedelta(minutes=1), change, change + timedelta(seconds=draw.randrange(7_200))])
            expected = brute_force(JUDGES[expression], walls, after)

            found = next_fires(expression, name, after, len(expected) + 1)

            assert found[: len(expected)] == expected, (expression, after)
            assert found[len(expected)] > stop, (expression, after)


@pytest.mark.parametrize(("expr", "tz", "after", "expected"), [
    ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
    ("0 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:00"]),
    ("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:00"]),
    ("*/20 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-30T00:00", "2026-03-30T00:20"]),
    ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
    ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10", ["2026-10-26T01:30"]),
    ("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["2026-10-25T00:00", "2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30"]),
    ("0 12 30 12 *", "Pacific/Apia", "2011-12-29T00:00", ["2011-12-30T10:00", "2012-12-29T22:00"]),
    ("0 0 * 2 1#5", "UTC", "2026-01-01T00:00", ["2044-02-29T00:00", "2072-02-29T00:00"]),
    ("0 0 31 2 1", "UTC", "2026-02-01T00:00", ["2026-02-02T00:00", "2026-02-09T00:00"]),
    ("0 0 */2 * MON", "UTC", "2026-11-01T00:00", ["2026-11-09T00:00", "2026-11-23T00:00"]),
    ("0 0 L * *", "UTC", "2028-02-01T00:00", ["2028-02-29T00:00", "2028-03-31T00:00"]),
    ("@hourly", "UTC", "2026-01-01T00:00", ["2026-01-01T01:00"]),
    ("@weekly", "UTC", "2026-01-01T00:00", ["2026-01-04T00:00"]),
    (" \t007 * * jan Sun ", "UTC", "2026-01-01T00:00", ["2026-01-04T00:07"]),
])  # fmt: skip
def test_fires_are_the_golden_ones(expr: str, tz: str, after: str, expected: list[str]) -> None:
    assert shown(expr, tz, after, len(expected)) == expected


@pytest.mark.parametrize(("expr", "field"), [
    ("60 * * * *", "minute"), ("* 24 * * *", "hour"), ("* * 0 * *", "day of month"), ("* * 32 * *", "day of month"),
    ("* * * 13 *", "month"), ("* * * * 8", "day of week"), ("* * * FOO *", "month"), ("* * * * FOO", "day of week"),
    ("5-1 * * * *", "minute"), ("* * * * FRI-SUN", "day of week"), ("*/0 * * * *", "minute"), ("5/10 * * * *", "minute"),
    ("1,,2 * * * *", "minute"), ("1, * * * *", "minute"), ("* * * * L", "day of week"), ("* * 1-L * *", "day of month"),
    ("* * * * 1#6", "day of week"), ("* * * * 1#0", "day of week"), ("* * 1#2 * *", "day of month"), ("-1 * * * *", "minute"),
    ("? * * * *", "minute"), ("1.5 * * * *", "minute"), ("٣ * * * *", "minute"), ("* * * * ſat", "day of week"),
    ("JAN * * * *", "minute"), ("**/2 * * * *", "minute"), ("* * * * 1-5#2", "day of week"), ("99999999999999999999 * * * *", "minute"),
])  # fmt: skip
def test_what_is_outside_the_grammar_is_refused_naming_the_field(expr: str, field: str) -> None:
    with pytest.raises(ConfigError, match=f"`{field}`, position \\d+") as refused:
        next_fires(expr, "UTC", utc("2026-01-01"), 1)

    assert refused.value.next_step


@pytest.mark.parametrize("expr", ["", " ", "* * * *", "* * * * * *", "@reboot", "@Daily", "* * * *\n*", "*\u00a0* * * *", "@daily x"])
def test_anything_but_five_fields_or_an_alias_is_refused_with_a_position(expr: str) -> None:
    with pytest.raises(ConfigError, match="position"):
        next_fires(expr, "UTC", utc("2026-01-01"), 1)


@pytest.mark.parametrize("expr", ["0 0 31 2 *", "0 0 30 FEB *", "0 0 31 4,6,9,11 *", "0 0 30-31 2 */2"])
def test_an_expression_that_matches_no_date_is_refused(expr: str) -> None:
    with pytest.raises(ConfigError, match="never fires"):
        next_fires(expr, "UTC", utc("2026-01-01"), 1)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "localtime", "America", "europe/berlin", "/etc/localtime", "UTC\0"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match="zone"):
        next_fires("* * * * *", zone, utc("2026-01-01"), 1)


def test_a_naive_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="no zone"):
        next_fires("* * * * *", "UTC", datetime(2026, 1, 1), 1)  # noqa: DTZ001


@given(
    st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES),
    st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_fires_rise_are_later_than_the_start_and_do_not_depend_on_it(expr: str, tz: str, after: datetime) -> None:
    fires = next_fires(expr, tz, after, 5)

    assert after < fires[0]
    assert sorted(set(fires)) == fires
    assert next_fires(expr, tz, fires[1], 3) == fires[2:]
    assert next_fires(expr, tz, fires[0] - timedelta(microseconds=1), 1) == fires[:1]


def test_the_calendar_ends_without_an_error() -> None:
    assert len(next_fires("0 0 1 1 *", "Asia/Tokyo", utc("9990-06-01"), 100)) < 100


def test_nothing_in_the_walk_reads_a_clock() -> None:
    source = (Path(next_fires.__code__.co_filename)).read_text("utf-8")

    assert ".now(" not in source


@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES),
    st.datetimes(datetime(1969, 12, 28), datetime(2038, 1, 1)),  # noqa: DTZ001
    st.integers(0, 3 * 86_400_000_000) | st.integers(0, 30 * 86_400).map(lambda seconds: seconds * 1_000_000),
)
@settings(max_examples=150, deadline=None)
def test_fires_are_counted_as_if_one_walked_through_them(expression: str, zone: str, naive: datetime, distance_us: int) -> None:
    after = naive.replace(tzinfo=UTC)
    until = after + timedelta(microseconds=distance_us)

    found = [x for x in next_fires(expression, zone, after, distance_us // 60_000_000 + 2) if x <= until]

    assert count_fires(expression, zone, after, until) == len(found)
    assert last_fire(expression, zone, after, until) == (found[-1] if found else None)


@pytest.mark.parametrize("zone", ZONES)
def test_fires_around_changes_of_offset_are_counted_as_if_one_walked_through_them(zone: str) -> None:
    for change in transitions(ZoneInfo(zone), 2010, 2012):
        after, until = change - timedelta(hours=5), change + timedelta(hours=5)
        for expression in random.Random(zlib.crc32(f"{zone} {change}".encode())).sample(EXPRESSIONS, 12):
            found = [x for x in next_fires(expression, zone, after, 601) if x <= until]
            for at in (after, *found[:1], change - timedelta(seconds=1), change, change + timedelta(minutes=30)):
                assert count_fires(expression, zone, at, until) == len([x for x in found if x > at]), (expression, at)
