"""Every nominal time gets exactly one decision, whatever the outage, the window and the mode."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsync_engine.scheduler import timing as module
from wsync_engine.scheduler.cron import next_fires
from wsync_engine.scheduler.timing import Timing, check_timing, decide, first_nominal, given_up
from wsync_sdk.errors import ConfigError

SCHEDULE = UUID("0190b5a2-0000-7000-8000-000000000001")
START = datetime(2026, 3, 28, 20, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def cron(expr: str = "*/10 * * * *", **other: object) -> Timing:
    return Timing(schedule_id=SCHEDULE, kind="cron", cron=expr, zone="Europe/Berlin", **other)  # type: ignore[arg-type]


timings = st.builds(
    cron,
    st.sampled_from(["*/10 * * * *", "30 2 * * *", "0 * * * *", "*/30 1-4 * * *"]),
    jitter_ms=st.sampled_from([0, 30_000, 3_600_000]),
    catchup_ms=st.sampled_from([10_000, 600_000, 7_200_000]),
    catchup_mode=st.sampled_from(["latest", "all"]),
    end_at=st.none() | st.just(START + timedelta(hours=9)),
)


@given(timings, st.lists(st.integers(1, 600), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_every_nominal_time_gets_exactly_one_decision(timing: Timing, waits: list[int]) -> None:
    now, decisions, fired = START, 0, []
    upcoming = first_nominal(timing, after=now, due_after=now)
    for wait in waits:
        now += wait * MINUTE
        while upcoming and upcoming.due_at <= now:
            made = decide(timing, next_nominal_at=upcoming.nominal_at, runs=0, now=now, early=timedelta(0))
            decisions += len(made.fire) + made.missed + made.coalesced
            fired += [x.nominal_at for x in made.fire]
            assert all(x.due_at <= now for x in made.fire)
            upcoming = made.next

    horizon = upcoming.nominal_at if upcoming else (timing.end_at or now) + timedelta(microseconds=1)
    passed = [x for x in next_fires(timing.cron or "", "Europe/Berlin", START, 2_000) if x < horizon]
    assert decisions == len(passed)
    assert fired == sorted(set(fired))
    assert set(fired) <= set(passed)


@given(timings, st.integers(0, 10_000))
@settings(deadline=None)
def test_a_resumed_schedule_is_due_later_than_now(timing: Timing, seconds: int) -> None:
    now = START + timedelta(seconds=seconds)

    found = first_nominal(timing, after=now, due_after=now)

    assert found is None or (found.nominal_at > now and found.due_at >= found.nominal_at)


def test_latest_fires_the_last_of_an_outage_and_coalesces_the_rest_in_the_window() -> None:
    made = decide(cron(catchup_ms=3_600_000), next_nominal_at=START, runs=0, now=START + timedelta(hours=2))

    assert [x.nominal_at for x in made.fire] == [START + timedelta(hours=2)]
    assert (made.missed, made.coalesced) == (6, 6)


def test_all_fires_each_time_in_the_window() -> None:
    made = decide(cron(catchup_ms=3_600_000, catchup_mode="all"), next_nominal_at=START, runs=0, now=START + timedelta(hours=2))

    assert [x.nominal_at for x in made.fire] == [START + k * 10 * MINUTE for k in range(6, 13)]
    assert (made.missed, made.coalesced) == (6, 0)


def test_all_leaves_what_exceeds_one_transaction_due() -> None:
    timing = cron("* * * * *", catchup_ms=10**9, catchup_mode="all")

    made = decide(timing, next_nominal_at=START, runs=0, now=START + 150 * MINUTE)

    assert len(made.fire) == module.MAX_FIRES
    assert made.next is not None
    assert made.next.nominal_at == START + 100 * MINUTE


def test_a_long_outage_is_decided_in_steps_and_only_the_last_time_fires() -> None:
    timing = Timing(schedule_id=SCHEDULE, kind="interval", every_ms=1_000, anchor_at=START, catchup_ms=10**9)
    now, at, fired, decisions = START + timedelta(seconds=12_000), START, [], 0

    while at <= now:
        made = decide(timing, next_nominal_at=at, runs=0, now=now, early=timedelta(0))
        fired += made.fire
        decisions += len(made.fire) + made.coalesced
        assert made.next is not None
        at = made.next.nominal_at

    assert [x.nominal_at for x in fired] == [now]
    assert decisions == 12_001


def test_max_runs_ends_the_schedule() -> None:
    assert decide(cron(max_runs=3), next_nominal_at=START, runs=3, now=START).next is None
    assert len(decide(cron(max_runs=3, catchup_mode="all"), next_nominal_at=START, runs=1, now=START + 50 * MINUTE).fire) == 2


def test_the_end_is_inclusive_and_nothing_follows_it() -> None:
    made = decide(cron(end_at=START), next_nominal_at=START, runs=0, now=START)

    assert [x.nominal_at for x in made.fire] == [START]
    assert made.next is None


def test_the_start_is_inclusive() -> None:
    found = first_nominal(cron(start_at=START + timedelta(days=2)), after=START, due_after=START)

    assert found is not None
    assert found.nominal_at == START + timedelta(days=2)


def test_once_fires_once() -> None:
    timing = Timing(schedule_id=SCHEDULE, kind="once", once_at=START + MINUTE)
    first = first_nominal(timing, after=START, due_after=START)
    assert first is not None

    made = decide(timing, next_nominal_at=first.nominal_at, runs=0, now=START + 2 * MINUTE)

    assert (len(made.fire), made.next) == (1, None)


def test_a_claim_that_is_a_little_early_fires_its_own_time_and_none_that_follow() -> None:
    timing = Timing(schedule_id=SCHEDULE, kind="interval", every_ms=1_000, anchor_at=START)

    made = decide(timing, next_nominal_at=START, runs=0, now=START - timedelta(seconds=0.5))

    assert [x.nominal_at for x in made.fire] == [START]
    assert made.next is not None
    assert made.next.nominal_at == START + timedelta(seconds=1)


def test_a_claim_before_its_time_decides_nothing() -> None:
    made = decide(cron(), next_nominal_at=START, runs=0, now=START - timedelta(seconds=3))

    assert (made.fire, made.missed, made.coalesced) == ((), 0, 0)
    assert made.next is not None
    assert made.next.nominal_at == START


@given(st.integers(0, 3_599))
def test_a_change_between_a_nominal_time_and_its_jitter_loses_nothing(second: int) -> None:
    timing = cron("0 * * * *", jitter_ms=3_000_000)
    planned = first_nominal(timing, after=START - MINUTE, due_after=START - MINUTE)
    assert planned is not None
    edited_at = START + timedelta(seconds=second)

    found = first_nominal(timing, after=edited_at - timedelta(milliseconds=timing.jitter_ms), due_after=edited_at)

    assert found is not None
    assert found.due_at > edited_at
    assert (found == planned) == (planned.due_at > edited_at)


@pytest.mark.parametrize("timing", [
    cron("61 * * * *"), Timing(schedule_id=SCHEDULE, kind="interval", every_ms=10), Timing(schedule_id=SCHEDULE, kind="once"),
    cron(start_at=START, end_at=START - MINUTE), Timing(schedule_id=SCHEDULE, kind="cron", cron="* * * * *", zone="Nowhere"),
])  # fmt: skip
def test_a_timing_that_cannot_be_computed_is_refused(timing: Timing) -> None:
    with pytest.raises(ConfigError):
        check_timing(timing)


@given(
    st.sampled_from([1, 7, 60, 3_600]),
    st.sampled_from([0, 500, 30_000, 3_600_000]),
    st.integers(-10, 20_000),
    st.none() | st.integers(0, 20_000),
)
@settings(deadline=None)
def test_a_change_gives_up_exactly_the_times_that_are_due(every_s: int, jitter_ms: int, seconds: int, end_s: int | None) -> None:
    end_at = None if end_s is None else START + timedelta(seconds=end_s)
    timing = Timing(schedule_id=SCHEDULE, kind="interval", every_ms=every_s * 1_000, anchor_at=START, jitter_ms=jitter_ms, end_at=end_at)
    now = START + timedelta(seconds=seconds)

    gone = given_up(timing, cron(), next_nominal_at=START, now=now)

    due = [x.nominal_at for x in takewhile(lambda x: x.due_at <= now, module._nominals(timing, [START]))]
    assert (gone.count, gone.last_at) == (len(due), due[-1] if due else None)


@given(timings, st.integers(-10, 80_000), st.none() | st.integers(0, 80_000), st.none() | st.integers(0, 80_000))
@settings(deadline=None)
def test_of_a_cron_schedules_times_exactly_those_that_are_due_and_outside_are_given_up(
    old: Timing, seconds: int, start_s: int | None, end_s: int | None
) -> None:
    first, now = first_nominal(old, after=START, due_after=START), START + timedelta(seconds=seconds)
    assert first is not None
    start_at, end_at = (None if x is None else START + timedelta(seconds=x) for x in (start_s, end_s))
    due = [x.nominal_at for x in takewhile(lambda x: x.due_at <= now, module._nominals(old, [first.nominal_at]))]

    nothing = given_up(old, None, next_nominal_at=first.nominal_at, now=now)
    window = given_up(old, replace(old, start_at=start_at, end_at=end_at), next_nominal_at=first.nominal_at, now=now)

    assert (nothing.count, nothing.last_at) == (len(due), due[-1] if due else None)
    kept = [x for x in due if (start_at is None or x >= start_at) and (end_at is None or x <= end_at or old.end_at == end_at)]
    decided = [x for x in due if not kept or x < kept[0]]
    assert window.count == len(due) - len(kept)
    assert window.last_at == (decided[-1] if decided else None)


def test_years_of_minutes_are_counted_and_none_of_them_is_looked_at() -> None:
    until = START + timedelta(days=3_650)

    gone = given_up(cron("* * * * *", jitter_ms=30_000), None, next_nominal_at=START, now=until)

    assert gone.count in {3_650 * 1_440, 3_650 * 1_440 + 1}
    assert gone.last_at is not None
    assert gone.last_at >= until - MINUTE
