"""What producers do to schedules, under the api's login."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from wsync_engine.index.due_index import Index, connect
from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.schedules import (
    announce,
    change_schedule,
    create_schedule,
    create_schedules,
    delete_schedule,
    pause_schedule,
    resume_schedule,
    trigger_run,
)
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.state import database as state
from wsync_sdk.errors import ConfigError, StateError

from .cluster import until
from .conftest import spec


def test_a_new_schedule_is_due_at_its_first_future_time_and_known_to_the_index(world: Any) -> None:
    stored = world.write(create_schedule, spec(world), actor="ann")

    assert announce(world.index, [stored.entry])
    assert stored.next_nominal_at == world.now + timedelta(minutes=1)
    assert world.index.check([(stored.schedule_id, 1)]) == []
    assert len(world.events("schedule.created")) == 1


def test_registering_again_is_no_change_also_for_an_interval_without_an_anchor(world: Any) -> None:
    declared = spec(world, kind="interval", cron=None, zone=None, every_ms=60_000)
    first = world.write(create_schedule, declared, actor="ann")
    world.move(30)

    again = world.write(create_schedule, declared, actor="ann")

    assert (again.schedule_id, again.entry, again.is_new) == (first.schedule_id, first.entry, False)


def bulk(world: Any) -> list[ScheduleSpec]:
    """Any two differ in each field but `sync_id`, and where one has no value another has one."""
    sync_id = world.new_sync()
    later = world.now + timedelta(days=1)
    first = ScheduleSpec(name="cron", sync_id=sync_id, kind="cron", cron="0 5 * * *", zone="Europe/Berlin", max_runs=3)
    second = ScheduleSpec(
        name="interval",
        sync_id=sync_id,
        kind="interval",
        every_ms=90_000,
        anchor_at=later,
        priority=2,
        jitter_ms=5_000,
        overlap="buffer_all",
        max_buffer=7,
        catchup_ms=60_000,
        catchup_mode="all",
        start_at=later,
        end_at=later + timedelta(days=9),
        max_attempts=9,
        backoff_base_ms=20_000,
        backoff_cap_ms=800_000,
        attempt_timeout_ms=1_000_000,
        total_timeout_ms=2_000_000,
        stall_ms=70_000,
        pause_after_failures=4,
    )
    return [first, second, replace(first, name="once", kind="once", cron=None, zone=None, once_at=later, max_runs=None)]


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1), (1, 0), (0, 1, 2)])
def test_of_many_at_once_each_is_stored_as_it_was_declared(world: Any, chosen: tuple[int, ...]) -> None:
    different = bulk(world)
    specs = [different[at] for at in chosen]

    made = world.write(create_schedules, specs, actor="ann")

    stored = {row["name"]: row for row in world.rows("SELECT * FROM wsync.schedule JOIN wsync.schedule_clock USING (schedule_id)")}
    assert [stored[declared.name]["schedule_id"] for declared in specs] == [x.schedule_id for x in made]
    for declared, one in zip(specs, made, strict=True):
        assert {name: stored[declared.name][name] for name in asdict(declared)} == asdict(declared)
        assert (stored[declared.name]["next_nominal_at"], stored[declared.name]["next_due_at"]) == (one.next_nominal_at, one.entry.due_at)


@pytest.mark.parametrize("values", [(1, True), (1, 1.0), (0, False), (-0.0, 0)], ids=repr)
def test_parameters_that_python_takes_for_the_same_are_kept_apart(world: Any, values: tuple[Any, Any]) -> None:
    sync_id = world.new_sync("x")
    specs = [spec(world, sync_id=sync_id, name=f"s{n}", params={"x": value}) for n, value in enumerate(values)]
    world.write(create_schedules, specs, actor="ann")

    stored = world.rows("SELECT params -> 'x' AS x FROM wsync.schedule ORDER BY name")
    assert [type(row["x"]) for row in stored] == [type(value) for value in values]
    assert not any(x.is_new for x in world.write(create_schedules, specs, actor="ann"))
    with pytest.raises(ConfigError, match="declared differently"):
        world.write(create_schedule, replace(specs[0], params=specs[1].params), actor="ann")


BERLIN = ZoneInfo("Europe/Berlin")
FIRST_PASS, SECOND_PASS = (datetime(2027, 10, 31, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1))


@pytest.mark.parametrize("field", ["once_at", "anchor_at", "start_at", "end_at"])
def test_both_passes_of_a_repeated_hour_are_instants_of_their_own(world: Any, field: str) -> None:
    columns: dict[str, Any] = {
        "once_at": {"kind": "once", "cron": None, "zone": None},
        "anchor_at": {"kind": "interval", "cron": None, "zone": None, "every_ms": 60_000},
    }.get(field, {})
    sync_id = world.new_sync()
    specs = [spec(world, **columns, sync_id=sync_id, name=at.tzname(), **{field: at}) for at in (FIRST_PASS, SECOND_PASS)]
    world.write(create_schedules, specs, actor="ann")

    world.api.execute("SET timezone TO 'Europe/Berlin'")
    again = world.write(create_schedules, specs, actor="ann")

    assert not any(x.is_new for x in again)
    stored = world.rows(f"SELECT extract(epoch FROM {field})::int AS at FROM wsync.schedule ORDER BY {field}")
    assert [row["at"] for row in stored] == [FIRST_PASS.timestamp(), SECOND_PASS.timestamp()]


def test_a_change_to_the_other_pass_of_a_repeated_hour_is_one(world: Any) -> None:
    declared = spec(world, kind="once", cron=None, zone=None, once_at=FIRST_PASS)
    stored = world.write(create_schedule, declared, actor="ann")
    world.api.execute("SET timezone TO 'Europe/Berlin'")

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, once_at=SECOND_PASS), actor="ann")

    assert changed.next_nominal_at - stored.next_nominal_at == timedelta(hours=1)


def test_none_at_once_is_none(world: Any) -> None:
    assert world.write(create_schedules, [], actor="ann") == []


def test_registered_by_many_at_once_there_is_one(world: Any) -> None:
    declared, found = spec(world), []

    def register() -> None:
        with (
            state.connect(world.database.api_url, application_name="test") as connection,
            state.tenant_transaction(connection, world.tenant_id),
        ):
            found.append(create_schedule(connection, world.tenant_id, declared, actor="ann"))

    threads = [threading.Thread(target=register) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(found) == 12
    assert len({x.schedule_id for x in found}) == 1
    assert {x.entry.rev for x in found} == {1}


def test_registering_again_waits_for_nobody_who_holds_clocks(world: Any) -> None:
    """Else two producers with the same names in two orders, or one and a worker that ends runs, would wait in a circle."""
    specs = [spec(world, name=str(n)) for n in range(3)]
    first = world.write(create_schedules, specs, actor="ann")
    world.api.execute("SET lock_timeout = '2s'")

    with world.engine.transaction():
        world.engine.execute("SELECT FROM wsync.schedule_clock FOR UPDATE")
        again = world.write(create_schedules, specs[::-1], actor="ann")

    assert [(x.schedule_id, x.entry, x.is_new) for x in again] == [(x.schedule_id, x.entry, False) for x in first[::-1]]


def test_registering_again_costs_as_many_statements_for_many_as_for_one(world: Any) -> None:
    specs = [spec(world, name=str(n)) for n in range(40)]
    world.write(create_schedules, specs, actor="ann")
    said: list[Any] = []

    class Counting(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            said.append(query)
            return super().execute(query, *arguments, **options)

    world.api.cursor_factory = Counting
    counts = []
    for some in (specs[:1], specs):
        said.clear()
        world.write(create_schedules, some, actor="ann")
        counts.append(len(said))

    assert counts[0] == counts[1]


def test_an_old_entry_of_a_schedule_that_fired_meanwhile_is_no_news_to_the_index(world: Any) -> None:
    declared = spec(world, overlap="allow_all")
    stored = world.write(create_schedule, declared, actor="ann")
    with state.tenant_transaction(world.api, world.tenant_id):
        again = create_schedule(world.api, world.tenant_id, declared, actor="ann")
        world.move(61)
        announce(world.index, fire(world.engine, [(stored.schedule_id, 1)]).entries)

    announce(world.index, [again.entry])

    assert world.index.check([(stored.schedule_id, 2)]) == []


def test_a_name_that_is_declared_differently_is_refused(world: Any) -> None:
    declared = spec(world)
    world.write(create_schedule, declared, actor="ann")

    with pytest.raises(ConfigError, match="declared differently"):
        world.write(create_schedule, replace(declared, cron="0 3 * * *"), actor="ann")


def test_another_tenants_sync_cannot_be_scheduled(world: Any) -> None:
    declared = spec(world)
    with pytest.raises(ConfigError, match="no sync"), state.tenant_transaction(world.api, uuid7()):
        create_schedule(world.api, uuid7(), declared, actor="mallory")


def test_a_change_of_times_raises_the_rev_and_the_version(world: Any) -> None:
    declared = spec(world)
    stored = world.write(create_schedule, declared, actor="ann")

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, cron="30 * * * *"), actor="bob", if_version=1)

    assert (changed.entry.rev, changed.spec_version) == (2, 2)
    assert changed.next_nominal_at == world.now + timedelta(minutes=30)
    with pytest.raises(StateError):
        world.write(change_schedule, stored.schedule_id, declared, actor="bob", if_version=1)


def test_what_a_schedule_was_is_kept_for_those_who_refer_to_it(world: Any) -> None:
    declared = spec(world)
    stored = world.write(create_schedule, declared, actor="ann")

    for minute in (30, 45):
        world.write(change_schedule, stored.schedule_id, replace(declared, cron=f"{minute} * * * *"), actor="bob")

    kept = world.rows("SELECT spec_version, spec ->> 'cron' AS cron FROM wsync.schedule_spec ORDER BY 1")
    assert kept == [{"spec_version": 1, "cron": declared.cron}, {"spec_version": 2, "cron": "30 * * * *"}]


def test_a_pause_keeps_its_first_note_and_resume_catches_nothing_up(world: Any) -> None:
    stored = world.write(create_schedule, spec(world), actor="ann")
    world.write(pause_schedule, stored.schedule_id, note="migration", actor="ann")
    paused = world.write(pause_schedule, stored.schedule_id, note=None, actor="bob")
    row = world.rows("SELECT * FROM wsync.schedule")[0]
    assert (row["pause_note"], row["paused_by"], paused.entry.due_at) == ("migration", "ann", None)
    told = [x["detail"] for x in world.events("schedule.paused")]
    assert told == [{"actor": "ann", "note": "migration"}, {"actor": "bob", "note": "migration"}]
    world.move(600)

    resumed = world.write(resume_schedule, stored.schedule_id, actor="ann")

    assert resumed.next_nominal_at == world.now + timedelta(minutes=1)
    assert world.clock(stored.schedule_id)["missed"] == 0


def test_a_time_that_was_decided_early_is_not_decided_again_after_a_pause(world: Any) -> None:
    """Where the clock of Redis is ahead, a time is fired up to two seconds before it comes."""
    stored = world.write(create_schedule, spec(world, cron="* * * * *", overlap="allow_all"), actor="ann")
    world.move(59)
    fire(world.engine, [(stored.schedule_id, 1)])
    world.write(pause_schedule, stored.schedule_id, note=None, actor="ann")

    resumed = world.write(resume_schedule, stored.schedule_id, actor="ann")

    assert world.clock(stored.schedule_id)["fired"] == 1
    assert resumed.next_nominal_at == world.now + timedelta(seconds=61)


def test_a_deleted_schedules_name_is_free_again(world: Any) -> None:
    declared = spec(world)
    stored = world.write(create_schedule, declared, actor="ann")
    announce(world.index, [stored.entry])

    announce(world.index, [world.write(delete_schedule, stored.schedule_id, actor="ann").entry])

    assert world.redis.exists("ws2:{0}:due", "ws2:{0}:rev") == 0
    assert world.write(create_schedule, declared, actor="ann").is_new


def test_a_trigger_makes_one_run_per_key_and_none_while_one_is_open(world: Any) -> None:
    sync_id = world.new_sync()

    first = world.write(trigger_run, sync_id=sync_id, actor="ann", idem_key="k1")
    again = world.write(trigger_run, sync_id=sync_id, actor="ann", idem_key="k1")
    other = world.write(trigger_run, sync_id=sync_id, actor="ann", idem_key="k2")
    dry = world.write(trigger_run, sync_id=sync_id, actor="ann", dry_run=True)

    assert (first.is_new, again.is_new, again.run_id) == (True, False, first.run_id)
    assert (other.is_new, other.run, other.run_id) == (False, None, first.run_id)
    assert dry.is_new


def test_two_triggers_at_once_with_one_key_find_the_same_run_also_beside_an_open_one(world: Any) -> None:
    sync_id = world.new_sync()
    world.write(trigger_run, sync_id=sync_id, actor="ann")
    options = {"sync_id": sync_id, "actor": "ann", "idem_key": "k1", "overlap": OverlapPolicy.BUFFER_ALL}
    other = state.connect(world.database.api_url, application_name="other")
    found = []

    def ask() -> None:
        with state.tenant_transaction(other, world.tenant_id):
            found.append(trigger_run(other, world.tenant_id, **options))

    thread = threading.Thread(target=ask)
    with state.tenant_transaction(world.api, world.tenant_id):
        first = trigger_run(world.api, world.tenant_id, **options)
        thread.start()
        until(lambda: bool(world.rows("SELECT FROM pg_locks WHERE NOT granted")), timeout_s=4)
    thread.join(10)
    other.close()

    assert [(x.run_id, x.is_new, x.is_waiting) for x in found] == [(first.run_id, False, True)]


def test_a_trigger_works_while_the_schedule_is_paused_and_leaves_it_paused(world: Any) -> None:
    stored = world.write(create_schedule, spec(world), actor="ann")
    world.write(pause_schedule, stored.schedule_id, note="x", actor="ann")
    sync_id = world.rows("SELECT sync_id FROM wsync.schedule")[0]["sync_id"]

    made = world.write(trigger_run, sync_id=sync_id, schedule_id=stored.schedule_id, actor="ann")

    assert made.is_new
    assert world.rows("SELECT paused FROM wsync.schedule")[0]["paused"]


def test_an_index_that_is_away_does_not_stop_a_producer(world: Any) -> None:
    stored = world.write(create_schedule, spec(world), actor="ann")

    assert not announce(Index(connect("redis://127.0.0.1:1/0", timeout_s=0.06)), [stored.entry])
