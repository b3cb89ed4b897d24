"""A claimed batch becomes runs exactly as Postgres says, whatever the index believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.schedules import change_schedule, delete_schedule, pause_schedule
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.state import database as state


def test_a_due_schedule_becomes_one_queued_run_and_moves_on(world: Any) -> None:
    stored = world.minutely()
    world.move(60)

    fired = fire(world.engine, [(stored.schedule_id, 1)])

    runs = world.runs(stored.schedule_id)
    assert [(run["state"], run["nominal_at"], run["spec_version"]) for run in runs] == [("queued", world.now, 1)]
    assert [run.run_id for run in fired.runs] == [runs[0]["run_id"]]
    assert [(x.rev, x.due_at) for x in fired.entries] == [(2, world.now + timedelta(minutes=1))]
    assert len(world.events("run.queued")) == 1


def test_the_same_claim_fired_twice_makes_one_run_and_the_second_tells_what_is_queued(world: Any) -> None:
    stored = world.minutely()
    world.move(60)

    first, second = fire(world.engine, [(stored.schedule_id, 1)]), fire(world.engine, [(stored.schedule_id, 1)])

    assert len(world.runs(stored.schedule_id)) == 1
    assert (second.entries, second.runs) == (first.entries, first.runs)


def test_a_schedule_that_is_not_due_by_postgres_is_left_alone(world: Any) -> None:
    stored = world.minutely()

    fired = fire(world.engine, [(stored.schedule_id, 1)])

    assert (fired.entries, fired.runs) == ((), ())
    assert world.clock(stored.schedule_id)["rev"] == 1


def test_a_pause_that_committed_before_the_fire_wins(world: Any) -> None:
    stored = world.minutely()
    world.move(60)
    world.write(pause_schedule, stored.schedule_id, note=None, actor="ann")

    fired = fire(world.engine, [(stored.schedule_id, 1)])

    assert world.runs(stored.schedule_id) == []
    assert [(x.rev, x.due_at) for x in fired.entries] == [(2, None)]


def test_a_change_that_committed_before_the_fire_wins(world: Any) -> None:
    stored = world.minutely()
    world.move(60)
    spec = ScheduleSpec(name="minutely", sync_id=world.new_sync(), kind="cron", cron="0 0 * * *", zone="UTC")
    changed = world.write(change_schedule, stored.schedule_id, spec, actor="ann")

    fired = fire(world.engine, [(stored.schedule_id, 1)])

    assert world.runs(stored.schedule_id) == []
    assert fired.entries == (changed.entry,)


def test_a_deleted_schedule_fires_no_more(world: Any) -> None:
    stored = world.minutely()
    world.move(60)
    world.write(delete_schedule, stored.schedule_id, actor="ann")

    fire(world.engine, [(stored.schedule_id, 1)])

    assert world.runs(stored.schedule_id) == []


def test_an_open_run_of_the_sync_makes_the_next_fire_skip_and_counts_it(world: Any) -> None:
    stored = world.minutely()
    world.move(60)
    fire(world.engine, [(stored.schedule_id, 1)])
    world.move(60)

    fired = fire(world.engine, [(stored.schedule_id, 2)])

    clock = world.clock(stored.schedule_id)
    assert (clock["fired"], clock["skipped"], len(fired.runs)) == (1, 1, 0)
    met = str(world.runs(stored.schedule_id)[0]["run_id"])
    assert [x["detail"] for x in world.events("schedule.skipped")] == [{"count": 1, "reason": "open", "open_run": met}]


def test_two_schedules_of_one_sync_in_one_batch_make_one_run(world: Any) -> None:
    sync_id = world.new_sync()
    stored = [world.minutely(name, sync_id=sync_id) for name in ("a", "b")]
    world.move(60)

    fired = fire(world.engine, [(x.schedule_id, 1) for x in stored])

    clocks = [world.clock(x.schedule_id) for x in stored]
    assert len(fired.runs) == 1
    assert sorted((x["fired"], x["skipped"]) for x in clocks) == [(0, 1), (1, 0)]


def test_an_outage_is_counted_and_its_last_time_fires(world: Any) -> None:
    stored = world.minutely(catchup_ms=600_000)
    world.move(3_600)

    fire(world.engine, [(stored.schedule_id, 1)])

    clock = world.clock(stored.schedule_id)
    assert (clock["fired"], clock["missed"], clock["coalesced"], clock["skipped"]) == (1, 49, 10, 0)
    assert clock["last_nominal_at"] == world.now


def test_one_bad_schedule_is_paused_with_its_error_and_the_others_fire(world: Any) -> None:
    bad, good = world.minutely("bad"), world.minutely("good")
    world.engine.execute("UPDATE wsync.schedule SET zone = 'Gone/Zone' WHERE schedule_id = %s", [bad.schedule_id])
    world.move(60)

    fired = fire(world.engine, [(bad.schedule_id, 1), (good.schedule_id, 1)])

    row = world.rows("SELECT * FROM wsync.schedule WHERE schedule_id = %s", bad.schedule_id)[0]
    assert (row["paused"], row["paused_by"]) == (True, "system")
    assert "Gone/Zone" in row["pause_note"]
    assert len(world.runs(good.schedule_id)) == 1
    assert {x.schedule_id: x.due_at is None for x in fired.entries} == {bad.schedule_id: True, good.schedule_id: False}


def test_a_schedule_whose_statement_is_refused_is_paused_and_the_others_fire(world: Any) -> None:
    bad, good = world.minutely("bad"), world.minutely("good")
    # An interval overflow: Python decides, Postgres refuses.
    world.engine.execute("UPDATE wsync.schedule SET total_timeout_ms = %s WHERE schedule_id = %s", [2**63 - 1, bad.schedule_id])
    world.move(60)

    fire(world.engine, [(bad.schedule_id, 1), (good.schedule_id, 1)])

    assert world.rows("SELECT paused_by FROM wsync.schedule WHERE schedule_id = %s", bad.schedule_id)[0]["paused_by"] == "system"
    assert world.clock(bad.schedule_id)["missed"] == 1  # its time was due, and no run was made of it
    assert len(world.runs(good.schedule_id)) == 1


def test_a_row_that_someone_holds_does_not_delay_the_others(world: Any) -> None:
    held, free = world.minutely("held"), world.minutely("free")
    world.move(60)

    with state.tenant_transaction(world.api, world.tenant_id):
        pause_schedule(world.api, world.tenant_id, held.schedule_id, note=None, actor="ann")
        fired = fire(world.engine, [(held.schedule_id, 1), (free.schedule_id, 1)])

    assert [x.schedule_id for x in fired.entries] == [free.schedule_id]
    assert world.runs(held.schedule_id) == []


def test_max_runs_ends_the_schedule(world: Any) -> None:
    stored = world.minutely(max_runs=1)
    world.move(60)

    fired = fire(world.engine, [(stored.schedule_id, 1)])

    assert [x.due_at for x in fired.entries] == [None]


def test_a_schedule_that_postgres_does_not_know_leaves_the_index(world: Any) -> None:
    stored = world.minutely()
    unknown = replace(stored, schedule_id=world.tenant_id)

    fired = fire(world.engine, [(unknown.schedule_id, 4)])

    assert [(x.rev, x.is_gone) for x in fired.entries] == [(5, True)]
