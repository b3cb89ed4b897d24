"""DISPATCH and RELEASE on a real server: the shares of classes and tenants, caps, patience, and that no run is ever lost."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import redis

from wsync_engine.index.due_index import PATIENCE_MS, Index, connect
from wsync_engine.index.entries import Cap, DefaultCaps, Kind, ReadyRun
from wsync_engine.index.layout import key
from wsync_engine.index.wakes import Wakes

from .loads import NOON, assert_sound, breaker_of, ready_run, resources_of, runs_in
from .reference import Reference

WORKER = UUID(int=8)
A, B, C = UUID(int=0xA), UUID(int=0xB), UUID(int=0xC)
QUEUES = (0,)
EVERY_QUEUE = tuple(range(16))


def cap(tenant: UUID, kind: Kind, resource: int, most: int, *, weight: int = 1, version: int = 1) -> Cap:
    return Cap(tenant_id=tenant, kind=kind, resource_id=UUID(int=resource), max_running=most, weight=weight, version=version)


def weight(tenant: UUID, value: int) -> Cap:
    return Cap(tenant_id=tenant, kind="T", resource_id=tenant, max_running=10**6, weight=value)


def dispatched(index: Index, free: int, queues: tuple[int, ...] = QUEUES) -> list[str]:
    return [member.decode() for member in index.dispatch_members(WORKER, free, queues=queues).members]


def tenants(index: Index, free: int) -> list[UUID]:
    return [tenant for tenant, _ in index.dispatch(WORKER, free)]


def run_id(member: str) -> UUID:
    return UUID(hex=member[50:82])


@pytest.fixture
def sound(client: redis.Redis, index: Index) -> Any:
    """After the test, the index is sound."""
    yield
    assert_sound(client)


# -- the shares


def test_the_worked_example_of_the_design(index: Index, sound: Any) -> None:
    index.commit_fire([], [ready_run(A, priority=2) for _ in range(100)])
    index.commit_fire([], [ready_run(B, priority=2) for _ in range(5)])
    index.commit_fire([], [ready_run(C, priority=0) for _ in range(40)])

    served = tenants(index, 14)

    assert served == [A, B, A, B, C, A, B, A, B, A, B, A, A, C]


def test_with_all_classes_backlogged_low_gets_one_in_thirteen(index: Index, sound: Any) -> None:
    for tenant, priority in ((A, 2), (B, 1), (C, 0)):
        index.commit_fire([], [ready_run(tenant, priority=priority) for _ in range(60)])

    served = tenants(index, 52)

    assert Counter(served) == {A: 32, B: 16, C: 4}
    assert all(C in served[at : at + 13] for at in range(40))


def test_ten_thousand_runs_of_one_tenant_do_not_delay_the_one_of_another(index: Index, sound: Any) -> None:
    index.commit_fire([], [ready_run(A) for _ in range(10_000)])
    index.dispatch(WORKER, 3)
    index.commit_fire([], [ready_run(B)])

    assert tenants(index, 1) == [B]


def test_a_tenant_that_was_away_has_earned_no_credit(index: Index, clock: Any, sound: Any) -> None:
    index.commit_fire([], [ready_run(A) for _ in range(200)])
    index.commit_fire([], [ready_run(B)])
    index.dispatch(WORKER, 60)
    index.commit_fire([], [ready_run(B) for _ in range(50)])

    assert Counter(tenants(index, 20)) == {A: 10, B: 10}


def test_a_weight_of_three_gets_three_times_the_slots(index: Index, sound: Any) -> None:
    index.set_caps([weight(A, 3)])
    index.commit_fire([], [ready_run(tenant) for tenant in (A, B) for _ in range(50)])

    assert Counter(tenants(index, 40)) == {A: 30, B: 10}


@pytest.mark.parametrize("seed", range(10))
def test_what_tenants_get_of_slots_and_time_differs_by_no_more_than_the_bound(index: Index, clock: Any, sound: Any, seed: int) -> None:
    """(c): |service_i/w_i - service_j/w_j| <= c_max/w_i + c_max/w_j at each release, whatever the runs take."""
    draw = random.Random(seed)
    weights = {UUID(int=at): draw.choice((1, 2, 5)) for at in range(1, 5)}
    index.set_caps([weight(tenant, value) for tenant, value in weights.items()])
    index.commit_fire([], [ready_run(tenant, sync=tenant.int * 10 + draw.randrange(3)) for tenant in weights for _ in range(151)])
    longest = {tenant: draw.choice((1, 30, 600)) for tenant in weights}
    served_s = dict.fromkeys(weights, 0.0)
    for _ in range(150):
        ((tenant, run),) = index.dispatch(WORKER, 1)
        seconds = round(draw.uniform(1, longest[tenant]), 3)
        clock.move(seconds)
        index.release([run])
        served_s[tenant] += seconds
        for (one, its), (other, others) in itertools.combinations(weights.items(), 2):
            assert abs(served_s[one] / its - served_s[other] / others) <= 600 / its + 600 / others


def test_a_refused_run_costs_its_tenant_nothing(index: Index, client: redis.Redis, clock: Any, sound: Any) -> None:
    index.commit_fire([], [ready_run(A, sync=1), ready_run(A, sync=1), ready_run(B)])
    ((_, refused),) = index.dispatch(WORKER, 1)
    clock.move(0.1)

    index.refuse([refused])

    assert client.hget(key(0, "pass"), f"01|{A.hex}") == b"a0.000"
    assert tenants(index, 1) == [A]


def test_how_long_a_sync_takes_is_expected_of_its_next_run(index: Index, client: redis.Redis, clock: Any, sound: Any) -> None:
    for seconds in (100, 20):
        index.commit_fire([], [ready_run(A, sync=1)])
        ((_, run),) = index.dispatch(WORKER, 1)
        clock.move(seconds)
        index.release([run])

    assert client.hget(key(0, "ewma"), UUID(int=1).hex) == b"80.000"


def test_a_quick_sync_is_not_remembered(index: Index, client: redis.Redis, clock: Any, sound: Any) -> None:
    index.commit_fire([], [ready_run(A, sync=1)])
    ((_, run),) = index.dispatch(WORKER, 1)
    index.release([run])

    assert not client.exists(key(0, "ewma"))


# -- against the reference


def _push(draw: random.Random, now: Any) -> ReadyRun:
    tenant = draw.randrange(1, 4)
    return ready_run(
        UUID(int=tenant),
        connection=tenant * 100 + draw.randrange(2),
        sync=tenant * 100 + 10 + draw.randrange(3),
        credential=tenant * 100 + 20 + draw.randrange(2),
        priority=draw.randrange(3),
        due_at=now - timedelta(seconds=draw.randrange(50)),
    )


def _random_cap(draw: random.Random, version: int) -> Cap:
    tenant = draw.randrange(1, 4)
    kind: Kind = draw.choice(("T", "N", "S", "K", "B"))
    credential = tenant * 100 + 20
    number = {"T": tenant, "N": tenant * 100 + draw.randrange(2), "S": tenant * 100 + 10 + draw.randrange(3)}.get(kind, credential)
    most = draw.choice((0, 1, 1, 2, 3))
    return cap(UUID(int=tenant), kind, number, most, weight=draw.choice((1, 2, 5)), version=version)


@pytest.mark.parametrize("seed", range(100))
def test_dispatch_gives_what_the_reference_gives(index: Index, client: redis.Redis, clock: Any, seed: int) -> None:
    """Runs, caps, ends in any order: the same run goes next as if every run were looked at each time."""
    draw, reference = random.Random(seed), Reference()
    for step in range(60):
        match draw.choices(("push", "dispatch", "release", "cap", "move"), (4, 5, 3, 1, 1))[0]:
            case "push":
                runs = [_push(draw, clock.now) for _ in range(draw.randrange(1, 6))]
                index.commit_fire([], runs)
                for run in runs:
                    reference.push(run.member)
            case "dispatch":
                free = draw.randrange(1, 7)
                expected = [member for _ in range(free) if (member := reference.dispatch(clock())) is not None]
                assert dispatched(index, free) == expected
            case "release" if reference.held:
                ended = draw.choice(sorted(reference.held))
                index.release([run_id(ended)])
                reference.release(ended, clock())
            case "cap":
                given = _random_cap(draw, step + 1)
                index.set_caps([given])
                if given.kind == "T":
                    reference.weights[given.tenant_id.hex] = given.weight
                reference.set_cap(given.resource, given.max_running)
            case _:
                clock.move(draw.choice((0.5, 3, 40)))
        assert_sound(client)


@pytest.mark.parametrize("seed", range(100))
def test_no_run_is_lost_and_no_cap_is_passed_whatever_happens(index: Index, client: redis.Redis, clock: Any, seed: int) -> None:
    """All scripts in any order, patience and several queues included; in the end, everything that was pushed has run."""
    draw = random.Random(seed)
    caps: dict[str, Cap] = {}
    pushed: dict[str, ReadyRun] = {}
    released: set[str] = set()
    for step in range(60):
        held = runs_in(client)["held"]
        match draw.choices(("push", "again", "dispatch", "release", "cap", "move", "expire", "hold"), (4, 2, 6, 3, 2, 2, 1, 1))[0]:
            case "push":
                for _ in range(draw.randrange(1, 6)):
                    run = _push(draw, clock.now)
                    wait = timedelta(seconds=draw.choice((0, 0, 30)))
                    run = ReadyRun(**{**_fields(run), "queue": draw.choice((0, 0, 3, 15)), "ready_at": clock.now + wait})
                    pushed[run.member] = run
                    index.commit_fire([], [run])
            case "again" if pushed:
                run = draw.choice([pushed[member] for member in sorted(pushed)])
                if run.member not in released:
                    ready_at = clock.now + timedelta(seconds=draw.choice((-1, 10)))
                    index.commit_fire([], [ReadyRun(**{**_fields(run), "ready_at": ready_at})])
            case "dispatch":
                given = dispatched(index, draw.randrange(1, 9), draw.choice(((0,), (3, 0), EVERY_QUEUE)))
                _assert_caps(client, given, caps)
            case "release" if held:
                ended = draw.choice(sorted(held))
                index.release([run_id(ended)])
                released.add(ended)
            case "cap":
                new = _random_cap(draw, step + 1)
                caps[new.resource] = new
                index.set_caps([new])
            case "move":
                clock.move(draw.choice((1, 9, 400)))
                index.promote()
                index.renew([run_id(member) for member in draw.sample(held, len(held) // 2)])
            case "expire":
                index.expire()
            case "hold" if pushed:
                member = draw.choice(sorted(pushed))
                if member not in released:
                    index.hold([pushed[member]])
        places = runs_in(client)
        assert sorted(member for place in places.values() for member in place) == sorted(set(pushed) - released)
        assert_sound(client)
    _drain(index, client, clock, caps, most=2 * len(pushed) + 4)


def _fields(run: ReadyRun) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ReadyRun.__slots__}


def _assert_caps(client: redis.Redis, given: list[str], caps: dict[str, Cap]) -> None:
    """I10: what was taken just now found room."""
    used = Counter(resource for member in runs_in(client)["held"] for resource in resources_of(member))
    for resource in {resource for member in given for resource in resources_of(member)}:
        for name in {resource, breaker_of(resource)} & caps.keys():
            assert used[resource] <= caps[name].max_running


def _drain(index: Index, client: redis.Redis, clock: Any, caps: dict[str, Cap], *, most: int) -> None:
    """I12 and (d): with every cap at one or more, each run is admitted in the end."""
    index.set_caps([Cap(**{**_cap_fields(cap), "max_running": max(cap.max_running, 1), "version": 1_000}) for cap in caps.values()])
    for _ in range(most):
        clock.move(40)
        index.promote()
        index.release([run_id(member) for member in runs_in(client)["held"]])
        if not dispatched(index, 3, EVERY_QUEUE):
            break
    assert runs_in(client) == {"rq": [], "wait": [], "delay": [], "held": []}
    assert_sound(client)


def _cap_fields(cap: Cap) -> dict[str, Any]:
    return {name: getattr(cap, name) for name in Cap.__slots__}


# -- caps


def test_a_full_cap_of_a_tenant_leaves_the_slots_to_others_until_one_is_released(index: Index, sound: Any) -> None:
    index.set_caps([cap(A, "T", A.int, 2)])
    index.commit_fire([], [ready_run(A) for _ in range(5)] + [ready_run(B) for _ in range(5)])
    first = index.dispatch(WORKER, 64)

    assert Counter(tenant for tenant, _ in first) == {A: 2, B: 5}
    assert index.dispatch(WORKER, 64) == []

    index.release([run for tenant, run in first if tenant == A][:1])
    assert tenants(index, 64) == [A]


@pytest.mark.parametrize(("kind", "name"), [("N", "connection"), ("S", "sync"), ("K", "credential")])
def test_a_full_resource_parks_its_runs_and_a_release_brings_the_oldest_back(
    index: Index, clock: Any, sound: Any, kind: Kind, name: str
) -> None:
    index.set_caps([cap(A, kind, 5, 1)])
    runs = [ready_run(A, **{name: 5}, due_at=clock.now - timedelta(seconds=late_s)) for late_s in (3, 9, 6)]
    index.commit_fire([], runs)
    order = []
    for _ in runs:
        ((_, run),) = index.dispatch(WORKER, 64)
        order.append(run)
        index.release([run])

    assert order == [runs[1].run_id, runs[2].run_id, runs[0].run_id]


def test_a_thousand_runs_of_a_blocked_resource_do_not_hold_up_a_later_one(
    index: Index, clock: Any, client: redis.Redis, sound: Any
) -> None:
    index.set_caps([cap(A, "N", 5, 0)])
    index.commit_fire([], [ready_run(A, connection=5, due_at=clock.now - timedelta(hours=1)) for _ in range(1_000)])
    free, other = ready_run(A, connection=6), ready_run(B)
    index.commit_fire([], [free, other])

    assert set(index.dispatch(WORKER, 64)) == {(A, free.run_id), (B, other.run_id)}
    assert client.zcard(key(0, "wait")) == 1_000


def test_another_tenant_is_served_in_the_same_call_while_one_is_all_blocked(index: Index, clock: Any, client: redis.Redis) -> None:
    index.set_caps([cap(A, "N", 5, 0)])
    index.commit_fire([], [ready_run(A, connection=5) for _ in range(1_000)])
    index.commit_fire([], [ready_run(B)])

    assert tenants(index, 1) == [B]
    assert client.zcard(key(0, "wait")) <= 100


def test_a_default_holds_where_no_cap_is_set_and_a_cap_overrides_it(client: redis.Redis, index: Index, clock: Any) -> None:
    strict = Index(client, clock=clock, default_caps=DefaultCaps(sync=1, tenant=50))
    strict.set_caps([cap(A, "S", 2, 3)])
    strict.commit_fire([], [ready_run(A, sync=sync) for sync in (1, 2) for _ in range(5)])

    assert len(strict.dispatch(WORKER, 64)) == 1 + 3


def test_raising_a_cap_brings_back_who_waits_and_an_older_version_changes_nothing(index: Index, sound: Any) -> None:
    index.set_caps([cap(A, "K", 5, 0, version=3)])
    index.commit_fire([], [ready_run(A, credential=5) for _ in range(10)])
    assert index.dispatch(WORKER, 64) == []

    assert index.set_caps([cap(A, "K", 5, 9, version=2)]) == {f"K{5:032x}": 3}
    assert index.dispatch(WORKER, 64) == []

    index.set_caps([cap(A, "K", 5, 4, version=4)])
    assert len(index.dispatch(WORKER, 64)) == 4


def test_a_raised_cap_of_a_tenant_lets_it_go_on(index: Index, sound: Any) -> None:
    index.set_caps([cap(A, "T", A.int, 0)])
    index.commit_fire([], [ready_run(A, priority=priority) for priority in (0, 1, 2)])
    assert index.dispatch(WORKER, 64) == []

    index.set_caps([cap(A, "T", A.int, 2, version=2)])

    assert len(index.dispatch(WORKER, 64)) == 2


def test_an_expired_hold_gives_its_slots_back(index: Index, clock: Any, sound: Any) -> None:
    index.set_caps([cap(A, "N", 5, 1)])
    lost, waits = ready_run(A, connection=5, due_at=clock.now - timedelta(seconds=9)), ready_run(A, connection=5)
    index.commit_fire([], [lost, waits])
    assert len(index.dispatch(WORKER, 64)) == 1
    clock.move(10)

    assert index.expire() == [lost.run_id]
    assert index.dispatch(WORKER, 64) == [(A, lost.run_id)]


def test_runs_entered_as_held_count_for_their_caps(index: Index, sound: Any) -> None:
    index.set_caps([cap(A, "N", 5, 2)])
    running = [ready_run(A, connection=5) for _ in range(2)]
    index.commit_fire([], [running[0], ready_run(A, connection=5)])

    assert index.hold(running) == 2
    assert index.hold(running) == 0
    assert index.dispatch(WORKER, 64) == []

    index.release([running[1].run_id])
    assert len(index.dispatch(WORKER, 64)) == 1


# -- patience


def test_a_run_that_waited_for_five_minutes_is_not_passed_over_any_more(index: Index, clock: Any, sound: Any) -> None:
    """It needs both its connection and its sync; others that need one of them only take turns on those."""
    index.set_caps([cap(A, "N", 5, 1), cap(A, "S", 6, 1)])
    first = [ready_run(A, priority=2, connection=5), ready_run(A, priority=2, sync=6)]
    index.commit_fire([], first)
    held = index.dispatch(WORKER, 2)
    slow = ready_run(A, priority=0, connection=5, sync=6)
    index.commit_fire([], [slow])
    passed = 0
    for turn in range(40):
        index.commit_fire([], [ready_run(A, priority=2, connection=5), ready_run(A, priority=2, sync=6)])
        clock.move(20)
        index.release([held.pop(0)[1]])
        held += index.dispatch(WORKER, 2)
        if (A, slow.run_id) in held:
            passed = turn
            break

    assert PATIENCE_MS / 20_000 <= passed + 1 <= PATIENCE_MS / 20_000 + 5


def test_an_open_breaker_keeps_no_slot_for_those_who_wait_for_it(index: Index, clock: Any, sound: Any) -> None:
    index.set_caps([cap(A, "N", 5, 1), cap(A, "K", 7, 0)])
    index.commit_fire([], [ready_run(A, connection=5, credential=7)])
    index.dispatch(WORKER, 1)
    clock.move(PATIENCE_MS / 1000)
    index.set_caps([cap(A, "N", 5, 1, version=2)])
    index.dispatch(WORKER, 1)
    other = ready_run(A, connection=5)
    index.commit_fire([], [other])

    assert index.dispatch(WORKER, 1) == [(A, other.run_id)]


def test_a_breaker_that_opens_frees_what_was_kept_for_an_urgent_run(index: Index, clock: Any, client: redis.Redis, sound: Any) -> None:
    index.set_caps([cap(A, "N", 5, 1), cap(A, "S", 6, 1), cap(A, "K", 7, 1)])
    index.commit_fire([], [ready_run(A, connection=5)])
    ((_, running),) = index.dispatch(WORKER, 1)
    index.commit_fire([], [ready_run(A, connection=5, sync=6, credential=7)])
    index.dispatch(WORKER, 1)
    clock.move(PATIENCE_MS / 1000)
    index.set_caps([cap(A, "N", 5, 2, version=2)])
    index.commit_fire([], [ready_run(A, connection=5, due_at=clock.now - timedelta(hours=2))])
    index.set_caps([cap(A, "N", 5, 1, version=3)])
    index.dispatch(WORKER, 3)
    assert client.hlen(key(0, "urgent")) == 1

    index.set_caps([cap(A, "K", 7, 0, version=2)])

    assert client.hlen(key(0, "urgent")) == 0
    index.release([running])
    assert len(index.dispatch(WORKER, 3)) == 1


# -- queues


def test_a_worker_gets_only_what_is_in_its_queues(index: Index, sound: Any) -> None:
    here, there = ready_run(A, queue=0), ready_run(A, queue=9)
    index.commit_fire([], [here, there])

    assert index.dispatch(WORKER, 64, queues=(1, 2)) == []
    assert index.dispatch(WORKER, 64, queues=(0,)) == [(A, here.run_id)]
    assert index.dispatch(WORKER, 64, queues=(9,)) == [(A, there.run_id)]


def test_queues_take_turns_also_when_one_slot_is_free_at_a_time(index: Index, sound: Any) -> None:
    index.commit_fire([], [ready_run(A, queue=queue, priority=2) for queue in (0, 3) for _ in range(30)])

    served = [dispatched(index, 1, (0, 3))[0][0] for _ in range(10)] + [member[0] for member in dispatched(index, 10, (0, 3))]

    assert Counter(served) == {"0": 10, "3": 10}
    assert Counter(served[:10]) == {"0": 5, "3": 5}


def test_a_cap_is_shared_by_all_queues_and_its_release_reaches_each(index: Index, sound: Any) -> None:
    index.set_caps([cap(A, "N", 5, 1)])
    index.commit_fire([], [ready_run(A, connection=5, queue=queue) for queue in (0, 15)])
    ((_, first),) = index.dispatch(WORKER, 64, queues=(0,))
    assert index.dispatch(WORKER, 64, queues=(15,)) == []

    index.release([first])

    assert len(index.dispatch(WORKER, 64, queues=(15,))) == 1


def test_a_queue_that_no_worker_serves_does_not_keep_a_slot_from_another(index: Index, sound: Any) -> None:
    index.set_caps([cap(A, "N", 5, 1)])
    index.commit_fire([], [ready_run(A, connection=5) for _ in range(2)])
    ((_, first),) = index.dispatch(WORKER, 64)
    index.commit_fire([], [ready_run(A, connection=5, queue=1, due_at=NOON - timedelta(hours=1))])
    index.dispatch(WORKER, 64, queues=(0, 1))

    index.release([first])

    assert len(index.dispatch(WORKER, 64)) == 1


def test_only_a_worker_of_the_queue_is_woken(index: Index, redis_url: str) -> None:
    other = UUID(int=9)
    here, there = (Wakes(connect(redis_url), Index.worker_channel(worker)) for worker in (WORKER, other))
    assert here.wait(1)
    assert there.wait(1)
    index.dispatch(WORKER, 1, queues=(0, 2))
    index.dispatch(other, 1, queues=(1,))

    index.commit_fire([], [ready_run(A, queue=1)])

    assert there.wait(5)
    assert not here.wait(0.1)
    here.close()
    there.close()


# -- a run is in one place


def test_a_delayed_run_that_is_given_as_ready_goes_into_its_queue(index: Index, clock: Any, sound: Any) -> None:
    run = ready_run(A, due_at=clock.now, ready_at=clock.now + timedelta(minutes=9))
    index.commit_fire([], [run])

    index.commit_fire([], [ReadyRun(**{**_fields(run), "ready_at": clock.now})])

    assert index.dispatch(WORKER, 1) == [(A, run.run_id)]
    assert index.promote() == (0, None)


def test_a_delayed_run_that_is_given_another_time_waits_for_that(index: Index, clock: Any, sound: Any) -> None:
    run = ready_run(A, due_at=clock.now, ready_at=clock.now + timedelta(minutes=9))
    index.commit_fire([], [run])

    index.commit_fire([], [ReadyRun(**{**_fields(run), "ready_at": clock.now + timedelta(minutes=1)})])

    assert index.promote() == (0, clock() + 60_000)


def test_a_parked_run_that_is_pushed_again_stays_parked(index: Index, client: redis.Redis, sound: Any) -> None:
    index.set_caps([cap(A, "N", 5, 0)])
    run = ready_run(A, connection=5)
    index.commit_fire([], [run])
    index.dispatch(WORKER, 1)

    assert index.commit_fire([], [run]) == 0
    assert client.zcard(key(0, "rq")) == 0


def test_when_nothing_is_left_nothing_is_stored(index: Index, client: redis.Redis, clock: Any) -> None:
    before = set(client.keys("*"))
    index.set_caps([cap(A, "T", A.int, 1), cap(A, "N", 5, 1)])
    index.commit_fire([], [ready_run(A, connection=5, priority=at % 3) for at in range(9)] + [ready_run(B) for _ in range(9)])
    while given := index.dispatch(WORKER, 8):
        clock.move(1)
        index.release([run for _, run in given])

    index.expire()

    assert set(client.keys("*")) - before == {key(0, "cap").encode(), key(0, "idle").encode()}


def test_passes_of_tenants_that_have_gone_are_forgotten_while_others_work_on(index: Index, client: redis.Redis, clock: Any) -> None:
    index.commit_fire([], [ready_run(UUID(int=at)) for at in range(1, 400)])
    index.commit_fire([], [ready_run(A) for _ in range(100)])
    while len(given := index.dispatch(WORKER, 64)) == 64:
        index.release([run for _, run in given])
    index.release([run for _, run in given])
    index.commit_fire([], [ready_run(A), ready_run(A), ready_run(A)])
    index.dispatch(WORKER, 3)

    for _ in range(20):
        index.expire()

    assert client.hlen(key(0, "pass")) == 1


def test_replaying_holds_caps_and_pushes_changes_nothing(index: Index, client: redis.Redis, clock: Any, sound: Any) -> None:
    caps = [cap(A, "N", 5, 1, version=2), cap(A, "T", A.int, 3)]
    held, parked, refused = (ready_run(A, connection=5) for _ in range(3))
    index.set_caps(caps)
    index.hold([held])
    index.commit_fire([], [parked, refused])
    index.dispatch(WORKER, 4)
    stored = {name: client.dump(name) for name in client.keys("*")}

    index.set_caps(caps)
    index.set_caps([cap(A, "N", 5, 7, version=1)])
    index.hold([held])
    index.commit_fire([], [held, parked, refused])

    assert {name: client.dump(name) for name in client.keys("*")} == stored
