"""A whole run against the real state store: what arrives at the sink whatever dies wherever."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from wsync_engine.model.sync import Guards
from wsync_engine.pipeline.context import Cancelled, no_faults
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_engine.storage import LocalStorage
from wsync_sdk import (
    ConfigError,
    FatalError,
    Rejection,
    RetryableError,
    StateError,
    WriteResult,
    WsyncError,
)

from .world import Crash, RememberingSink, World, change, crash_at

STEPS = [
    "plan",
    "extract",
    "after_publish",
    "diff",
    "after_change_log",
    "after_start_delivery",
    "before_mark_sent",
    "after_mark_sent",
    "after_write",
    "before_ack",
    "after_ack",
    "fold",
    "before_finish",
    "after_finish",
]


def test_the_sink_equals_the_query_and_the_next_run_sends_only_changes(world: World) -> None:
    first = world.run()
    world.sink.calls.clear()
    change(world)

    second = world.run()

    assert (first.state, first.counts["accepted"]) == ("succeeded", 100)
    assert (second.state, second.counts["upserts"], second.counts["deletes"], second.counts["unchanged"]) == ("succeeded", 15, 5, 85)
    assert sum(len(rows) for _, rows in world.sink.calls) == 20
    assert world.sink.contents == world.source.rows


def test_a_run_without_changes_sends_nothing(world: World) -> None:
    world.run()
    world.sink.calls.clear()

    assert (world.run().state, world.sink.calls) == ("succeeded", [])


@pytest.mark.parametrize("step", STEPS)
def test_wherever_the_process_dies_nothing_is_lost_or_sent_under_another_key(world: World, step: str) -> None:
    world.run()
    world.sink.calls.clear()
    change(world)
    run_id = world.new_run()

    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at(step, 1)))
    if step != "after_finish":
        assert execute(world.job(run_id)).state == "succeeded"

    assert world.sink.contents == world.source.rows
    rows_by_key: dict[str, tuple[int, ...]] = {}
    for key, rows in world.sink.calls:
        assert rows_by_key.setdefault(key, rows) == rows
    sent = [row for rows in rows_by_key.values() for row in rows]
    assert sorted(sent) == sorted([*range(10), *range(20, 25), *range(200, 205)])
    del world.source.rows[0]
    following = world.run()
    assert (following.counts["upserts"], following.counts["deletes"], following.counts["unchanged"]) == (0, 1, 99)


@pytest.mark.parametrize(("step", "occurrence"), [("after_mark_sent", 1), ("after_write", 9), ("after_ack", 2)])
def test_an_ended_runs_acks_are_folded_by_the_next_one(world: World, step: str, occurrence: int) -> None:
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at(step, occurrence)))
    world.engine.execute(
        "UPDATE wsync.run SET state = 'failed', error_class = 'crash_loop', finished_at = now() WHERE run_id = %s", (run_id,)
    )
    del world.source.rows[0], world.source.rows[1]

    world.spec = replace(world.spec, guards=Guards(max_delete_percent=None))
    outcome = world.run()

    assert outcome.state == "succeeded"
    assert world.sink.contents == world.source.rows


def test_a_lost_reply_is_sent_again_under_the_same_key(world: World) -> None:
    world.sink.lose_replies = 2

    assert world.run().state == "succeeded"

    keys = [key for key, _ in world.sink.calls]
    assert len(keys) == len(set(keys)) + 2
    assert world.sink.contents == world.source.rows


def test_who_asks_for_a_long_wait_gets_it_in_the_queue(world: World) -> None:
    world.sink.fail = RetryableError("429", next_step="wait", retry_after_s=3_600.0)

    with pytest.raises(RetryableError) as caught:
        world.run()

    assert caught.value.retry_after_s == 3_600.0


def test_a_wait_between_two_tries_ends_when_the_run_shall_end(world: World) -> None:
    world.sink.fail = RetryableError("429", next_step="wait", retry_after_s=25.0)
    job = world.job(world.new_run())
    asked_at_s = []

    def is_cancelled() -> bool:
        is_waiting = world.scalar("SELECT count(*) FROM wsync.chunk") > 0
        asked_at_s.append(time.monotonic())
        return bool(is_waiting)

    job.context.is_cancelled = is_cancelled
    with pytest.raises(Cancelled):
        execute(job)

    assert asked_at_s[-1] - asked_at_s[0] < 20


def test_calls_are_kept_apart_as_the_stream_asks(world: World) -> None:
    world.sink.calls_per_s = 100.0
    started_s = time.monotonic()

    world.run()

    assert len(world.sink.calls) == 15
    assert time.monotonic() - started_s > 14 / 100


def test_refused_rows_stand_alone_after_bisection_and_the_others_arrive(world: World) -> None:
    world.sink.refuse = frozenset({3, 50})

    outcome = world.run()

    assert (outcome.state, outcome.counts["accepted"], outcome.counts["rejected"]) == ("partial", 98, 2)
    assert world.sink.contents == {key: name for key, name in world.source.rows.items() if key not in {3, 50}}
    assert world.scalar("SELECT count(*) FROM wsync.rejection WHERE sync_id = %s AND code = 'refused'", world.sync_id) == 2


def test_a_destination_that_refuses_everything_ends_the_run_early_and_the_next_one_goes_on(world: World) -> None:
    world.source.rows = {key: f"name {key}" for key in range(3_000)}
    world.sink.verdict = lambda chunk: WriteResult(
        accepted_rows=0, rejections=tuple(Rejection(row=row, code="quota", message="no") for row in range(chunk.rows))
    )
    refused = world.failed_run()
    calls = len(world.sink.calls)
    counts = world.scalar("SELECT counts FROM wsync.run WHERE sync_id = %s", world.sync_id)
    world.sink.verdict = None

    after = world.run()

    left = 3_000 - counts["rejected"]
    assert refused.message.startswith("the destination refused the first 1")
    assert "runs rejections" in refused.next_step
    assert 1_000 <= counts["rejected"] <= calls * 7 < 1_200
    assert counts["not_sent"] + counts["unsure"] == left
    assert (after.state, after.counts["accepted"], after.counts["held_back"]) == ("partial", left, counts["rejected"])


def test_one_row_that_was_taken_lets_a_run_go_on_also_after_its_holder_died(world: World) -> None:
    world.source.rows = {key: f"name {key}" for key in range(1_500)}
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_ack", 1)))
    world.sink.verdict = lambda chunk: WriteResult(
        accepted_rows=0, rejections=tuple(Rejection(row=row, code="quota", message="no") for row in range(chunk.rows))
    )

    outcome = execute(world.job(run_id))

    assert (outcome.state, outcome.counts["accepted"] + outcome.counts["rejected"]) == ("partial", 1_500)
    assert outcome.counts["accepted"] > 0


def test_a_sink_whose_verdicts_do_not_add_up_fails_the_run(world: World) -> None:
    world.sink.verdict = lambda chunk: WriteResult(accepted_rows=chunk.rows - 1)

    job = world.job(world.new_run())
    with pytest.raises(WsyncError, match="do not add up") as caught:
        execute(job)
    outcome = conclude(job, caught.value)

    assert (outcome.state, outcome.counts["accepted"]) == ("failed", 0)
    assert outcome.counts["unsure"] > 0


def test_unknown_verdicts_are_offered_again(world: World) -> None:
    world.sink.verdict = lambda chunk: WriteResult(accepted_rows=chunk.rows - 1, unknown=(0,))
    first = world.run()
    world.sink.verdict = None
    world.sink.calls.clear()

    second = world.run()

    assert first.state == "partial"
    assert second.counts["upserts"] == first.counts["unsure"] > 0


def test_a_rejection_within_a_chunk_leaves_the_others_accepted(world: World) -> None:
    world.sink.verdict = lambda chunk: WriteResult(
        accepted_rows=chunk.rows - 1, rejections=(Rejection(row=chunk.rows - 1, code="quota", message="too many"),)
    )

    outcome = world.run()

    assert outcome.state == "partial"
    assert outcome.counts["accepted"] + outcome.counts["rejected"] == 100


@pytest.mark.parametrize("words", ["too\0many", "\ud800", "x" * 10_000], ids=["NUL", "surrogate", "long"])
def test_a_destinations_words_that_no_database_stores_cost_no_verdict(world: World, words: str) -> None:
    world.sink.verdict = lambda chunk: WriteResult(
        accepted_rows=chunk.rows - 1, rejections=(Rejection(row=0, code=words, message=f"{words}: not taken"),)
    )
    rejected = world.run()
    world.source.rows = {key: f"{name}!" for key, name in world.source.rows.items()}
    world.sink.fail = FatalError(words, next_step=words)
    job = world.job(world.new_run())
    with pytest.raises(FatalError) as caught:
        execute(job)

    assert (rejected.state, rejected.counts["unsure"]) == ("partial", 0)
    assert conclude(job, caught.value).state == "failed"
    assert world.scalar("SELECT count(*) FROM wsync.rejection WHERE sync_id = %s", world.sync_id) == rejected.counts["rejected"]


@pytest.mark.parametrize("error", [FatalError("gone", next_step="mend"), ConfigError("wrong", next_step="mend")])
def test_a_failed_delivery_keeps_its_acks(world: World, error: WsyncError) -> None:
    world.run()
    change(world)
    world.sink.fail = error
    job = world.job(world.new_run())
    with pytest.raises(type(error)) as caught:
        execute(job)
    assert conclude(job, caught.value).state == "failed"
    world.sink.fail = None

    outcome = world.run()

    assert outcome.state == "succeeded"
    assert world.sink.contents == world.source.rows


def test_a_cancelled_run_is_folded_and_the_next_one_finishes_the_rest(world: World) -> None:
    job = world.job(world.new_run())
    job.context.is_cancelled = lambda: len(world.sink.calls) >= 5
    with pytest.raises(Cancelled) as caught:
        execute(job)
    outcome = conclude(job, caught.value, outcome="cancelled")

    assert (outcome.state, outcome.counts["accepted"]) == (
        "cancelled",
        world.scalar("SELECT sum(last_row - first_row + 1)::int FROM wsync.ack WHERE tenant_id = %s", world.tenant_id),
    )
    assert world.run().state == "succeeded"
    assert world.sink.contents == world.source.rows


def test_an_expired_plan_is_planned_again_and_counts_no_row_twice(world: World) -> None:
    world.source.expire_reads = 1
    staged: list[list[str]] = []

    def look(step: str) -> None:
        if step == "diff":
            staged.append([folder.name for folder in world.storage.root.rglob("stage-*")])

    outcome = world.run(look)

    assert (outcome.state, outcome.counts["read"], world.source.plans) == ("succeeded", 100, 2)
    assert staged == [["stage-2"]]


def test_a_stale_holder_writes_nothing_more(world: World) -> None:
    run_id = world.new_run()
    stale = world.job(run_id)
    world.job(run_id)

    with pytest.raises(StateError):
        execute(stale)
    assert world.sink.calls == []


def test_too_many_deletes_block_the_run_until_it_is_approved(world: World) -> None:
    world.run()
    world.source.rows = {key: name for key, name in world.source.rows.items() if key >= 30}
    run_id = world.new_run()

    blocked = execute(world.job(run_id))
    assert (blocked.state, len(world.sink.contents)) == ("blocked", 100)
    assert "30 of 100" in blocked.reason
    world.engine.execute("UPDATE wsync.run SET state = 'queued', approved_by = 'ada' WHERE run_id = %s", (run_id,))

    assert execute(world.job(run_id)).state == "succeeded"
    assert world.sink.contents == world.source.rows


def test_an_empty_result_blocks_the_run(world: World) -> None:
    world.run()
    world.source.rows = {}

    assert "empty" in world.run().reason
    assert len(world.sink.contents) == 100


def test_a_dry_run_writes_nothing_and_its_approval_is_refused_once_it_is_stale(world: World) -> None:
    run_id = world.new_run(dry_run=True)
    dry = execute(world.job(run_id))
    assert (dry.state, dry.counts["upserts"], world.sink.calls) == ("blocked", 100, [])
    world.run()
    world.sink.calls.clear()
    world.engine.execute("UPDATE wsync.run SET state = 'queued', approved_by = 'ada' WHERE run_id = %s", (run_id,))

    with pytest.raises(FatalError, match="stale plan"):
        execute(world.job(run_id))
    assert world.sink.calls == []


def test_a_missing_snapshot_file_blocks_the_sync_instead_of_sending_all_again(world: World) -> None:
    world.run()
    world.sink.calls.clear()
    for path in world.storage.snapshot_folder(str(world.sync_id)).iterdir():
        path.unlink()

    with pytest.raises(FatalError, match="snapshot_lost"):
        world.run()
    assert world.sink.calls == []


def test_random_crashes_over_many_runs_keep_the_sink_equal_to_the_query(world: World) -> None:
    draw = random.Random(7)
    world.spec = replace(world.spec, guards=Guards(max_delete_percent=None, allow_empty=True))
    for _ in range(6):
        for _ in range(15):
            key = draw.randrange(120)
            if draw.random() < 0.3:
                world.source.rows.pop(key, None)
            else:
                world.source.rows[key] = f"v{draw.random()}"
        run_id = world.new_run()
        outcome = None
        while outcome is None:
            try:
                outcome = execute(world.job(run_id, crash_at(draw.choice(STEPS[:-1]), draw.randrange(1, 4))))
            except Crash:
                continue
        assert outcome.state == "succeeded"
        assert world.sink.contents == world.source.rows


def test_a_growing_result_is_split_into_partitions_and_nothing_is_sent_again(world: World) -> None:
    world.run()
    world.sink.calls.clear()
    change(world)
    world.rows_per_partition = 30

    outcome = world.run()

    assert (outcome.counts["upserts"], outcome.counts["deletes"], outcome.counts["unchanged"]) == (15, 5, 85)
    assert world.sink.contents == world.source.rows
    assert world.scalar("SELECT manifest->>'partitions' FROM wsync.snapshot WHERE sync_id = %s", world.sync_id) == "4"
    world.sink.calls.clear()
    assert (world.run().counts["unchanged"], world.sink.calls) == (100, [])


def test_a_holder_that_slept_through_its_end_removes_no_file_of_a_later_run(world: World) -> None:
    change(world)
    first = world.job(world.new_run())

    def fall_asleep(step: str) -> None:
        if step == "after_finish":  # a later run begins and ends before the sleeper tidies up
            world.source.rows[1] = "later"
            assert world.run().state == "succeeded"

    first.context.faults = fall_asleep
    assert execute(first).state == "succeeded"
    world.sink.calls.clear()

    following = world.run()

    assert (following.state, world.sink.calls) == ("succeeded", [])
    assert len(list(world.storage.snapshot_folder(str(world.sync_id)).iterdir())) == 1


def test_two_runs_that_fold_the_same_predecessor_keep_its_snapshot(world: World) -> None:
    crashed = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(crashed, crash_at("after_ack", 2)))
    world.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now() WHERE run_id = %s", (crashed,))
    dry = world.job(world.new_run(dry_run=True))

    def overtaken(step: str) -> None:
        if step == "fold":
            dry.context.faults = no_faults
            assert world.run().state == "succeeded"

    dry.context.faults = overtaken
    assert execute(dry).state == "blocked"
    world.sink.calls.clear()

    assert (world.run().state, world.sink.calls) == ("succeeded", [])


@contextmanager
def full_disk() -> Iterator[Callable[[], None]]:
    """Gives a call after which no file of this process may grow; undone at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("step", ["plan", "after_publish", "after_ack"])
def test_a_full_disk_fails_the_run_in_one_line_and_the_next_one_brings_everything(world: World, step: str) -> None:
    world.run()
    world.sink.calls.clear()
    change(world)
    with full_disk() as fill:
        job = world.job(world.new_run(), lambda name: fill() if name == step else None)
        with pytest.raises(FatalError, match="the storage folder can't be written") as caught:
            execute(job)
        with suppress(FatalError):  # as its child does; without a disk there is no fold either
            conclude(job, caught.value)
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE state = 'running'")

    outcome = world.run()

    assert (outcome.state, world.sink.contents) == ("succeeded", world.source.rows)
    assert sorted({row for _, rows in world.sink.calls for row in rows}) == sorted([*range(10), *range(20, 25), *range(200, 205)])


def test_a_storage_folder_that_can_not_be_made_is_said_in_one_line(world: World, tmp_path: Path) -> None:
    world.run()
    (tmp_path / "file").write_text("in the way")
    world.storage = LocalStorage(root=tmp_path / "file", tenant_id="t")

    assert "the storage folder can't be written" in world.failed_run().message


def test_a_sink_that_saw_a_later_delivery_ends_the_run_with_that_reason(world: World) -> None:
    world.sink.refuse_begin = StateError("fenced off", next_step="nothing")

    assert "has seen a later delivery" in world.failed_run().message


def test_a_run_that_lost_its_lease_is_not_told_that_of_the_sink(world: World) -> None:
    world.sink.refuse_begin = StateError("fenced off", next_step="nothing")
    run_id = world.new_run()
    job = world.job(run_id, lambda step: world.job(run_id) and None if step == "after_start_delivery" else None)

    with pytest.raises(StateError):
        execute(job)


def test_a_dry_run_beside_a_real_one_plans_again_when_its_base_is_gone(world: World) -> None:
    world.run()
    change(world)
    has_run = []

    def between(step: str) -> None:
        if step == "after_publish" and not has_run:
            has_run.append(world.run().state)

    dry = execute(world.job(world.new_run(dry_run=True), between))

    assert has_run == ["succeeded"]
    assert (dry.state, dry.counts["upserts"], dry.counts["unchanged"]) == ("blocked", 0, 100)


def test_a_run_that_holds_rejected_rows_back_is_not_green(world: World) -> None:
    world.sink.refuse = frozenset({3})
    world.run()

    outcome = world.run()

    assert (outcome.state, outcome.counts["held_back"]) == ("partial", 1)
    assert "1 rows rejected before" in outcome.reason


@pytest.mark.parametrize("call", [1, 2, 3], ids=["before_it_is_read", "before_it_is_compared", "before_it_is_sent"])
def test_a_destination_that_can_not_be_asked_for_its_stream_failed(world: World, call: int) -> None:
    away = RetryableError("connection refused", next_step="wait")
    world.sink.fail_streams[call] = away
    job = world.job(world.new_run())

    with pytest.raises(RetryableError):
        execute(job)

    assert job.context.destination.failures == [away]


@pytest.mark.parametrize(("retry_after_s", "failures"), [(None, 1), (15.0, 0)])
def test_a_destination_that_can_not_say_what_it_applied_failed_unless_it_says_when_to_ask_again(
    world: World, retry_after_s: float | None, failures: int
) -> None:
    world.sink = RememberingSink()
    world.sink.fail = RetryableError("not now", next_step="wait", retry_after_s=retry_after_s)
    job = world.job(world.new_run())

    with pytest.raises(RetryableError):
        execute(job)

    assert len(job.context.destination.failures) == failures


def test_a_destination_that_can_not_be_asked_about_an_ended_run_failed(world: World) -> None:
    with suppress(Crash):
        world.run(crash_at("after_mark_sent", 1))
    world.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now()")
    world.sink = RememberingSink()
    world.sink.fail = RetryableError("connection refused", next_step="wait")
    job = world.job(world.new_run())

    with pytest.raises(RetryableError):
        execute(job)

    assert len(job.context.destination.failures) == 1
