"""What workers see of destinations: one that is away costs neither slots nor attempts for long, one that answers is used at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import RunError
from wsync_engine.worker.destinations import APART_S, seen_at_end, seen_so_far
from wsync_engine.worker.messages import Ended, Tick
from wsync_engine.worker.slots import Tenure

RUN = UUID(int=1)
AWAY = RunError(error_class="RetryableError", message="away", next_step="wait")


def breaker(world: Any) -> dict[str, Any]:
    row = world.engine.execute("SELECT * FROM wsync.breaker WHERE credential_id = %s", (world.sink_id,)).fetchone()
    return row or {"state": "closed", "failures": 0}


def calls(world: Any) -> int:
    path = world.folder / "refused"
    return len(path.read_text().splitlines()) if path.exists() else 0


def end_wait(world: Any) -> None:
    """As if the breaker had been open for its time."""
    world.engine.execute("UPDATE wsync.breaker SET opened_at = opened_at - (retry_at - now()), retry_at = now() WHERE state = 'open'")
    world.scheduler.sweep()


def test_runs_of_a_destination_that_is_away_wait_and_all_arrives_when_it_is_back(world: Any) -> None:
    world.add_sync(rows=40, max_attempts=9)
    (world.folder / "away").touch()
    first, second = world.add_run(), world.add_run(sync_id=world.copy_sync())
    world.start_worker(breaker_failures=2)
    world.until(lambda: breaker(world)["state"] == "open")
    world.until(lambda: all(world.run_row(run)["state"] == "queued" for run in (first, second)))
    assert breaker(world)["reason"] == "the destination is away"

    attempts = [world.run_row(run)["attempt"] for run in (first, second)]
    before = calls(world)
    world.engine.execute("UPDATE wsync.run SET ready_at = now()")
    for _ in range(100):
        world.scheduler.step()
    assert calls(world) == before

    (world.folder / "away").unlink()
    end_wait(world)
    for run in (first, second):
        row = world.until_state(run, "succeeded", "failed", "partial")
        assert (row["state"], row["counts"]["accepted"]) == ("succeeded", 40), row["error"]
    assert [world.run_row(run)["attempt"] for run in (first, second)] == attempts
    assert (breaker(world)["state"], breaker(world)["failures"]) == ("closed", 0)


def test_a_trial_that_fails_opens_it_again_and_costs_one_attempt_only(world: Any) -> None:
    world.add_sync(max_attempts=9)
    (world.folder / "away").touch()
    run_id = world.add_run()
    world.start_worker(breaker_failures=1)
    world.until(lambda: breaker(world)["state"] == "open" and world.run_row(run_id)["state"] == "queued")

    end_wait(world)
    world.until(lambda: breaker(world)["openings"] == 2 and world.run_row(run_id)["state"] == "queued")

    assert world.run_row(run_id)["attempt"] == 2


def test_the_first_rows_that_are_taken_let_the_others_go_while_the_run_that_tried_is_still_at_it(world: Any) -> None:
    world.add_sync(rows=40)
    world.engine.execute(
        "INSERT INTO wsync.breaker (tenant_id, credential_id, state, failures, openings, reason, opened_at, retry_at)"
        " VALUES (%s, %s, 'half_open', 5, 1, 'away', now(), now() + interval '1 h')",
        (world.tenant_id, world.sink_id),
    )
    world.scheduler.sweep()
    world.shut("write")
    first, second = world.add_run(), world.add_run(sync_id=world.copy_sync())

    world.start_worker(slots=2)

    world.until(lambda: {world.run_row(run)["state"] for run in (first, second)} == {"running"})
    assert breaker(world)["state"] == "closed"
    world.open("write")
    assert {world.until_state(run, "succeeded", "failed")["state"] for run in (first, second)} == {"succeeded"}


def test_a_source_that_fails_is_not_held_against_the_destination(world: Any) -> None:
    world.add_sync(failure="retryable", max_attempts=2)
    run_id = world.add_run()
    world.start_worker(breaker_failures=1)

    assert world.until_state(run_id, "failed")["error"] == "the warehouse is busy"
    assert breaker(world)["failures"] == 0


def test_the_last_attempt_counts_too(world: Any) -> None:
    world.add_sync(max_attempts=1)
    (world.folder / "away").touch()
    run_id = world.add_run()
    world.start_worker(breaker_failures=1)

    row = world.until_state(run_id, "failed")
    assert (row["error"], row["next_step"]) == ("the destination is away", f"`wsync-engine runs retry {run_id}` tries it anew")
    world.until(lambda: breaker(world)["state"] == "open")


def test_what_no_database_stores_of_a_destinations_words_stops_no_worker(world: Any) -> None:
    world.add_sync(max_attempts=1)
    (world.folder / "away").write_text("it says \0")
    away = world.add_run()
    world.start_worker()
    assert world.until_state(away, "failed")["error"] == "it says \ufffd"

    (world.folder / "away").unlink()
    run_id = world.add_run(sync_id=world.copy_sync())

    assert world.until_state(run_id, "succeeded", "failed")["state"] == "succeeded"


def tenure() -> Tenure:
    assignment: Any = SimpleNamespace(tenant_id=uuid7(), credential_id=uuid7())
    return Tenure(assignment=assignment, ends_at_s=0, stall_s=0, moved_at_s=0, priority=1, started_at_s=0)


def test_rows_that_were_taken_before_it_failed_count_before_the_failure() -> None:
    ended = Ended(run_id=RUN, epoch=1, kind="retry", error=AWAY, answers=3, has_failed=True)

    assert [seen.failure for seen in seen_at_end(tenure(), ended)] == ["", "away"]


def test_a_run_that_goes_back_while_its_destination_fails_does_not_call_it_well() -> None:
    held = tenure()
    assert len(list(seen_so_far(held, Tick(answers=1), 0.0))) == 1

    assert list(seen_at_end(held, Ended(run_id=RUN, epoch=1, kind="back", answers=1))) == []


def test_a_long_run_says_again_and_again_that_its_destination_answers_but_not_each_second() -> None:
    held = tenure()

    said = [
        len(list(seen_so_far(held, Tick(answers=answers), at_s))) for answers, at_s in ((0, 0.0), (1, 1.0), (2, 2.0), (3, 1.0 + APART_S))
    ]

    assert said == [0, 1, 0, 1]
    assert list(seen_so_far(held, Tick(answers=3), 3 * APART_S)) == []
