"""A past range becomes runs, step by step, each time once, whoever dies between the steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.scheduler.backfill import cancel_backfill, create_backfill, list_backfills, step_backfill
from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.runs import claim_runs, finish_run
from wsync_engine.scheduler.schedules import announce, change_schedule, delete_schedule, pause_schedule
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.scheduler.sweeper import sweep
from wsync_sdk.errors import ConfigError


def ask(world: Any, stored: Any, minutes: int = 5, **options: Any) -> Any:
    """For the times of the last `minutes` minutes, this one not included."""
    made = world.write(
        create_backfill, stored.schedule_id, from_at=world.now - timedelta(minutes=minutes), to_at=world.now, actor="ann", **options
    )
    announce(world.index, [made.entry])
    return made


def drive(world: Any, seconds: int) -> None:
    """Second after second: the scheduler steps, and whatever is queued of the backfills is executed."""
    for _ in range(seconds):
        world.scheduler.step()
        for row in world.rows("SELECT run_id FROM wsync.run WHERE state = 'queued' AND trigger = 'backfill' AND ready_at <= %s", world.now):
            for run in claim_runs(world.engine, [row["run_id"]], uuid7()):
                finish_run(world.engine, run.run_id, run.epoch, "succeeded")
        world.move(1)


def times(world: Any) -> list[datetime]:
    return [row["nominal_at"] for row in world.rows("SELECT nominal_at FROM wsync.run WHERE trigger = 'backfill' ORDER BY run_id")]


def test_each_time_of_the_range_runs_once_in_order_without_the_end(world: Any) -> None:
    stored = world.minutely(jitter_ms=30_000)
    begin = world.now - timedelta(minutes=5)
    ask(world, stored)

    drive(world, 20)

    assert times(world) == [begin + timedelta(minutes=k) for k in range(5)]
    assert [(row["state"], row["made"], row["skipped"]) for row in world.rows("SELECT * FROM wsync.backfill")] == [("done", 5, 0)]
    assert world.clock(stored.schedule_id)["fired"] == 0
    assert [event["kind"] for event in world.rows("SELECT kind FROM wsync.run_event WHERE kind LIKE 'backfill.%%' ORDER BY at")] == [
        "backfill.created",
        "backfill.done",
    ]


@pytest.mark.parametrize(("max_open", "overlap", "expected"), [
    (1, "buffer_all", ["queued"]),
    (3, "buffer_all", ["queued", "buffered", "buffered"]),
    (3, "allow_all", ["queued", "queued", "queued"]),
])  # fmt: skip
def test_only_so_many_of_its_runs_are_open_or_wait(world: Any, max_open: int, overlap: str, expected: list[str]) -> None:
    ask(world, world.minutely(), max_open=max_open, overlap=OverlapPolicy(overlap))
    for _ in range(3):
        world.scheduler.step()
        world.move(1)

    assert [row["state"] for row in world.rows("SELECT state FROM wsync.run ORDER BY nominal_at")] == expected


def test_a_step_makes_no_run_of_a_sync_that_is_deleted_at_that_very_moment(world: Any) -> None:
    made = ask(world, world.minutely())
    deleting, stepping = world.engine_connection(), world.engine_connection()
    stepping.execute("SET lock_timeout = '60s'")

    with ThreadPoolExecutor() as pool:
        with deleting.transaction():
            deleting.execute("SELECT FROM wsync.sync FOR UPDATE")
            deleting.execute("UPDATE wsync.sync SET deleted_at = wsync.clock()")
            step = pool.submit(step_backfill, stepping, made.backfill_id, 1)
            while not world.rows("SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", stepping.info.backend_pid):
                assert not step.done()
        with pytest.raises(ConfigError, match="there is no sync"):
            step.result()

    assert times(world) == []
    step_backfill(world.engine, made.backfill_id, 1)
    assert [row["state"] for row in world.rows("SELECT * FROM wsync.backfill")] == ["cancelled"]


def test_a_step_that_another_scheduler_has_done_is_not_done_again(world: Any) -> None:
    made = ask(world, world.minutely())

    first = step_backfill(world.engine, made.backfill_id, 1)
    second = step_backfill(world.engine, made.backfill_id, 1)

    assert len(times(world)) == 1
    assert (first.entries, second.entries, second.runs) == (second.entries, first.entries, ())


def test_an_index_whose_clock_is_ahead_does_not_make_it_look_again_and_again(world: Any) -> None:
    made = ask(world, world.minutely())
    first = step_backfill(world.engine, made.backfill_id, 1)
    world.move(0.4)

    early = step_backfill(world.engine, made.backfill_id, first.entries[0].rev)
    world.move(0.2)
    nearly = step_backfill(world.engine, made.backfill_id, first.entries[0].rev)

    assert early.entries == ()
    assert nearly.entries[0].rev == first.entries[0].rev + 1


def test_it_works_while_the_schedule_is_paused_and_keeps_to_the_times_it_was_asked_for(world: Any) -> None:
    stored = world.minutely()
    begin = world.now - timedelta(minutes=3)
    ask(world, stored, minutes=3)
    sync_id = world.rows("SELECT sync_id FROM wsync.schedule")[0]["sync_id"]
    hourly = ScheduleSpec(name="minutely", sync_id=sync_id, kind="cron", cron="0 * * * *", zone="UTC")
    world.write(change_schedule, stored.schedule_id, hourly, actor="ann")
    world.write(pause_schedule, stored.schedule_id, note=None, actor="ann")

    drive(world, 10)

    assert times(world) == [begin + timedelta(minutes=k) for k in range(3)]
    assert {row["spec_version"] for row in world.rows("SELECT spec_version FROM wsync.run")} == {1}


def test_a_lost_announcement_and_a_lost_index_are_made_up_for(world: Any) -> None:
    world.write(create_backfill, world.minutely().schedule_id, from_at=world.now - timedelta(minutes=2), to_at=world.now, actor="ann")

    sweep(world.engine, world.index)
    drive(world, 2)
    world.redis.flushall()
    world.scheduler.rebuild()
    drive(world, 6)

    assert len(times(world)) == 2
    assert world.rows("SELECT state FROM wsync.backfill")[0]["state"] == "done"


def test_a_cancel_makes_no_more_and_ends_what_waits(world: Any) -> None:
    made = ask(world, world.minutely(), max_open=3)
    world.scheduler.step()

    cancelled = world.write(cancel_backfill, made.backfill_id, actor="ann")
    announce(world.index, [cancelled.entry])
    drive(world, 5)

    assert [row["state"] for row in world.rows("SELECT state FROM wsync.run ORDER BY run_id")] == ["succeeded", "cancelled", "cancelled"]
    with pytest.raises(ConfigError, match="is active"):
        world.write(cancel_backfill, made.backfill_id, actor="ann")


def test_with_its_schedule_deleted_it_ends(world: Any) -> None:
    stored = world.minutely()
    ask(world, stored)
    world.write(delete_schedule, stored.schedule_id, actor="ann")

    world.scheduler.step()

    assert times(world) == []
    assert world.rows("SELECT state FROM wsync.backfill")[0]["state"] == "cancelled"


def test_a_million_times_are_begun_at_once_and_never_held_in_memory(world: Any) -> None:
    stored = world.minutely()
    long_ago = datetime(2024, 1, 1, tzinfo=UTC)
    made = world.write(
        create_backfill, stored.schedule_id, from_at=long_ago, to_at=world.now, actor="ann", max_open=100, overlap=OverlapPolicy.ALLOW_ALL
    )

    step = step_backfill(world.engine, made.backfill_id, 1)

    assert len(step.runs) == 100
    listed = world.write(list_backfills)[0]
    assert (listed["open"], listed["made"], listed["cursor_at"]) == (100, 100, long_ago + timedelta(minutes=99, microseconds=1))


@pytest.mark.parametrize("case", ["turned round", "future", "no times", "mirror", "too many"])
def test_what_makes_no_sense_is_refused(world: Any, case: str) -> None:
    stored = world.minutely(**({"cron": "0 0 1 1 *"} if case == "no times" else {}))
    if case == "mirror":
        world.engine.execute("""UPDATE wsync.sync SET spec = '{"mode": "mirror"}'""")
    begin, end = {"turned round": (-1, -2), "future": (-1, 1)}.get(case, (-2, 0))
    options = {"from_at": world.now + timedelta(hours=begin), "to_at": world.now + timedelta(hours=end)}

    with pytest.raises(ConfigError) as refused:
        world.write(create_backfill, stored.schedule_id, actor="ann", max_open=101 if case == "too many" else 1, **options)

    assert refused.value.next_step
    assert world.rows("SELECT * FROM wsync.backfill") == []


@pytest.mark.parametrize("overlap", [OverlapPolicy.CANCEL_OTHER, OverlapPolicy.TERMINATE_OTHER])
def test_a_run_for_the_past_takes_no_place_of_a_scheduled_one_that_waits(world: Any, overlap: OverlapPolicy) -> None:
    stored = world.minutely(overlap="buffer_one")
    for _ in range(2):
        world.move(60)
        fire(world.engine, [(stored.schedule_id, world.clock(stored.schedule_id)["rev"])])
    ended, waiting = (run["run_id"] for run in world.runs(stored.schedule_id))
    made = ask(world, stored, overlap=overlap)

    step_backfill(world.engine, made.backfill_id, made.entry.rev)

    state_by_run = {run["run_id"]: run["state"] for run in world.runs(stored.schedule_id)}
    assert (state_by_run[ended], state_by_run[waiting]) == ("cancelled", "queued")
