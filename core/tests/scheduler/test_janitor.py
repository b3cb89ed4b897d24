"""What becomes of runs and events when they are old."""

from __future__ import annotations

from typing import Any

from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.scheduler.janitor import Retention, tidy
from wsync_engine.scheduler.runs import claim_runs, finish_run
from wsync_engine.scheduler.schedules import trigger_run
from wsync_engine.services.runs import find_run, list_runs, show_run

DAY = 86_400


def ended_run(world: Any, *, is_folded: bool = True, is_delivered: bool = True) -> Any:
    run_id = world.write(trigger_run, sync_id=world.new_sync(), actor="ann").run_id
    (claimed,) = claim_runs(world.engine, [run_id], uuid7())
    finish_run(world.engine, run_id, claimed.epoch, "succeeded")
    columns = {"folded_at": "wsync.clock()" if is_folded else "NULL", "delivery": "1" if is_delivered else "NULL"}
    world.engine.execute(
        f"UPDATE wsync.run SET {', '.join(f'{name} = {value}' for name, value in columns.items())} WHERE run_id = %s", [run_id]
    )
    world.engine.execute(
        "INSERT INTO wsync.chunk (run_id, partition, first_row, last_row, tenant_id) VALUES (%s, 0, 0, 9, %s)", [run_id, world.tenant_id]
    )
    return run_id


def archived(world: Any) -> set[Any]:
    return {row["run_id"] for row in world.rows("SELECT run_id FROM wsync.run_history")}


def test_a_run_that_ended_a_day_ago_is_kept_in_the_history_and_is_still_shown(world: Any) -> None:
    old = ended_run(world)
    world.move(DAY + 60)
    young = ended_run(world)

    assert tidy(world.engine, Retention())

    assert archived(world) == {old}
    assert world.rows("SELECT run_id FROM wsync.chunk") == [{"run_id": young}]
    assert [row["run_id"] for row in list_runs(world.api, world.tenant_id)] == [young, old]
    assert show_run(world.api, world.tenant_id, old).run["state"] == "succeeded"
    assert find_run(world.api, world.tenant_id, str(old)) == old


def test_the_key_of_a_trigger_is_known_as_long_as_its_run_is_kept(world: Any) -> None:
    options = {"sync_id": world.new_sync(), "actor": "ann", "idem_key": "order 7"}
    first = world.write(trigger_run, **options)
    (claimed,) = claim_runs(world.engine, [first.run_id], uuid7())
    finish_run(world.engine, first.run_id, claimed.epoch, "succeeded")
    world.move(2 * DAY)
    tidy(world.engine, Retention())

    again = world.write(trigger_run, **options)

    assert archived(world) == {first.run_id}
    assert (again.run_id, again.is_new, again.run) == (first.run_id, False, None)
    world.move(9 * DAY)
    tidy(world.engine, Retention(runs_days=7))
    assert world.write(trigger_run, **options).is_new


def test_what_must_still_be_folded_stays(world: Any) -> None:
    unfolded, undelivered = ended_run(world, is_folded=False), ended_run(world, is_folded=False, is_delivered=False)
    world.move(2 * DAY)

    tidy(world.engine, Retention())

    assert archived(world) == {undelivered}
    assert [row["run_id"] for row in world.rows("SELECT run_id FROM wsync.run")] == [unfolded]


def test_the_history_has_the_columns_of_the_table_that_it_is_filled_from(world: Any) -> None:
    columns = "SELECT attname, atttypid FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"

    assert world.rows(columns, "wsync.run") == world.rows(columns, "wsync.run_history")


def test_nobody_decides_on_a_blocked_run_for_a_week_and_the_next_one_is_queued(world: Any) -> None:
    sync_id = world.new_sync()
    blocked = world.write(trigger_run, sync_id=sync_id, actor="ann").run_id
    (claimed,) = claim_runs(world.engine, [blocked], uuid7())
    finish_run(world.engine, blocked, claimed.epoch, "blocked")
    waiting = world.write(trigger_run, sync_id=sync_id, actor="ann", overlap=OverlapPolicy.BUFFER_ONE).run_id
    world.move(6 * DAY)
    tidy(world.engine, Retention())
    before = world.rows("SELECT state FROM wsync.run ORDER BY run_id")
    world.move(2 * DAY)

    tidy(world.engine, Retention())

    rows = {row["run_id"]: (row["state"], row["cancel_reason"]) for row in world.rows("SELECT * FROM wsync.run")}
    assert [row["state"] for row in before] == ["blocked", "buffered"]
    assert rows == {blocked: ("cancelled", "expired"), waiting: ("queued", None)}


def test_days_that_are_past_their_keep_are_dropped_and_days_to_come_are_made(world: Any) -> None:
    ended_run(world)
    names = "SELECT count(*) AS n FROM pg_class WHERE relname ~ '^run_event_[0-9]{8}$'"
    world.move(2 * DAY)
    tidy(world.engine, Retention())
    made = world.rows(names)[0]["n"]
    assert world.rows("SELECT count(*) AS n FROM wsync.run_event")[0]["n"] > 0
    world.move(20 * DAY)

    tidy(world.engine, Retention(events_days=5))

    assert world.rows("SELECT count(*) AS n FROM wsync.run_event")[0]["n"] == 0
    assert world.rows(names)[0]["n"] <= made + 8


def test_one_janitor_at_a_time(world: Any) -> None:
    other = world.engine_connection()
    with other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(hashtext('wsync.janitor'))")
        assert not tidy(world.engine, Retention())
    assert tidy(world.engine, Retention())
