"""The scripts on a real server: revs only rise, claims come back, old calls change nothing."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsync_engine.index import due_index
from wsync_engine.index.due_index import FIRE_LEASE_MS, WAKE_SCHEDULERS, Index, RebuildNeeded, connect
from wsync_engine.index.entries import DueEntry, ReadyRun
from wsync_engine.index.wakes import Wakes
from wsync_sdk.errors import ConfigError, RetryableError

from .loads import ready_run

S1, S2 = UUID(int=1), UUID(int=2)
TENANT, WORKER = UUID(int=7), UUID(int=8)


def entry(schedule_id: UUID, rev: int, due_at: datetime | None, *, is_gone: bool = False) -> DueEntry:
    return DueEntry(schedule_id=schedule_id, rev=rev, due_at=due_at, is_gone=is_gone)


def ready(now: datetime, *, priority: int = 1, ready_s: float = 0, late_s: float = 0) -> ReadyRun:
    due_at = now - timedelta(seconds=late_s)
    return ready_run(TENANT, priority=priority, due_at=due_at, ready_at=now + timedelta(seconds=ready_s))


def contents(client: redis.Redis) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.keys("*")}


def test_what_is_due_is_claimed_once_and_the_next_wake_is_the_lease(index: Index, clock: Any) -> None:
    index.upsert_due([entry(S1, 1, clock.now), entry(S2, 1, clock.now + timedelta(minutes=1))])

    first, second = index.claim_due(128), index.claim_due(128)

    assert first.entries == ((S1, 1),)
    assert first.now_ms == clock()
    assert first.next_wake_ms == clock() + FIRE_LEASE_MS
    assert second.entries == ()


def test_a_claim_whose_scheduler_goes_silent_comes_back_when_its_lease_ends(index: Index, clock: Any) -> None:
    index.upsert_due([entry(S1, 1, clock.now)])
    index.claim_due(128)

    clock.move(9.9)
    before = index.claim_due(128).entries
    clock.move(0.1)
    after = index.claim_due(128).entries

    assert (before, after) == ((), ((S1, 1),))


def test_an_older_rev_changes_nothing(index: Index, clock: Any, client: redis.Redis) -> None:
    index.upsert_due([entry(S1, 5, clock.now + timedelta(hours=1))])
    stored = contents(client)

    assert index.upsert_due([entry(S1, 4, clock.now), entry(S1, 5, clock.now)]) == 0
    assert contents(client) == stored


def test_a_newer_rev_takes_a_schedule_out_of_firing(index: Index, clock: Any) -> None:
    index.upsert_due([entry(S1, 1, clock.now)])
    index.claim_due(128)

    index.upsert_due([entry(S1, 2, None)])
    clock.move(60)

    assert index.claim_due(128).entries == ()


def test_a_paused_schedule_keeps_its_rev_and_a_deleted_one_leaves_nothing(index: Index, clock: Any, client: redis.Redis) -> None:
    before = contents(client)
    index.upsert_due([entry(S1, 2, clock.now)])
    index.upsert_due([entry(S1, 3, None)])
    assert index.upsert_due([entry(S1, 2, clock.now)]) == 0

    index.upsert_due([entry(S1, 4, None, is_gone=True)])

    assert contents(client) == before


calls = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.integers(1, 3), st.integers(1, 8), st.integers(-5, 30)),
        st.tuples(st.just("commit"), st.integers(1, 3), st.integers(1, 8), st.integers(-5, 30)),
        st.tuples(st.just("claim"), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.integers(1, 12)),
    ),
    max_size=25,
)


@given(calls)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_rev_never_decreases_and_each_schedule_is_in_one_place(index: Index, clock: Any, client: redis.Redis, calls: list[Any]) -> None:
    client.delete("ws2:{0}:due", "ws2:{0}:rev", "ws2:{0}:firing")
    revs: dict[bytes, int] = {}
    for call in calls:
        match call:
            case ("upsert", at, rev, due):
                index.upsert_due([entry(UUID(int=at), rev, clock.now + timedelta(seconds=due))])
            case ("commit", at, rev, due):
                index.commit_fire([entry(UUID(int=at), rev, clock.now + timedelta(seconds=due))], [])
            case ("claim", n):
                index.claim_due(n)
            case ("wait", seconds):
                clock.move(seconds)
        stored = {member: int(rev) for member, rev in client.hgetall("ws2:{0}:rev").items()}
        assert all(stored[member] >= rev for member, rev in revs.items())
        revs = stored
        due, firing = set(client.zrange("ws2:{0}:due", 0, -1)), set(client.zrange("ws2:{0}:firing", 0, -1))
        assert not due & firing
        assert due | firing == set(stored)


def test_replaying_any_old_call_changes_nothing(index: Index, clock: Any, client: redis.Redis) -> None:
    run = ready(clock.now)
    index.upsert_due([entry(S1, 1, clock.now)])
    index.claim_due(1)
    index.commit_fire([entry(S1, 2, clock.now + timedelta(minutes=1))], [run])
    index.dispatch(WORKER, 1)
    index.renew([run.run_id])
    stored = contents(client)

    index.upsert_due([entry(S1, 1, clock.now)])
    index.claim_due(1)
    index.commit_fire([entry(S1, 2, clock.now + timedelta(minutes=1))], [run])
    index.renew([run.run_id])

    assert contents(client) == stored


def test_a_replayed_release_changes_nothing(index: Index, clock: Any, client: redis.Redis) -> None:
    run = ready(clock.now)
    index.commit_fire([], [run])
    index.dispatch(WORKER, 1)

    assert index.release([run.run_id]) == 1
    stored = contents(client)
    assert index.release([run.run_id]) == 0
    assert contents(client) == stored


def test_after_a_flush_every_call_asks_for_a_rebuild_and_writes_nothing(index: Index, clock: Any, client: redis.Redis) -> None:
    index.upsert_due([entry(S1, 1, clock.now)])
    client.flushdb()

    for call in (lambda: index.claim_due(1), lambda: index.upsert_due([entry(S1, 2, clock.now)]), lambda: index.dispatch(WORKER, 1)):
        with pytest.raises(RebuildNeeded):
            call()

    assert client.keys("*") == []


def test_an_index_made_by_another_server_process_must_be_rebuilt(client: redis.Redis, clock: Any) -> None:
    client.set("ws2:{0}:inc", "abc:another-run-id:ready")

    with pytest.raises(RebuildNeeded):
        Index(client, clock=clock).claim_due(1)


def test_a_client_of_an_older_incarnation_goes_on_with_the_present_one_at_once(index: Index, client: redis.Redis, clock: Any) -> None:
    index.upsert_due([entry(S1, 1, clock.now)])
    client.flushdb()
    other = Index(client, clock=clock)
    assert other.begin_load()
    other.end_load()

    assert index.upsert_due([entry(S2, 1, clock.now)]) == 1

    assert [schedule_id for schedule_id, _ in other.claim_due(9).entries] == [S2]


def test_a_loader_never_goes_on_in_another_ones_incarnation(index: Index, client: redis.Redis, clock: Any) -> None:
    assert index.begin_load()
    client.flushdb()
    other = Index(client, clock=clock)
    assert other.begin_load()

    with pytest.raises(RebuildNeeded):
        index.upsert_due([entry(S1, 1, clock.now)])


def test_only_one_loads_at_a_time(index: Index, client: redis.Redis, clock: Any) -> None:
    first, second = Index(client, clock=clock), Index(client, clock=clock)

    assert (first.begin_load(), second.begin_load()) == (True, False)


def test_a_script_is_sent_again_after_the_server_forgot_it(index: Index, client: redis.Redis) -> None:
    index.claim_due(1)
    client.script_flush()

    assert index.claim_due(1).entries == ()


def test_while_it_is_loaded_schedules_fire_but_runs_are_not_dispatched(client: redis.Redis, clock: Any) -> None:
    index = Index(client, clock=clock)
    assert index.begin_load()
    index.upsert_due([entry(S1, 1, clock.now)])

    assert len(index.claim_due(1).entries) == 1
    with pytest.raises(RetryableError, match="being loaded"):
        index.dispatch(WORKER, 1)


def test_a_new_earlier_head_wakes_the_schedulers_and_a_later_one_does_not(index: Index, clock: Any, redis_url: str) -> None:
    wakes = Wakes(connect(redis_url), WAKE_SCHEDULERS)
    assert wakes.wait(1)
    index.upsert_due([entry(S1, 1, clock.now + timedelta(minutes=5))])
    assert wakes.wait(5)

    index.upsert_due([entry(S2, 1, clock.now + timedelta(minutes=9))])
    assert not wakes.wait(0.1)

    index.upsert_due([entry(S2, 2, clock.now + timedelta(minutes=1))])
    assert wakes.wait(5)
    wakes.close()


def test_slots_are_shared_eight_to_four_to_one(index: Index, clock: Any) -> None:
    runs = [ready(clock.now, priority=priority) for priority in (0, 1, 2) for _ in range(30)]
    index.commit_fire([], runs)
    priority_by_run = {run.run_id: run.priority for run in runs}

    given_out = [priority_by_run[run] for _, run in index.dispatch(WORKER, 26)]

    assert [given_out.count(priority) for priority in (2, 1, 0)] == [16, 8, 2]
    assert given_out[:13] == [2, 1, 2, 2, 1, 2, 0, 2, 1, 2, 2, 1, 2]


def test_the_share_does_not_depend_on_how_many_are_asked_for_at_once(index: Index, clock: Any) -> None:
    runs = [ready(clock.now, priority=priority) for priority in (0, 1, 2) for _ in range(30)]
    index.commit_fire([], runs)
    priority_by_run = {run.run_id: run.priority for run in runs}

    given_out = [priority_by_run[index.dispatch(WORKER, 1)[0][1]] for _ in range(13)]

    assert given_out == [2, 1, 2, 2, 1, 2, 0, 2, 1, 2, 2, 1, 2]


def test_within_a_class_the_first_due_is_served_first(index: Index, clock: Any) -> None:
    runs = [ready(clock.now, late_s=late_s) for late_s in (3, 9, 1, 5)]
    index.commit_fire([], runs)

    found = [run for _, run in index.dispatch(WORKER, 4)]

    assert found == [run.run_id for run in sorted(runs, key=lambda run: run.due_at)]


def test_a_hold_that_nobody_renews_puts_its_run_back(index: Index, clock: Any) -> None:
    kept, lost = ready(clock.now, late_s=2), ready(clock.now, late_s=1)
    index.commit_fire([], [kept, lost])
    index.dispatch(WORKER, 2)
    assert index.renew([kept.run_id]) == []
    clock.move(10)

    assert index.expire() == [lost.run_id]
    assert index.dispatch(WORKER, 2) == [(TENANT, lost.run_id)]


def test_a_held_run_is_not_queued_a_second_time(index: Index, clock: Any) -> None:
    run = ready(clock.now)
    index.commit_fire([], [run])
    index.dispatch(WORKER, 1)

    assert index.commit_fire([], [run]) == 0
    assert index.dispatch(WORKER, 1) == []


def test_renewing_an_unknown_run_says_so(index: Index) -> None:
    assert index.renew([S1, S2]) == [S1, S2]


def test_a_run_for_later_waits_in_delay_until_it_is_promoted(index: Index, clock: Any) -> None:
    run = ready(clock.now, ready_s=30)
    index.commit_fire([], [run])
    assert index.dispatch(WORKER, 1) == []
    assert index.claim_due(1).next_wake_ms == clock() + 30_000

    clock.move(30)

    assert index.promote() == (1, None)
    assert index.dispatch(WORKER, 1) == [(TENANT, run.run_id)]


def test_an_idle_worker_is_woken_by_a_pushed_run(index: Index, clock: Any, redis_url: str) -> None:
    wakes = Wakes(connect(redis_url), Index.worker_channel(WORKER))
    assert wakes.wait(1)
    index.dispatch(WORKER, 1)

    index.commit_fire([], [ready(clock.now)])

    assert wakes.wait(5)
    wakes.close()


def test_a_check_tells_missing_older_and_newer_apart(index: Index, clock: Any) -> None:
    s3, s4, s5 = UUID(int=3), UUID(int=4), UUID(int=5)
    index.upsert_due([entry(S1, 5, clock.now), entry(S2, 5, clock.now), entry(s3, 5, None), entry(s5, 5, clock.now + timedelta(days=1))])

    found = index.check([(S1, 6), (S2, 4), (s3, 5), (s4, 1), (s5, 5)])

    assert [(x.schedule_id, x.kind, x.stored_rev) for x in found] == [
        (S1, "older", 5), (S2, "newer", 5), (s3, "missing", 5), (s4, "older", 0),
    ]  # fmt: skip


def test_running_runs_are_entered_as_held_at_a_rebuild(index: Index, clock: Any) -> None:
    run = ready(clock.now)
    index.commit_fire([], [run])

    index.hold([run])

    assert index.dispatch(WORKER, 1) == []
    assert index.renew([run.run_id]) == []


def test_more_entries_than_one_script_takes_are_sent_in_pages(index: Index, clock: Any) -> None:
    count = due_index.BATCH * 2 + 1
    index.upsert_due([entry(UUID(int=at), 1, clock.now) for at in range(1, count + 1)])
    index.commit_fire([], [ready(clock.now) for _ in range(count)])

    claimed = [len(index.claim_due(128).entries) for _ in range(9)]

    assert sum(claimed) == count
    assert len(index.check([(UUID(int=at), 1) for at in range(1, count + 1)])) == 0


def test_a_server_that_may_evict_entries_is_refused(index: Index, client: redis.Redis) -> None:
    index.check_server()
    client.config_set("maxmemory-policy", "allkeys-lru")

    with pytest.raises(ConfigError, match="allkeys-lru"):
        index.check_server()


def test_a_server_that_is_not_there_is_a_retryable_error() -> None:
    with pytest.raises(RetryableError):
        Index(connect("redis://127.0.0.1:1/0")).claim_due(1)
    with pytest.raises(RetryableError):
        Wakes(connect("redis://127.0.0.1:1/0"), WAKE_SCHEDULERS).wait(1)


def test_over_a_new_connection_the_server_is_asked_who_it_is_before_anything_is_done(
    index: Index, client: redis.Redis, redis_url: str
) -> None:
    index.claim_due(1)
    other = connect(redis_url)

    def times_asked() -> int:
        return int(other.info("commandstats")["cmdstat_info"]["calls"])

    own = times_asked() + 1
    index.claim_due(1)
    assert times_asked() == own
    other.client_kill_filter(_id=client.client_id())
    with suppress(RetryableError):
        index.first_waiting((0,))  # nothing that is said to an incarnation

    own = times_asked() + 1
    index.claim_due(1)
    index.claim_due(1)

    assert times_asked() == own + 1
    other.close()


def test_an_address_that_cannot_be_read_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError) as refused:
        connect("http://:hunter2@nowhere")

    assert "hunter2" not in str(refused.value)


def test_keys_of_the_older_layout_end_a_day_after_the_index_is_loaded(index: Index, client: redis.Redis) -> None:
    client.set("ws:{0}:inc", "of an older process")
    client.zadd("ws:{0}:rq:h", {"run": 0})
    client.zadd("ws:{1}:rq:h", {"another shard's": 0})

    assert index.begin_load()

    assert all(86_000 < client.ttl(name) <= 86_400 for name in ("ws:{0}:inc", "ws:{0}:rq:h"))
    assert client.ttl("ws:{1}:rq:h") == -1


def test_the_end_of_the_older_layout_is_not_put_off_by_another_load(index: Index, client: redis.Redis) -> None:
    client.set("ws:{0}:inc", "of an older process", ex=100)

    assert index.begin_load()

    assert client.ttl("ws:{0}:inc") <= 100
