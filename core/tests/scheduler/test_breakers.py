"""Circuit breakers: a destination that fails again and again is left alone, tried by one run, and trusted again when it answers."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from wsync_engine.index.due_index import Index, connect
from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.breakers import FIRST_OPEN_S, LONGEST_OPEN_S, close_breakers, note_failure
from wsync_engine.scheduler.caps import announce_caps, set_cap
from wsync_engine.scheduler.schedules import announce, trigger_run
from wsync_engine.state.database import tenant_transaction

MOST = 3


def fail(world: Any, times: int = 1, *, retry_after_s: float | None = None, credential_id: UUID | None = None) -> None:
    for _ in range(times):
        caps = note_failure(
            world.engine, world.tenant_id, credential_id or world.connection_id, reason="503", most=MOST, retry_after_s=retry_after_s
        )
        announce_caps(world.index, caps)


def answer(world: Any) -> None:
    announce_caps(world.index, close_breakers(world.engine, world.tenant_id, [world.connection_id], is_trusted=True))


def trigger(world: Any, count: int) -> None:
    for _ in range(count):
        announce(world.index, runs=[world.write(trigger_run, sync_id=world.new_sync(), actor="ann").run])


def dispatched(world: Any) -> list[UUID]:
    return [run for _, run in world.index.dispatch(world.tenant_id, 64)]


def breaker(world: Any) -> Any:
    return world.rows("SELECT * FROM wsync.breaker WHERE credential_id = %s", world.connection_id)[0]


def wait(world: Any, seconds: float) -> None:
    world.move(seconds)
    world.scheduler.sweep()


def half_open(world: Any) -> None:
    fail(world, MOST)
    wait(world, FIRST_OPEN_S)
    assert breaker(world)["state"] == "half_open"


def test_runs_wait_after_so_many_failures_in_a_row_and_not_before(world: Any) -> None:
    trigger(world, 2)
    fail(world, MOST - 1)
    assert len(dispatched(world)) == 2

    trigger(world, 2)
    fail(world)

    assert dispatched(world) == []
    assert [(x["detail"]["reason"], x["tenant_id"]) for x in world.events("breaker.open")] == [("503", world.tenant_id)]


def test_an_answer_between_failures_makes_them_count_from_the_start(world: Any) -> None:
    fail(world, MOST - 1)
    answer(world)
    fail(world, MOST - 1)
    trigger(world, 1)

    assert len(dispatched(world)) == 1


def test_when_its_time_is_over_one_run_tries_and_the_others_wait_for_what_comes_of_it(world: Any) -> None:
    fail(world, MOST)
    trigger(world, 3)
    wait(world, FIRST_OPEN_S - 1)
    assert dispatched(world) == []

    wait(world, 1)

    assert len(dispatched(world)) == 1
    assert dispatched(world) == []


def test_an_answer_lets_all_go_without_waiting_for_the_end_of_the_run_that_tried(world: Any) -> None:
    half_open(world)
    trigger(world, 3)
    assert len(dispatched(world)) == 1

    answer(world)

    assert len(dispatched(world)) == 2
    assert (breaker(world)["failures"], breaker(world)["openings"], breaker(world)["reason"]) == (0, 0, None)


def test_a_failed_trial_opens_it_for_twice_as_long_and_at_most_for_ten_minutes(world: Any) -> None:
    half_open(world)
    waits = []
    for _ in range(7):
        fail(world)
        assert breaker(world)["state"] == "open"
        waits.append((breaker(world)["retry_at"] - world.now).total_seconds())
        wait(world, waits[-1])

    assert waits == [60, 120, 240, 480, LONGEST_OPEN_S, LONGEST_OPEN_S, LONGEST_OPEN_S]


def test_where_no_run_had_to_try_all_go_on_trial_and_one_failure_opens_it_again(world: Any) -> None:
    half_open(world)
    wait(world, FIRST_OPEN_S)
    trigger(world, 4)
    assert len(dispatched(world)) == 4

    fail(world)

    assert breaker(world)["state"] == "open"
    assert breaker(world)["retry_at"] == world.now + timedelta(seconds=2 * FIRST_OPEN_S)


def test_one_run_at_a_time_tries_for_as_long_also_where_no_scheduler_was_there_when_its_time_was_over(world: Any) -> None:
    fail(world, MOST)
    trigger(world, 3)
    wait(world, 3_600)

    wait(world, FIRST_OPEN_S - 1)

    assert (breaker(world)["state"], len(dispatched(world))) == ("half_open", 1)
    wait(world, 1)
    assert breaker(world)["state"] == "closed"


def test_what_fails_while_it_is_open_does_not_prolong_it(world: Any) -> None:
    fail(world, MOST)
    retry_at = breaker(world)["retry_at"]
    world.move(20)

    fail(world, 5)

    assert (breaker(world)["retry_at"], breaker(world)["openings"]) == (retry_at, 1)


def test_the_time_that_the_destination_asked_for_is_kept_to_within_bounds(world: Any) -> None:
    fail(world, MOST, retry_after_s=90)
    assert breaker(world)["retry_at"] == world.now + timedelta(seconds=90)

    answer(world)
    fail(world, MOST, retry_after_s=86_400)

    assert breaker(world)["retry_at"] == world.now + timedelta(seconds=LONGEST_OPEN_S)


def test_a_person_who_saw_to_it_lets_runs_go_at_once_and_the_next_failure_stops_them(world: Any) -> None:
    fail(world, MOST)
    trigger(world, 2)
    with tenant_transaction(world.api, world.tenant_id):
        caps = close_breakers(world.api, world.tenant_id, [world.connection_id], is_trusted=False)
    announce_caps(world.index, caps)
    assert len(dispatched(world)) == 2

    fail(world)

    assert breaker(world)["state"] == "open"


def test_other_credentials_and_tenants_go_on(world: Any) -> None:
    other = uuid7()
    world.engine.execute(
        "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin) VALUES (%s, %s, 'there', 'test')", [other, world.tenant_id]
    )
    fail(world, MOST, credential_id=other)
    trigger(world, 2)

    assert len(dispatched(world)) == 2
    with tenant_transaction(world.api, uuid7()):
        assert close_breakers(world.api, world.tenant_id, [other], is_trusted=True) == []
    assert world.rows("SELECT state FROM wsync.breaker WHERE credential_id = %s", other)[0]["state"] == "open"


@pytest.mark.parametrize("operators", [0, 2])
def test_the_lower_one_of_the_operators_cap_and_the_breakers_holds(world: Any, operators: int) -> None:
    announce_caps(world.index, [world.write(set_cap, "K", world.connection_id, max_running=operators, actor="ann")])
    half_open(world)
    trigger(world, 5)

    assert len(dispatched(world)) == min(operators, 1)
    answer(world)
    assert len(dispatched(world)) == operators - min(operators, 1)


def test_a_sweep_tells_the_index_what_it_was_not_told(world: Any) -> None:
    note = {"reason": "503", "most": 1}
    assert len(note_failure(world.engine, world.tenant_id, world.connection_id, **note)) == 1
    trigger(world, 1)

    world.scheduler.sweep()
    assert dispatched(world) == []
    close_breakers(world.engine, world.tenant_id, [world.connection_id], is_trusted=True)
    world.scheduler.sweep()

    assert len(dispatched(world)) == 1


def test_a_rebuilt_index_has_its_breakers_before_anything_is_dispatched(world: Any) -> None:
    fail(world, MOST)
    trigger(world, 2)

    world.redis.flushdb()
    world.scheduler.rebuild()
    world.index.detach()

    assert dispatched(world) == []


def test_after_postgres_lost_that_it_closed_its_own_state_holds(world: Any) -> None:
    fail(world, MOST)
    answer(world)
    world.engine.execute(
        "UPDATE wsync.breaker SET state = 'open', version = version - 1, opened_at = wsync.clock(), retry_at = wsync.clock() + '1h'"
    )
    trigger(world, 1)

    assert world.scheduler.sweep() == 1

    assert dispatched(world) == []
    assert world.scheduler.sweep() == 0


def test_after_postgres_lost_that_it_opened_again_and_closed_it_since_runs_go(world: Any) -> None:
    half_open(world)
    before = breaker(world)
    fail(world)
    world.engine.execute("UPDATE wsync.breaker SET state = 'half_open', version = %s, failures = 0, openings = 1", [before["version"]])
    answer(world)
    trigger(world, 2)
    assert dispatched(world) == []

    assert world.scheduler.sweep() == 1

    assert len(dispatched(world)) == 2
    assert world.scheduler.sweep() == 0


def test_after_postgres_lost_that_it_ever_failed_runs_go(world: Any) -> None:
    fail(world, MOST)
    world.engine.execute("DELETE FROM wsync.breaker")
    trigger(world, 2)
    assert dispatched(world) == []

    assert world.scheduler.sweep() == 1

    assert len(dispatched(world)) == 2
    assert world.scheduler.sweep() == 0


def test_a_sweep_that_fails_half_way_leaves_the_index_and_postgres_of_one_mind(world: Any) -> None:
    fail(world, MOST)
    trigger(world, 3)
    world.move(FIRST_OPEN_S)
    with world.engine_connection() as other, other.transaction():
        other.execute("LOCK TABLE wsync.schedule_clock")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            world.scheduler.sweep()

    answer(world)

    assert len(dispatched(world)) == 3


def test_an_index_that_is_away_costs_nothing_but_time(world: Any) -> None:
    caps = note_failure(world.engine, world.tenant_id, world.connection_id, reason="503", most=1)

    assert not announce_caps(Index(connect("redis://127.0.0.1:1/0")), caps)


def test_many_workers_that_see_it_fail_at_once_open_it_once(world: Any) -> None:
    lines = [world.engine_connection() for _ in range(8)]
    barrier = threading.Barrier(len(lines))
    opened: list[Any] = []

    def see(line: Any) -> None:
        barrier.wait()
        for _ in range(3):
            opened.extend(note_failure(line, world.tenant_id, world.connection_id, reason="503", most=MOST))

    threads = [threading.Thread(target=see, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(opened) == 1
    assert (breaker(world)["failures"], breaker(world)["openings"]) == (24, 1)
