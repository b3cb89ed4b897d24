"""A run under its epoch: who holds it writes, who lost it does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import RunError, RunState
from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.runs import (
    Beat,
    ScheduleSettlement,
    backoff,
    claim_runs,
    count_ends,
    finish_run,
    give_back_run,
    heartbeat,
    reap_runs,
    request_cancel,
    retry_run,
)
from wsync_engine.state.books import RunBooks
from wsync_engine.state.holding import Claim
from wsync_engine.state.records import SentChunk
from wsync_sdk import RowRange, StateError

WORKER, OTHER = UUID(int=1), UUID(int=2)


@pytest.fixture
def run_id(world: Any) -> UUID:
    """A queued run of a minutely schedule."""
    stored = world.minutely(pause_after_failures=2)
    world.move(60)
    found = fire(world.engine, [(stored.schedule_id, 1)]).runs[0].run_id
    assert isinstance(found, UUID)
    return found


def row(world: Any, run_id: UUID) -> dict[str, Any]:
    found = world.rows("SELECT * FROM wsync.run WHERE run_id = %s", run_id)[0]
    assert isinstance(found, dict)
    return found


def test_a_run_is_claimed_once_and_each_claim_raises_the_epoch(world: Any, run_id: UUID) -> None:
    first, second = claim_runs(world.engine, [run_id], WORKER), claim_runs(world.engine, [run_id], OTHER)
    give_back_run(world.engine, run_id, 1)
    third = claim_runs(world.engine, [run_id], OTHER)

    assert ([x.epoch for x in first], second, [x.epoch for x in third]) == ([1], [], [2])
    assert row(world, run_id)["attempt"] == 0
    assert len(world.events("run.claimed")) == 2


def test_a_heartbeat_renews_the_lease_and_stores_progress(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    world.move(5)

    held = heartbeat(world.engine, WORKER, [Beat(run_id=run_id, epoch=1, progress={"read_rows": 7})])

    assert [(x.lease_until, x.is_cancelled) for x in held] == [(world.now + timedelta(seconds=30), False)]
    assert row(world, run_id)["progress"] == {"read_rows": 7}


def test_a_stale_epoch_can_neither_heartbeat_nor_finish_nor_retry(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    world.move(31)
    reap_runs(world.engine, grace_s=0)
    claim_runs(world.engine, [run_id], OTHER)

    assert heartbeat(world.engine, WORKER, [Beat(run_id=run_id, epoch=1)]) == []
    with pytest.raises(StateError):
        finish_run(world.engine, run_id, 1, "succeeded")
    with pytest.raises(StateError):
        retry_run(world.engine, run_id, 1, error=RunError(error_class="RetryableError", message="x", next_step="wait"))
    with pytest.raises(StateError):
        give_back_run(world.engine, run_id, 1)
    assert (row(world, run_id)["state"], row(world, run_id)["epoch"]) == ("running", 2)


def test_a_claim_that_postgres_lost_in_a_failover_is_no_claim_although_the_next_one_has_its_epoch(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    lost = RunBooks(world.api, tenant_id=world.tenant_id, run_id=run_id, claim=Claim(holder=run_id, epoch=1, worker_id=WORKER))
    lost.load()
    world.engine.execute(
        "UPDATE wsync.run SET state = 'queued', epoch = 0, worker_id = NULL, lease_until = NULL WHERE run_id = %s", [run_id]
    )
    claim_runs(world.engine, [run_id], OTHER)
    held = RunBooks(world.api, tenant_id=world.tenant_id, run_id=run_id, claim=Claim(holder=run_id, epoch=1, worker_id=OTHER))

    assert heartbeat(world.engine, WORKER, [Beat(run_id=run_id, epoch=1)]) == []
    with pytest.raises(StateError):
        lost.mark_sent([SentChunk(partition=0, range=RowRange(0, 9))])
    held.mark_sent([SentChunk(partition=0, range=RowRange(0, 9))])


def test_an_ended_run_stays_as_it_ended_and_counts_once(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    finish_run(world.engine, run_id, 1, "failed", error=RunError(error_class="FatalError", message="table dropped", next_step="wait"))

    finish_run(world.engine, run_id, 1, "succeeded")

    assert row(world, run_id)["state"] == "failed"
    assert world.clock(row(world, run_id)["schedule_id"])["failures_in_row"] == 1
    assert len(world.events("run.settled")) == 1


def test_an_end_that_the_child_wrote_is_counted_by_its_supervisor(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", [run_id])

    finish_run(world.engine, run_id, 1, "succeeded")

    assert world.clock(row(world, run_id)["schedule_id"])["failures_in_row"] == 1


def fail_as_a_child(world: Any, run_id: UUID) -> None:
    """What a run's own process stores; its worker dies before it hears of it."""
    claim = Claim(holder=run_id, epoch=1, worker_id=WORKER)
    books = RunBooks(world.api, tenant_id=world.tenant_id, run_id=run_id, claim=claim, settlement=ScheduleSettlement())
    books.finish(outcome="failed", reason="table dropped", counts={}, error=None, fold=None, sync_id=row(world, run_id)["sync_id"])


def test_an_end_that_only_the_child_lived_to_write_is_counted(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)

    fail_as_a_child(world, run_id)
    counted_by_the_child = world.clock(row(world, run_id)["schedule_id"])["failures_in_row"]
    finish_run(world.engine, run_id, 1, "failed")

    assert counted_by_the_child == 1
    assert world.clock(row(world, run_id)["schedule_id"])["failures_in_row"] == 1
    assert len(world.events("run.settled")) == 1


def test_failures_that_only_children_lived_to_write_pause_the_schedule(world: Any, run_id: UUID) -> None:
    schedule_id = row(world, run_id)["schedule_id"]
    claim_runs(world.engine, [run_id], WORKER)
    fail_as_a_child(world, run_id)
    world.move(60)
    again = fire(world.engine, [(schedule_id, 2)]).runs[0].run_id
    claim_runs(world.engine, [again], WORKER)

    fail_as_a_child(world, again)

    paused = world.rows("SELECT * FROM wsync.schedule")[0]
    assert (paused["paused_by"], paused["pause_note"]) == ("system", "2 runs failed in a row")
    assert world.clock(schedule_id)["next_due_at"] is None


def test_a_schedule_that_somebody_holds_keeps_no_run_from_ending_and_its_supervisor_counts_it(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    world.api.execute("SET lock_timeout = '100ms'")

    with world.engine_connection().transaction() as held:
        held.connection.execute("SELECT FROM wsync.schedule_clock FOR UPDATE")
        fail_as_a_child(world, run_id)
    finish_run(world.engine, run_id, 1, "failed")

    assert row(world, run_id)["state"] == "failed"
    assert world.clock(row(world, run_id)["schedule_id"])["failures_in_row"] == 1


def test_an_end_that_neither_its_process_nor_its_worker_could_count_is_counted_by_a_scheduler(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    world.api.execute("SET lock_timeout = '100ms'")
    world.engine.execute("SET lock_timeout = '100ms'")
    with world.engine_connection().transaction() as held:
        held.connection.execute("SELECT FROM wsync.schedule_clock FOR UPDATE")
        fail_as_a_child(world, run_id)
        assert count_ends(world.engine) == 0

    world.scheduler.reap()

    assert world.clock(row(world, run_id)["schedule_id"])["failures_in_row"] == 1
    assert (row(world, run_id)["phase"], len(world.events("run.settled"))) == ("finish", 1)
    assert count_ends(world.engine) == 0
    finish_run(world.engine, run_id, 1, "failed")
    assert world.clock(row(world, run_id)["schedule_id"])["failures_in_row"] == 1


def test_failures_in_a_row_pause_the_schedule(world: Any, run_id: UUID) -> None:
    schedule_id = row(world, run_id)["schedule_id"]
    claim_runs(world.engine, [run_id], WORKER)
    finish_run(world.engine, run_id, 1, "failed")
    world.move(60)
    again = fire(world.engine, [(schedule_id, 2)]).runs[0].run_id
    claim_runs(world.engine, [again], WORKER)

    finish_run(world.engine, again, 1, "failed")

    paused = world.rows("SELECT * FROM wsync.schedule")[0]
    assert (paused["paused_by"], paused["pause_note"]) == ("system", "2 runs failed in a row")
    assert world.clock(schedule_id)["next_due_at"] is None


def test_times_that_are_due_when_failures_pause_the_schedule_are_counted_as_missed(world: Any, run_id: UUID) -> None:
    schedule_id = row(world, run_id)["schedule_id"]
    world.engine.execute("UPDATE wsync.schedule SET pause_after_failures = 1")
    claim_runs(world.engine, [run_id], WORKER)
    world.move(181)

    finish_run(world.engine, run_id, 1, "failed")

    assert (world.clock(schedule_id)["missed"], world.clock(schedule_id)["next_due_at"]) == (3, None)
    assert [x["detail"] for x in world.events("schedule.missed")] == [{"count": 3, "reason": "paused", "actor": "system"}]


def test_a_retry_waits_its_backoff_and_the_last_one_fails(world: Any, run_id: UUID) -> None:
    for attempt in (1, 2):
        assert [x.attempt for x in claim_runs(world.engine, [run_id], WORKER)] == [attempt - 1]
        again = retry_run(world.engine, run_id, attempt, error=RunError(error_class="RetryableError", message="503", next_step="wait")).run
        assert again is not None
        assert timedelta(seconds=5 * 2 ** (attempt - 1)) <= again.ready_at - world.now <= timedelta(seconds=10 * 2 ** (attempt - 1))
        assert claim_runs(world.engine, [run_id], WORKER) == []
        world.move(20)
    claim_runs(world.engine, [run_id], WORKER)

    assert retry_run(world.engine, run_id, 3, error=RunError(error_class="RetryableError", message="503", next_step="wait")).run is None
    assert row(world, run_id)["state"] == "failed"


def test_a_throttled_run_uses_no_attempt_and_waits_as_long_as_asked(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)

    again = retry_run(
        world.engine,
        run_id,
        1,
        error=RunError(error_class="RetryableError", message="429", next_step="wait"),
        retry_after_s=120,
        is_throttled=True,
    ).run

    assert again is not None
    assert again.ready_at == world.now + timedelta(seconds=120)
    assert row(world, run_id)["attempt"] == 0


def test_a_run_that_waits_for_its_turn_does_not_wait_as_long_as_after_a_failure(world: Any, run_id: UUID) -> None:
    world.engine.execute("UPDATE wsync.schedule SET backoff_base_ms = 3600000, backoff_cap_ms = 7200000")
    claim_runs(world.engine, [run_id], WORKER)

    again = retry_run(
        world.engine,
        run_id,
        1,
        error=RunError(error_class="RetryableError", message="another run of the sync is delivering", next_step="nothing"),
        retry_after_s=5,
        is_throttled=True,
    ).run

    assert again is not None
    assert timedelta(seconds=5) <= again.ready_at - world.now <= timedelta(seconds=10)


def test_a_retry_past_the_runs_deadline_fails_it(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)

    retried = retry_run(
        world.engine,
        run_id,
        1,
        error=RunError(error_class="RetryableError", message="429", next_step="wait"),
        retry_after_s=90_000,
        is_throttled=True,
    )

    assert retried.run is None
    assert row(world, run_id)["next_step"] == "wait"


def test_a_silent_holders_run_is_queued_again_and_no_attempt_is_used(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    world.move(29)
    assert reap_runs(world.engine, grace_s=0).queued == ()
    world.move(1)

    reaped = reap_runs(world.engine, grace_s=0)

    assert [x.run_id for x in reaped.queued] == [run_id]
    assert (row(world, run_id)["attempt"], row(world, run_id)["crashes"]) == (0, 1)
    assert len(world.events("run.lease_lost")) == 1


def test_a_run_that_kills_its_holder_three_times_fails_as_a_crash_loop(world: Any, run_id: UUID) -> None:
    for _ in range(3):
        claim_runs(world.engine, [run_id], WORKER)
        world.move(30)
        reaped = reap_runs(world.engine, grace_s=0)

    assert reaped.ended == (run_id,)
    assert (row(world, run_id)["state"], row(world, run_id)["error_class"]) == ("failed", "crash_loop")


def test_after_postgres_started_leases_get_a_time_of_grace(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    world.move(60)

    assert reap_runs(world.engine, grace_s=10**6).queued == ()


def test_a_queued_run_is_cancelled_at_once(world: Any, run_id: UUID) -> None:
    assert request_cancel(world.engine, run_id, reason="mistake", actor="ann").state is RunState.CANCELLED
    assert request_cancel(world.engine, run_id, reason="mistake", actor="ann") is None
    assert claim_runs(world.engine, [run_id], WORKER) == []


def test_a_running_one_is_asked_by_its_heartbeat_and_the_reaper_ends_it_if_nobody_listens(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)

    assert request_cancel(world.engine, run_id, reason="mistake", actor="ann").state is RunState.CANCELLING
    assert [x.is_cancelled for x in heartbeat(world.engine, WORKER, [Beat(run_id=run_id, epoch=1)])] == [True]
    world.move(31)
    reap_runs(world.engine, grace_s=0)

    assert row(world, run_id)["state"] == "cancelled"


def test_a_cancelled_run_may_still_be_finished_by_its_holder(world: Any, run_id: UUID) -> None:
    claim_runs(world.engine, [run_id], WORKER)
    request_cancel(world.engine, run_id, reason="mistake", actor="ann")

    finish_run(world.engine, run_id, 1, "cancelled")

    assert row(world, run_id)["state"] == "cancelled"


def test_backoff_is_the_same_everywhere_doubles_and_is_capped() -> None:
    run_id = uuid7()
    waits = [backoff(run_id, attempt, base_ms=1_000, cap_ms=60_000, retry_after_s=None) for attempt in range(1, 40)]

    assert waits == [backoff(run_id, attempt, base_ms=1_000, cap_ms=60_000, retry_after_s=None) for attempt in range(1, 40)]
    assert timedelta(seconds=0.5) <= waits[0] <= timedelta(seconds=1)
    assert max(waits) <= timedelta(seconds=60)
