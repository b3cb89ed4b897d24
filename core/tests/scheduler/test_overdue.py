"""Times that are due and undecided when their schedule is changed, paused or deleted: each is decided or counted, none twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.schedules import (
    change_schedule,
    create_schedule,
    delete_schedule,
    pause_schedule,
)

from .conftest import START, spec


def test_a_change_never_reaches_back_to_before_the_schedule_was_made(world: Any) -> None:
    declared = spec(world, cron="0 0 * * *")
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(1)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, cron="* * * * *", jitter_ms=3_600_000), actor="ann")

    assert changed.next_nominal_at == stored.next_nominal_at.replace(hour=12, minute=1, day=2)


@pytest.mark.parametrize("change", [{"catchup_mode": "all"}, {"max_runs": 9}, {"jitter_ms": 1}])
def test_a_change_while_times_are_undecided_loses_none_of_them(world: Any, change: dict[str, Any]) -> None:
    """A scheduler may be late, or away, when somebody changes how its times are made up for."""
    declared = spec(world, cron="* * * * *", overlap="allow_all")
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(301)
    changed = world.write(change_schedule, stored.schedule_id, replace(declared, **change), actor="ann")

    fire(world.engine, [(stored.schedule_id, changed.entry.rev)])

    clock = world.clock(stored.schedule_id)
    expected = (5, 0) if change == {"catchup_mode": "all"} else (1, 4)
    assert (clock["fired"], clock["coalesced"]) == expected


CHANGES_OF_THE_RULE: tuple[dict[str, Any], ...] = (
    {"cron": "*/5 * * * *"},
    {"zone": "Europe/Berlin"},
    {"kind": "interval", "cron": None, "zone": None, "every_ms": 7_000},
    {"kind": "once", "cron": None, "zone": None, "once_at": START + timedelta(days=1)},
)


@pytest.mark.parametrize("change", CHANGES_OF_THE_RULE, ids=repr)
def test_times_that_are_due_when_another_rule_replaces_theirs_are_counted_as_missed(world: Any, change: dict[str, Any]) -> None:
    declared = spec(world, cron="* * * * *")
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(301)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, **change), actor="ann")

    clock = world.clock(stored.schedule_id)
    assert (clock["missed"], clock["last_nominal_at"]) == (5, world.now - timedelta(seconds=1))
    assert changed.next_nominal_at > world.now
    assert [x["detail"] for x in world.events("schedule.missed")] == [{"count": 5, "reason": "changed", "actor": "ann"}]


def test_a_time_that_was_given_up_is_not_asked_for_again_by_the_new_rules_jitter(world: Any) -> None:
    declared = spec(world, cron="* * * * *")
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(61)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, cron="*/1 * * * *", jitter_ms=3_600_000), actor="ann")

    assert world.clock(stored.schedule_id)["missed"] == 1
    assert changed.next_nominal_at == world.now + timedelta(seconds=59)


@pytest.mark.parametrize(("change", "decided"), [({"start_at": 3}, (1, 2, 2)), ({"end_at": 3}, (1, 2, 2))], ids=["start", "end"])
def test_times_that_are_due_and_outside_a_new_start_or_end_are_counted_as_missed(
    world: Any, change: dict[str, int], decided: tuple[int, int, int]
) -> None:
    """Five are due, the third of them lies at the new start, or at the new end."""
    declared = spec(world, cron="* * * * *")
    stored = world.write(create_schedule, declared, actor="ann")
    window = {name: world.now + timedelta(minutes=minutes) for name, minutes in change.items()}
    world.move(301)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, **window), actor="ann")
    fire(world.engine, [(stored.schedule_id, changed.entry.rev)])

    clock = world.clock(stored.schedule_id)
    assert (clock["fired"], clock["coalesced"], clock["missed"]) == decided


@pytest.mark.parametrize("reason", ["paused", "deleted"])
def test_times_that_are_due_when_a_schedule_is_paused_or_deleted_are_counted_as_missed(world: Any, reason: str) -> None:
    stored = world.write(create_schedule, spec(world), actor="ann")
    world.move(301)

    if reason == "paused":
        world.write(pause_schedule, stored.schedule_id, note=None, actor="ann")
        world.write(pause_schedule, stored.schedule_id, note="once more", actor="ann")
    else:
        world.write(delete_schedule, stored.schedule_id, actor="ann")

    clock = world.clock(stored.schedule_id)
    assert (clock["missed"], clock["last_nominal_at"], clock["next_due_at"]) == (5, world.now - timedelta(seconds=1), None)
    assert [x["detail"] for x in world.events("schedule.missed")] == [{"count": 5, "reason": reason, "actor": "ann"}]


def test_times_that_are_due_when_a_change_leaves_no_runs_are_counted_as_missed(world: Any) -> None:
    declared = spec(world, overlap="allow_all")
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(60)
    fire(world.engine, [(stored.schedule_id, 1)])
    world.move(181)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, max_runs=1), actor="ann")

    clock = world.clock(stored.schedule_id)
    assert (clock["fired"], clock["missed"], changed.next_nominal_at) == (1, 3, None)
    assert [x["detail"] for x in world.events("schedule.missed")] == [{"count": 3, "reason": "changed", "actor": "ann"}]


def test_times_that_a_change_of_the_end_gave_up_are_not_asked_for_again_by_a_later_jitter(world: Any) -> None:
    declared = spec(world, cron="0 * * * *")
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(4 * 3_600 + 0.5)
    world.write(change_schedule, stored.schedule_id, replace(declared, end_at=world.now - timedelta(days=1)), actor="ann")

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, jitter_ms=3_600_000), actor="ann")

    assert world.clock(stored.schedule_id)["missed"] == 4
    assert changed.next_nominal_at == stored.next_nominal_at + timedelta(hours=4)


def test_a_schedule_whose_zone_is_gone_can_be_paused_and_deleted(world: Any) -> None:
    stored = world.write(create_schedule, spec(world), actor="ann")
    world.engine.execute("UPDATE wsync.schedule SET zone = 'Gone/Nowhere'")
    world.move(61)

    world.write(pause_schedule, stored.schedule_id, note=None, actor="ann")

    assert world.write(delete_schedule, stored.schedule_id, actor="ann").entry.is_gone


def test_a_schedule_whose_zone_is_gone_can_be_changed(world: Any) -> None:
    declared = spec(world, cron="* * * * *")
    stored = world.write(create_schedule, declared, actor="ann")
    world.engine.execute("UPDATE wsync.schedule SET zone = 'Gone/Nowhere'")
    world.move(61)

    changed = world.write(change_schedule, stored.schedule_id, declared, actor="ann")

    assert changed.next_nominal_at > world.now


def test_a_time_that_waits_for_its_jitter_is_not_lost_when_the_jitter_goes(world: Any) -> None:
    declared = spec(world, cron="0 * * * *", jitter_ms=3_000_000)
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(3_600)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, jitter_ms=0), actor="ann")

    assert changed.next_nominal_at == stored.next_nominal_at == world.now


def test_a_change_of_anything_else_keeps_the_next_time_and_an_intervals_phase(world: Any) -> None:
    declared = spec(world, kind="interval", cron=None, zone=None, every_ms=60_000)
    stored = world.write(create_schedule, declared, actor="ann")
    world.move(30)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, priority=0), actor="ann")

    assert changed.next_nominal_at == stored.next_nominal_at
