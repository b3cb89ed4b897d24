"""Caps from Postgres to the index: set, loaded, swept; the newer version wins and Postgres has the last word."""

from __future__ import annotations

from typing import Any

import pytest

from wsync_engine.index.due_index import Index, connect
from wsync_engine.scheduler.caps import announce_caps, set_cap
from wsync_engine.scheduler.runs import claim_runs
from wsync_engine.scheduler.schedules import announce, trigger_run
from wsync_engine.state.database import tenant_transaction
from wsync_sdk.errors import ConfigError


def triggered(world: Any, count: int) -> None:
    for _ in range(count):
        announce(world.index, runs=[world.write(trigger_run, sync_id=world.new_sync(), actor="ann").run])


def dispatched(world: Any) -> list[Any]:
    return [run for _, run in world.index.dispatch(world.tenant_id, 64)]


def capped(world: Any, most: int, **options: Any) -> Any:
    return world.write(set_cap, "N", world.connection_id, max_running=most, actor="ann", **options)


def test_a_cap_that_is_set_is_kept_to_and_told_of_by_an_event(world: Any) -> None:
    assert announce_caps(world.index, [capped(world, 2)])
    triggered(world, 5)

    assert len(dispatched(world)) == 2
    assert [x["detail"]["max_running"] for x in world.events("cap.set")] == [2]


def test_setting_a_cap_again_raises_its_version(world: Any) -> None:
    assert [capped(world, most).version for most in (1, 5, 5)] == [1, 2, 3]


def test_a_sweep_tells_the_index_of_a_cap_that_was_not_announced(world: Any) -> None:
    capped(world, 1)
    triggered(world, 3)

    assert world.scheduler.sweep() == 0

    assert len(dispatched(world)) == 1


def test_a_rebuilt_index_has_its_caps_before_anything_is_dispatched(world: Any) -> None:
    capped(world, 2)
    triggered(world, 4)
    claim_runs(world.engine, dispatched(world)[:1], world.tenant_id)

    world.redis.flushdb()
    world.scheduler.rebuild()
    world.index.detach()

    assert len(dispatched(world)) == 1


def test_after_postgres_lost_a_change_of_a_cap_its_own_holds(world: Any) -> None:
    cap = capped(world, 1)
    capped(world, 9)
    announce_caps(world.index, [capped(world, 9)])
    world.engine.execute("UPDATE wsync.resource_cap SET version = %s, max_running = 1", [cap.version])
    triggered(world, 3)

    assert world.scheduler.sweep() == 1

    assert len(dispatched(world)) == 1
    assert world.scheduler.sweep() == 0


def test_a_version_that_postgres_lost_and_gave_to_another_cap_is_told_apart(world: Any) -> None:
    capped(world, 5)
    announce_caps(world.index, [capped(world, 0)])
    world.engine.execute("UPDATE wsync.resource_cap SET max_running = 3")
    triggered(world, 4)

    assert world.scheduler.sweep() == 1

    assert len(dispatched(world)) == 3
    assert world.scheduler.sweep() == 0


def test_a_running_run_whose_hold_was_lost_is_held_again_by_the_sweep(world: Any) -> None:
    announce_caps(world.index, [capped(world, 1)])
    triggered(world, 2)
    running = dispatched(world)
    claim_runs(world.engine, running, world.tenant_id)
    world.move(11)
    world.index.expire()  # nobody renewed it, but its worker lives
    assert world.index.renew(running) == running

    assert world.scheduler.sweep() == 1

    assert world.index.renew(running) == []
    assert dispatched(world) == []


def test_another_tenant_can_not_set_a_cap_for_us(world: Any) -> None:
    announce_caps(world.index, [capped(world, 1)])

    with tenant_transaction(world.api, world.connection_id):  # a tenant that is not ours
        seen = world.api.execute("SELECT count(*) FROM wsync.resource_cap").fetchone()

    assert seen[0] == 0


@pytest.mark.parametrize(
    ("kind", "numbers"), [("N", {"max_running": -1}), ("N", {"max_running": 1, "weight": 0}), ("N", {"max_running": 1, "weight": 101})]
)
def test_numbers_out_of_range_are_refused(world: Any, kind: str, numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        world.write(set_cap, kind, world.connection_id, actor="ann", **numbers)


def test_a_tenants_cap_is_of_that_tenant(world: Any) -> None:
    with pytest.raises(ConfigError):
        world.write(set_cap, "T", world.connection_id, max_running=1, actor="ann")


def test_an_index_that_is_away_is_told_by_the_next_sweep(world: Any) -> None:
    assert not announce_caps(Index(connect("redis://127.0.0.1:1/0")), [capped(world, 1)])
