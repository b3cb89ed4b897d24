"""Intervals keep their phase, jitter keeps its value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsync_engine.scheduler.interval import jitter, next_interval_fires
from wsync_sdk.errors import ConfigError

INSTANTS = st.datetimes(datetime(1990, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
SCHEDULE = UUID("0190b5a2-0000-7000-8000-000000000001")


@given(INSTANTS, st.integers(1, 10**7), INSTANTS)
def test_an_interval_fires_at_exact_multiples_after_its_anchor_whatever_the_lateness(
    anchor: datetime, interval_s: int, after: datetime
) -> None:
    fires = next_interval_fires(anchor, interval_s, after, 3)

    assert fires[0] > after
    assert fires[0] >= anchor
    assert all((x - anchor) % timedelta(seconds=interval_s) == timedelta(0) for x in fires)
    assert fires[0] - timedelta(seconds=interval_s) <= max(after, anchor)


def test_the_anchor_itself_fires_unless_it_is_the_start() -> None:
    anchor = datetime(2026, 1, 1, tzinfo=UTC)

    assert next_interval_fires(anchor, 60, anchor - timedelta(days=1), 1) == [anchor]
    assert next_interval_fires(anchor, 60, anchor, 1) == [anchor + timedelta(minutes=1)]


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError):
        next_interval_fires(datetime(2026, 1, 1, tzinfo=UTC), 0, datetime(2026, 1, 1, tzinfo=UTC), 1)


def test_an_interval_ends_with_the_calendar() -> None:
    anchor = datetime(9998, 12, 30, tzinfo=UTC)

    assert next_interval_fires(anchor, 86_400, anchor, 1_000) == [datetime(9998, 12, 31, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)]


@given(st.uuids(), INSTANTS, st.integers(0, 3_600_000), st.integers(1, 7_200))
def test_jitter_is_stable_and_keeps_the_order_of_nominal_times(schedule: UUID, nominal: datetime, jitter_ms: int, gap_s: int) -> None:
    gap = timedelta(seconds=gap_s)

    found = jitter(schedule, nominal, jitter_ms, gap)

    assert found == jitter(schedule, nominal, jitter_ms, gap)
    assert timedelta(0) <= found <= timedelta(milliseconds=jitter_ms)
    assert nominal + found < nominal + gap


def test_jitter_is_the_same_number_in_every_release() -> None:
    assert jitter(SCHEDULE, datetime(2026, 1, 1, tzinfo=UTC), 60_000, None) == timedelta(milliseconds=48_542)
