"""Runs of one sync that are executed together: they deliver in turn, and none sends what it read before another delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from wsync_engine.model.sync import Guards
from wsync_engine.pipeline import finish
from wsync_engine.pipeline.run import execute
from wsync_sdk import (
    FatalError,
    PlanExpired,
    RetryableError,
    Split,
)

from .world import SCHEMA, Crash, TableSource, World, change, crash_at


def beside(step: str, call: Callable[[], object]) -> Callable[[str], None]:
    """What another process does when a run comes to this step for the first time."""
    calls = [call]

    def faults(name: str) -> None:
        if name == step and calls:
            calls.pop()()

    return faults


def test_a_run_beside_which_another_delivered_plans_anew_and_sends_only_what_is_left(world: World) -> None:
    world.run()
    change(world)
    world.sink.calls.clear()

    outcome = world.run(beside("after_change_log", world.run_beside))

    assert (outcome.state, outcome.counts["upserts"], outcome.counts["unchanged"]) == ("succeeded", 0, 100)
    assert sum(len(rows) for _, rows in world.sink.calls) == 20
    assert world.sink.contents == world.source.rows
    assert world.scalar("SELECT count(*) FROM wsync.run_event WHERE kind = 'plan.stale'") == 1


def test_a_run_beside_one_that_delivers_waits_in_the_queue_and_then_goes_on(world: World) -> None:
    late = world.new_run(is_beside=True)
    waits: list[float | None] = []

    def try_to_deliver() -> None:
        with pytest.raises(RetryableError, match="another run of the sync is delivering") as waiting:
            execute(world.job(late))
        waits.append(waiting.value.retry_after_s)

    first = world.run(beside("after_start_delivery", try_to_deliver))
    second = execute(world.job(late))

    assert waits == [5.0]  # with a wait that was asked for, no attempt is used
    assert (first.state, first.counts["accepted"]) == ("succeeded", 100)
    assert (second.state, second.counts["upserts"], second.counts["unchanged"]) == ("succeeded", 0, 100)


def test_what_a_run_left_that_ended_beside_another_is_folded_before_that_one_delivers(world: World) -> None:
    ended = world.new_run(is_beside=True)

    def deliver_and_die() -> None:
        with pytest.raises(Crash):
            execute(world.job(ended, crash_at("before_finish", 1)))
        world.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now() WHERE run_id = %s", (ended,))

    outcome = world.run(beside("after_change_log", deliver_and_die))

    assert (outcome.state, outcome.counts["upserts"]) == ("succeeded", 0)
    assert world.scalar("SELECT folded_at IS NOT NULL FROM wsync.run WHERE run_id = %s", ended)


def test_a_run_waits_for_a_terminated_one_whose_process_may_still_write(world: World) -> None:
    terminated = world.new_run(is_beside=True)

    def deliver_until_it_is_terminated() -> None:
        with pytest.raises(Crash):
            execute(world.job(terminated, crash_at("after_write", 2)))
        world.engine.execute(
            "UPDATE wsync.run SET state = 'cancelled', cancel_reason = 'terminated', lease_until = now() + interval '1 minute' WHERE run_id = %s",
            (terminated,),
        )

    run_id = world.new_run()
    with pytest.raises(RetryableError, match="another run of the sync is delivering"):
        execute(world.job(run_id, beside("after_change_log", deliver_until_it_is_terminated)))
    for _ in range(2):  # nor does whoever looks again fold what may still be written
        with pytest.raises(RetryableError, match="another run of the sync is delivering"):
            execute(world.job(run_id))
    assert not world.scalar("SELECT folded_at IS NOT NULL FROM wsync.run WHERE run_id = %s", terminated)
    world.engine.execute("UPDATE wsync.run SET lease_until = NULL WHERE run_id = %s", (terminated,))

    assert execute(world.job(run_id)).state == "succeeded"
    assert world.sink.contents == world.source.rows


def test_an_older_reading_is_not_delivered_after_a_newer_one_that_found_nothing_to_do(world: World) -> None:
    world.run()
    before = dict(world.source.rows)
    change(world)

    def turn_back() -> None:
        world.source.rows = before
        assert world.run_beside().counts["upserts"] == 0

    outcome = world.run(beside("after_change_log", turn_back))

    assert (outcome.state, outcome.counts["upserts"], outcome.counts["deletes"]) == ("succeeded", 0, 0)
    assert world.sink.contents == before


def test_a_dry_run_is_not_approved_after_a_run_that_found_nothing_to_do(world: World) -> None:
    world.run()
    run_id = world.new_run(dry_run=True)
    execute(world.job(run_id))
    world.run()
    world.engine.execute("UPDATE wsync.run SET state = 'queued', dry_run = false, approved_by = 'ann' WHERE run_id = %s", (run_id,))

    with pytest.raises(FatalError, match="stale plan"):
        execute(world.job(run_id))


def test_a_run_does_not_ask_the_source_while_another_delivers(world: World) -> None:
    late = world.new_run(is_beside=True)
    plans: list[int] = []

    def come_late() -> None:
        with pytest.raises(RetryableError, match="another run of the sync is delivering"):
            execute(world.job(late))
        plans.append(world.source.plans)

    world.run(beside("after_start_delivery", come_late))

    assert plans == [1]


@pytest.mark.parametrize(("between", "wait_s"), [(0, 1.0), (9, 10.0), (200, 60.0)])
def test_a_run_does_not_read_while_an_earlier_one_is_executed_and_asks_the_less_often_the_more_are_before_it(
    world: World, between: int, wait_s: float
) -> None:
    waits: list[tuple[float | None, int]] = []

    def come_late() -> None:
        line = [world.new_run(is_beside=True) for _ in range(between + 1)]
        with pytest.raises(RetryableError, match="an earlier run of the sync is executed") as waiting:
            execute(world.job(line[-1]))
        waits.append((waiting.value.retry_after_s, world.source.plans))

    world.run(beside("diff", come_late))

    assert waits == [(wait_s, 1)]


@pytest.mark.parametrize("change_of_the_earlier", ["state = 'queued'", "state = 'blocked'", "dry_run = true, exclusive = false"])
def test_an_earlier_run_that_is_not_executed_or_sends_nothing_holds_up_no_other(world: World, change_of_the_earlier: str) -> None:
    earlier, later = world.new_run(is_beside=True), world.new_run(is_beside=True)
    world.job(earlier)
    world.engine.execute(f"UPDATE wsync.run SET {change_of_the_earlier} WHERE run_id = %s", (earlier,))

    assert execute(world.job(later)).state == "succeeded"


def test_runs_beside_one_another_come_to_their_ends_one_after_the_other(world: World) -> None:
    line = [world.new_run(is_beside=index > 0) for index in range(4)]
    jobs = [world.job(run_id) for run_id in line]
    ended: list[int] = []
    for _ in range(len(line)):
        for index, job in enumerate(jobs):
            if index in ended:
                continue
            try:
                execute(job)
            except RetryableError:
                continue
            ended.append(index)
            world.source.rows[1_000 + index] = "new"

    assert ended == [0, 1, 2, 3]
    assert world.source.plans == 4
    assert world.run().counts["upserts"] == 1


def test_no_guard_judges_a_plan_that_is_made_anew(world: World) -> None:
    world.run()
    for key in range(60):
        del world.source.rows[key]
    generous = replace(world.spec, guards=Guards(max_delete_percent=None))

    def delete_them() -> None:
        guarded, world.spec = world.spec, generous
        assert world.run_beside().counts["deletes"] == 60
        world.spec = guarded

    outcome = world.run(beside("after_change_log", delete_them))

    assert (outcome.state, outcome.counts["deletes"]) == ("succeeded", 0)


def test_a_run_that_others_overtake_again_and_again_uses_an_attempt(world: World) -> None:
    def overtake(name: str) -> None:
        if name == "after_change_log":
            world.run_beside()

    with pytest.raises(RetryableError, match="stale plan") as overtaken:
        execute(world.job(world.new_run(), overtake))

    assert overtaken.value.retry_after_s is None
    assert not isinstance(overtaken.value, PlanExpired)


def test_two_runs_that_fold_the_same_predecessor_both_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    change(world)
    died = world.new_run(is_beside=True)
    with pytest.raises(Crash):
        execute(world.job(died, crash_at("before_finish", 1)))
    world.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now() WHERE run_id = %s", (died,))
    fold_partition = finish.fold_partition
    others = [world.run_beside]

    def fold_late(*arguments: Any, **options: Any) -> int:
        if others:  # this one has read what there is to fold, and is slower
            assert others.pop()().state == "succeeded"
        return fold_partition(*arguments, **options)

    monkeypatch.setattr(finish, "fold_partition", fold_late)

    assert world.run().state == "succeeded"
    assert world.sink.contents == world.source.rows


@pytest.mark.parametrize("step", ["plan", "extract", "after_publish", "diff"])
def test_wherever_the_process_dies_that_plans_anew_nothing_of_the_former_plan_is_sent(world: World, step: str) -> None:
    world.run()
    change(world)
    run_id = world.new_run()
    passed: list[str] = []

    def faults(name: str) -> None:
        if name == "after_change_log":
            world.run_beside()
        if name == step and "after_change_log" in passed:
            raise Crash(step)
        passed.append(name)

    with pytest.raises(Crash):
        execute(world.job(run_id, faults))
    outcome = execute(world.job(run_id))

    assert (outcome.state, outcome.counts["upserts"]) == ("succeeded", 0)
    assert world.sink.contents == world.source.rows


def test_the_rejections_of_a_plan_that_is_made_anew_are_not_kept_beside_the_new_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        yield from TableSource.read(world.source, split, offset)
        if split.index == 0:
            yield pa.RecordBatch.from_pylist([{"id": None, "name": "nobody"}], schema=SCHEMA)

    monkeypatch.setattr(world.source, "read", read)
    run_id = world.new_run()

    outcome = execute(world.job(run_id, beside("after_change_log", world.run_beside)))

    assert (outcome.state, outcome.counts["refused"]) == ("partial", 1)
    assert world.scalar("SELECT count(*) FROM wsync.rejection WHERE run_id = %s", run_id) == 1
