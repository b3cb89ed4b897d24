"""What a fire, a trigger or an end does to the runs of one overlap key: the table of policies, and the moments where two of them meet."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.overlap import promote_orphans
from wsync_engine.scheduler.runs import Beat, claim_runs, confirm_kill, finish_run, heartbeat, reap_runs, request_cancel
from wsync_engine.scheduler.schedules import pause_schedule, trigger_run
from wsync_engine.scheduler.sweeper import sweep
from wsync_engine.state import database as state
from wsync_sdk.errors import StateError


def fire_next(world: Any, stored: Any, seconds: float = 60) -> Any:
    world.move(seconds)
    return fire(world.engine, [(stored.schedule_id, world.clock(stored.schedule_id)["rev"])])


def states(world: Any, stored: Any) -> list[str]:
    return [run["state"] for run in world.runs(stored.schedule_id)]


def counts(world: Any, stored: Any) -> tuple[int, int]:
    clock = world.clock(stored.schedule_id)
    return clock["fired"], clock["skipped"]


def start(world: Any, run_id: Any) -> Any:
    claimed = claim_runs(world.engine, [run_id], uuid7())
    assert [run.run_id for run in claimed] == [run_id]
    return claimed[0]


@pytest.mark.parametrize(("overlap", "expected", "fired"), [
    ("skip", ["queued"], (1, 3)),
    ("buffer_one", ["queued", "buffered"], (2, 2)),
    ("buffer_all", ["queued", "buffered", "buffered", "buffered"], (4, 0)),
    ("cancel_other", ["cancelled", "cancelled", "cancelled", "queued"], (4, 0)),
    ("terminate_other", ["cancelled", "cancelled", "cancelled", "queued"], (4, 0)),
    ("allow_all", ["queued", "queued", "queued", "queued"], (4, 0)),
])  # fmt: skip
def test_four_fires_while_the_first_run_is_queued(world: Any, overlap: str, expected: list[str], fired: tuple[int, int]) -> None:
    stored = world.minutely(overlap=overlap)

    for _ in range(4):
        fire_next(world, stored)

    assert (states(world, stored), counts(world, stored)) == (expected, fired)


@pytest.mark.parametrize(("overlap", "expected", "fired"), [
    ("skip", ["running"], (1, 2)),
    ("buffer_one", ["running", "buffered"], (2, 1)),
    ("buffer_all", ["running", "buffered", "buffered"], (3, 0)),
    ("cancel_other", ["cancelling", "cancelled", "buffered"], (3, 0)),
    ("terminate_other", ["cancelled", "cancelled", "queued"], (3, 0)),
    ("allow_all", ["running", "queued", "queued"], (3, 0)),
])  # fmt: skip
def test_two_fires_while_the_first_run_is_executed(world: Any, overlap: str, expected: list[str], fired: tuple[int, int]) -> None:
    stored = world.minutely(overlap=overlap)
    fire_next(world, stored)
    start(world, world.runs(stored.schedule_id)[0]["run_id"])

    for _ in range(2):
        fire_next(world, stored)

    assert (states(world, stored), counts(world, stored)) == (expected, fired)


def test_the_first_that_waits_is_the_one_that_is_kept_by_buffer_one_and_the_last_by_cancel_other(world: Any) -> None:
    kept = {}
    for overlap in ("buffer_one", "cancel_other"):
        stored = world.minutely(overlap, overlap=overlap)
        fire_next(world, stored)
        start(world, world.runs(stored.schedule_id)[0]["run_id"])
        for _ in range(3):
            fire_next(world, stored)
        runs = world.runs(stored.schedule_id)
        kept[overlap] = [number for number, run in enumerate(runs) if run["state"] == "buffered"]

    assert kept == {"buffer_one": [1], "cancel_other": [3]}


def test_a_full_buffer_skips_and_says_so(world: Any) -> None:
    stored = world.minutely(overlap="buffer_all", max_buffer=2)
    for _ in range(5):
        fire_next(world, stored)

    open_run = world.runs(stored.schedule_id)[0]["run_id"]
    assert counts(world, stored) == (3, 2)
    assert [x["detail"] for x in world.events("schedule.skipped")] == [{"count": 1, "reason": "buffer_full", "open_run": str(open_run)}] * 2


def test_an_end_queues_the_oldest_that_waits_in_the_same_transaction(world: Any) -> None:
    stored = world.minutely(overlap="buffer_all")
    for _ in range(3):
        fire_next(world, stored)
    first, second, third = (run["run_id"] for run in world.runs(stored.schedule_id))
    claimed = start(world, first)

    with world.engine.transaction():
        successor = finish_run(world.engine, first, claimed.epoch, "succeeded")
        assert states(world, stored) == ["succeeded", "queued", "buffered"]

    assert successor.run_id == second
    assert third != second


def test_an_end_that_is_rolled_back_queues_nothing(world: Any) -> None:
    stored = world.minutely(overlap="buffer_all")
    fire_next(world, stored), fire_next(world, stored)
    claimed = start(world, world.runs(stored.schedule_id)[0]["run_id"])

    with world.engine.transaction(force_rollback=True):
        finish_run(world.engine, claimed.run_id, claimed.epoch, "succeeded")

    assert states(world, stored) == ["running", "buffered"]


@pytest.mark.parametrize("ending", ["cancelled while queued", "discarded while blocked"])
def test_whatever_ends_a_run_its_successor_is_queued(world: Any, ending: str) -> None:
    stored = world.minutely(overlap="buffer_one")
    fire_next(world, stored), fire_next(world, stored)
    first, second = (run["run_id"] for run in world.runs(stored.schedule_id))

    if ending == "cancelled while queued":
        requested = request_cancel(world.engine, first, reason="mistake", actor="ann")
        assert requested.successor.run_id == second
    else:
        world.engine.execute("UPDATE wsync.run SET state = 'blocked' WHERE run_id = %s", [first])
        world.engine.execute("UPDATE wsync.run SET state = 'cancelled' WHERE run_id = %s", [first])

    assert states(world, stored) == ["cancelled", "queued"]


def test_what_waited_for_longer_than_the_catch_up_window_ends_as_expired_and_the_next_one_is_queued(world: Any) -> None:
    stored = world.minutely(overlap="buffer_all", catchup_ms=90_000)
    for _ in range(3):
        fire_next(world, stored)
    claimed = start(world, world.runs(stored.schedule_id)[0]["run_id"])
    world.move(60)  # the second is 120 s old now, the third 60 s

    finish_run(world.engine, claimed.run_id, claimed.epoch, "succeeded")

    runs = world.runs(stored.schedule_id)
    assert [(run["state"], run["cancel_reason"]) for run in runs] == [("succeeded", None), ("cancelled", "expired"), ("queued", None)]
    assert runs[2]["ready_at"] == world.now


def test_a_manual_run_that_waits_never_expires(world: Any) -> None:
    sync_id = world.new_sync()
    first = world.write(trigger_run, sync_id=sync_id, actor="ann")
    waiting = world.write(trigger_run, sync_id=sync_id, actor="ann", overlap=OverlapPolicy.BUFFER_ALL)
    claimed = start(world, first.run_id)
    world.move(86_400)

    successor = finish_run(world.engine, first.run_id, claimed.epoch, "succeeded")

    assert waiting.is_waiting
    assert successor.run_id == waiting.run_id


def test_a_pause_ends_what_waits_and_leaves_what_is_executed(world: Any) -> None:
    stored = world.minutely(overlap="buffer_all")
    for _ in range(3):
        fire_next(world, stored)
    claimed = start(world, world.runs(stored.schedule_id)[0]["run_id"])

    world.write(pause_schedule, stored.schedule_id, note="audit", actor="ann")

    assert states(world, stored) == ["running", "cancelled", "cancelled"]
    assert finish_run(world.engine, claimed.run_id, claimed.epoch, "succeeded") is None


def test_a_terminated_run_is_its_worker_no_more_and_the_successor_waits_for_the_lease(world: Any) -> None:
    stored = world.minutely(overlap="terminate_other")
    fire_next(world, stored)
    world.move(55)
    claimed = start(world, world.runs(stored.schedule_id)[0]["run_id"])

    fired = fire_next(world, stored, 5)

    old, new = world.runs(stored.schedule_id)
    assert (old["state"], old["cancel_reason"], old["epoch"]) == ("cancelled", "terminated", claimed.epoch + 1)
    assert (new["state"], new["ready_at"], new["waits_for"]) == ("queued", claimed.lease_until, old["run_id"])
    assert len(fired.interrupted) == 1
    with pytest.raises(StateError):
        finish_run(world.engine, claimed.run_id, claimed.epoch, "succeeded")
    assert claim_runs(world.engine, [new["run_id"]], uuid7()) == []


def test_a_confirmed_kill_lets_the_successor_start_at_once(world: Any) -> None:
    stored = world.minutely(overlap="terminate_other")
    fire_next(world, stored)
    world.move(55)
    claimed = start(world, world.runs(stored.schedule_id)[0]["run_id"])
    fire_next(world, stored, 5)

    ready = confirm_kill(world.engine, claimed.run_id, claimed.epoch)

    new = world.runs(stored.schedule_id)[1]
    assert [run.run_id for run in ready] == [new["run_id"]]
    assert start(world, new["run_id"])
    assert confirm_kill(world.engine, claimed.run_id, claimed.epoch) == []


def test_a_holder_that_had_lost_the_run_before_confirms_no_kill(world: Any) -> None:
    """Its own process is gone, but not that of the worker which the run was terminated at."""
    stored = world.minutely(overlap="terminate_other")
    fire_next(world, stored)
    run_id = world.runs(stored.schedule_id)[0]["run_id"]
    silent = start(world, run_id)
    world.move(50)
    reap_runs(world.engine, grace_s=0)
    last = start(world, run_id)
    fire_next(world, stored, 10)
    new = world.runs(stored.schedule_id)[1]

    by_silent = confirm_kill(world.engine, run_id, silent.epoch)
    early = claim_runs(world.engine, [new["run_id"]], uuid7())
    by_last = confirm_kill(world.engine, run_id, last.epoch)

    assert (by_silent, early) == ([], [])
    assert [run.run_id for run in by_last] == [new["run_id"]]


@pytest.mark.parametrize("later", ["fire", "trigger after a cancel", "skipping trigger after a cancel"])
def test_no_later_run_of_the_key_starts_while_the_terminated_one_may_live(world: Any, later: str) -> None:
    """The one that waited for it ends first; whatever comes then must wait as well."""
    stored = world.minutely(overlap="terminate_other")
    fire_next(world, stored)
    world.move(55)
    claimed = start(world, world.runs(stored.schedule_id)[0]["run_id"])
    fire_next(world, stored, 5)
    if later == "fire":
        world.engine.execute("UPDATE wsync.schedule_clock SET next_due_at = next_due_at - interval '50 seconds'")
        world.engine.execute("UPDATE wsync.schedule_clock SET next_nominal_at = next_due_at")
        fire_next(world, stored, 10)
        last = world.runs(stored.schedule_id)[2]["run_id"]
    else:
        sync_id = world.rows("SELECT sync_id FROM wsync.schedule")[0]["sync_id"]
        request_cancel(world.engine, world.runs(stored.schedule_id)[1]["run_id"], reason="mistake", actor="ann")
        overlap = OverlapPolicy.SKIP if later.startswith("skipping") else OverlapPolicy.TERMINATE_OTHER
        last = world.write(trigger_run, sync_id=sync_id, actor="ann", overlap=overlap).run_id

    early = claim_runs(world.engine, [last], uuid7())
    world.engine.execute("UPDATE wsync.run SET ready_at = wsync.clock() WHERE run_id = %s", [last])
    hastened = claim_runs(world.engine, [last], uuid7())
    ready = confirm_kill(world.engine, claimed.run_id, claimed.epoch)

    assert (early, hastened) == ([], [])
    assert [run.run_id for run in ready] == [last]
    assert start(world, last)


def test_a_cancelled_run_tells_its_worker_with_the_next_heartbeat_and_makes_way_when_it_has_ended(world: Any) -> None:
    stored = world.minutely(overlap="cancel_other")
    fire_next(world, stored)
    run_id = world.runs(stored.schedule_id)[0]["run_id"]
    worker_id = uuid7()
    claimed = claim_runs(world.engine, [run_id], worker_id)[0]

    fired = fire_next(world, stored)
    held = heartbeat(world.engine, worker_id, [Beat(run_id=run_id, epoch=claimed.epoch)])
    successor = finish_run(world.engine, run_id, claimed.epoch, "cancelled")

    assert fired.interrupted == (worker_id,)
    assert held[0].is_cancelled
    assert successor.run_id == world.runs(stored.schedule_id)[1]["run_id"]


def test_two_schedules_of_one_sync_meet_at_its_key(world: Any) -> None:
    sync_id = world.new_sync()
    skipping = world.minutely("skipping", sync_id=sync_id)
    buffering = world.minutely("buffering", sync_id=sync_id, overlap="buffer_one")
    world.move(60)

    fire(world.engine, [(skipping.schedule_id, 1), (buffering.schedule_id, 1)])

    assert (states(world, skipping), states(world, buffering)) == (["queued"], ["buffered"])


def test_a_fire_that_wants_to_wait_while_the_open_run_ends_is_never_left_waiting_for_nobody(world: Any) -> None:
    """Both hold their breath at the worst moment: the end has written and not committed, the fire has read what was before."""
    stored = world.minutely(overlap="buffer_one")
    for _ in range(20):
        fire_next(world, stored)
        run_id = next(run["run_id"] for run in world.runs(stored.schedule_id) if run["state"] == "queued")
        claimed = start(world, run_id)
        world.move(60)
        other = world.engine_connection()
        begun = threading.Event()

        def end(other: Any = other, claimed: Any = claimed, begun: Any = begun) -> None:
            with other.transaction():
                finish_run(other, claimed.run_id, claimed.epoch, "succeeded")
                begun.set()
                time.sleep(0.05)

        ending = threading.Thread(target=end)
        ending.start()
        begun.wait(5)
        fired = fire(world.engine, [(stored.schedule_id, world.clock(stored.schedule_id)["rev"])])
        if not fired.entries:  # its clock was locked by the end for too long: it comes again
            fired = fire(world.engine, [(stored.schedule_id, world.clock(stored.schedule_id)["rev"])])
        ending.join()

        assert [run["state"] for run in world.runs(stored.schedule_id)][-2:] == ["succeeded", "queued"]
        world.end_runs()


def test_a_run_that_waits_for_nobody_is_queued_by_the_sweep(world: Any) -> None:
    stored = world.minutely(overlap="buffer_one")
    fire_next(world, stored), fire_next(world, stored)
    orphan = world.runs(stored.schedule_id)[1]["run_id"]
    world.engine.execute("DELETE FROM wsync.run WHERE schedule_id = %s AND state = 'queued'", [stored.schedule_id])

    sweep(world.engine, world.index)

    assert states(world, stored) == ["queued"]
    assert [run for _, run in world.index.dispatch(uuid7(), 1)] == [orphan]
    assert promote_orphans(world.engine, shard=0) == []


def test_a_trigger_follows_its_schedules_policy_unless_it_is_given_another(world: Any) -> None:
    stored = world.minutely(overlap="buffer_one")
    sync_id = world.rows("SELECT sync_id FROM wsync.schedule")[0]["sync_id"]
    arguments = {"sync_id": sync_id, "schedule_id": stored.schedule_id, "actor": "ann"}
    open_run = world.write(trigger_run, **arguments)

    waiting = world.write(trigger_run, **arguments)
    refused = world.write(trigger_run, **arguments)
    skipped = world.write(trigger_run, **arguments, overlap=OverlapPolicy.SKIP)
    beside = world.write(trigger_run, **arguments, overlap=OverlapPolicy.ALLOW_ALL)

    assert (open_run.is_new, open_run.is_waiting) == (True, False)
    assert (waiting.is_new, waiting.is_waiting) == (True, True)
    assert (refused.is_new, refused.is_refused, refused.run_id) == (False, True, open_run.run_id)
    assert (skipped.is_new, skipped.is_refused, skipped.run_id) == (False, False, open_run.run_id)
    assert (beside.is_new, beside.is_waiting) == (True, False)


@pytest.mark.parametrize("older", ["trigger", "trigger of its schedule", "fire"])
@pytest.mark.parametrize("newer", ["trigger", "trigger of its schedule", "fire"])
def test_the_newer_of_two_that_cancel_the_open_run_takes_the_place_of_the_older(world: Any, older: str, newer: str) -> None:
    stored = world.minutely(overlap="cancel_other")
    sync_id = world.rows("SELECT sync_id FROM wsync.schedule")[0]["sync_id"]
    executed = start(world, world.write(trigger_run, sync_id=sync_id, actor="ann").run_id)

    for way in (older, newer):
        if way == "fire":
            fire_next(world, stored)
        else:
            schedule_id = None if way == "trigger" else stored.schedule_id
            world.write(trigger_run, sync_id=sync_id, schedule_id=schedule_id, actor="ann", overlap=OverlapPolicy.CANCEL_OTHER)

    runs = world.rows("SELECT * FROM wsync.run ORDER BY run_id")
    assert [run["state"] for run in runs] == ["cancelling", "cancelled", "buffered"]
    assert (runs[1]["cancel_reason"], runs[1]["outcome_reason"]) == ("superseded", "superseded by a later run of the sync")
    assert [event["run_id"] for event in world.events("run.cancelled")] == [runs[1]["run_id"]]
    assert finish_run(world.engine, executed.run_id, executed.epoch, "cancelled").run_id == runs[2]["run_id"]


def test_what_waits_without_having_asked_for_an_end_keeps_its_place(world: Any) -> None:
    sync_id = world.new_sync()
    options = {"sync_id": sync_id, "actor": "ann"}
    start(world, world.write(trigger_run, **options).run_id)
    patient = world.write(trigger_run, **options, overlap=OverlapPolicy.BUFFER_ALL)
    first = world.write(trigger_run, **options, overlap=OverlapPolicy.CANCEL_OTHER)

    second = world.write(trigger_run, **options, overlap=OverlapPolicy.CANCEL_OTHER)

    waiting = world.rows("SELECT run_id FROM wsync.run WHERE state = 'buffered' ORDER BY run_id")
    assert [run["run_id"] for run in waiting] == [patient.run_id, second.run_id]
    assert world.rows("SELECT state FROM wsync.run WHERE run_id = %s", first.run_id) == [{"state": "cancelled"}]


def test_producers_of_one_key_at_once_leave_one_open_run_and_lose_none(world: Any) -> None:
    sync_id = world.new_sync()
    results: list[Any] = []

    def trigger() -> None:
        conn = state.connect(world.database.api_url, application_name="test")
        with conn, state.tenant_transaction(conn, world.tenant_id):
            results.append(trigger_run(conn, world.tenant_id, sync_id=sync_id, actor="ann", overlap=OverlapPolicy.BUFFER_ALL))

    threads = [threading.Thread(target=trigger) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = world.rows("SELECT state, count(*) AS n FROM wsync.run GROUP BY state ORDER BY state")
    assert [(row["state"], row["n"]) for row in found] == [("buffered", 7), ("queued", 1)]
    assert len({made.run_id for made in results}) == 8
