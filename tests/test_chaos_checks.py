"""The checks after the chaos find what they are for: a check that finds nothing proves nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from wsync_engine.scheduler.spec import ScheduleSpec

from .chaos_checks import wrong_decisions
from .chaos_producers import COUNTERS, Plan, Step

START = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
SECONDLY = ScheduleSpec(name="s", sync_id=uuid4(), kind="interval", every_ms=1_000, anchor_at=START)
MINUTELY = ScheduleSpec(name="s", sync_id=SECONDLY.sync_id, kind="cron", cron="* * * * *", zone="UTC")


def second(number: float) -> datetime:
    return START + timedelta(seconds=number)


def clock(*, missed: int, last: float | None, following: datetime | None) -> dict[str, Any]:
    last_nominal_at = None if last is None else second(last)
    return {**dict.fromkeys(COUNTERS, 0), "missed": missed, "last_nominal_at": last_nominal_at, "next_nominal_at": following}


def history(kind: str, *, given_up: int, counted: int = 0) -> list[str]:
    """A schedule of seconds that missed three, and at 10.5 s is changed to minutes, or paused; then it decided `counted` more."""
    following = second(60) if kind == "change" else None
    before = clock(missed=3, last=3, following=second(4))
    left = clock(missed=3 + given_up, last=3 + given_up, following=following)
    created = clock(missed=0, last=None, following=second(1))
    plan = Plan(schedule_id=uuid4(), spec=SECONDLY)
    plan.steps = [
        Step(kind="create", at=second(0), spec=SECONDLY, clock=None, following=second(1), left=created, began_at=second(0)),
        Step(
            kind=kind,
            at=second(10.5),
            spec=MINUTELY if kind == "change" else None,
            clock=before,
            following=following,
            left=left,
            began_at=second(10.4),
        ),
    ]
    return list(
        wrong_decisions(plan, Step(kind="end", at=second(20), spec=None, clock={**left, "missed": 3 + given_up + counted}, following=None))
    )


@pytest.mark.parametrize("kind", ["change", "pause"])
def test_times_that_a_step_counts_itself_are_its_own(kind: str) -> None:
    assert history(kind, given_up=7) == []


@pytest.mark.parametrize("kind", ["change", "pause"])
@pytest.mark.parametrize("given_up", [0, 6, 8])
def test_a_step_that_counts_too_few_or_too_many_of_the_times_that_were_due_is_found(kind: str, given_up: int) -> None:
    assert history(kind, given_up=given_up)


def test_decisions_of_a_paused_schedule_are_found() -> None:
    assert history("pause", given_up=7, counted=1)
