"""A replay: what former runs sent is sent again, and the snapshot says what the destination has by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.model.replay import ReplayOrder
from wsync_engine.model.sync import Guards
from wsync_engine.pipeline.context import no_faults
from wsync_engine.pipeline.job import Job, Outcome
from wsync_engine.pipeline.run import execute
from wsync_sdk import BEFORE, ConfigError, WriteResult

from .ledger import Ledger
from .world import Crash, RecordingSink, World, change, crash_at

STEPS = ["after_plan", "diff", "after_change_log", "after_start_delivery", "after_mark_sent", "after_ack", "fold", "before_finish"]


def ordinary(world: World) -> UUID:
    run_id = world.new_run()
    assert execute(world.job(run_id)).state == "succeeded"
    return run_id


def replay(world: World, *run_ids: UUID, faults: Callable[[str], None] = no_faults) -> Outcome:
    return execute(world.job(world.new_run(replay=ReplayOrder(run_ids=run_ids)), faults))


@pytest.fixture
def history(world: World) -> list[UUID]:
    """Three runs: of everything, of ten changes, five new rows and five that left, and of three changes more."""
    first = ordinary(world)
    change(world)
    second = ordinary(world)
    world.source.rows |= {0: "changed again", 200: "changed again", 20: "came back"}
    return [first, second, ordinary(world)]


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


def test_a_destination_that_was_restored_gets_all_that_it_lost_and_nothing_twice(world: World, history: list[UUID]) -> None:
    world.sink.contents = {n: f"name {n}" for n in range(100)}  # as it was after the first run
    world.sink.calls.clear()

    outcome = replay(world, history[2], history[1])

    assert (outcome.state, outcome.counts["read"], outcome.counts["duplicates"]) == ("succeeded", 18, 2)
    assert (outcome.counts["upserts"], outcome.counts["deletes"]) == (16, 4)
    assert sorted(key for _, keys in world.sink.calls for key in keys) == [*range(10), *range(20, 25), *range(200, 205)]
    assert world.sink.contents == world.source.rows
    assert (world.run().counts["upserts"], world.sink.contents) == (0, world.source.rows)


def test_newer_rows_are_brought_again_by_the_next_ordinary_run(world: World, history: list[UUID]) -> None:
    replay(world, history[0])
    assert world.sink.contents[0] == "name 0"

    outcome = world.run()

    assert (outcome.counts["upserts"], outcome.counts["deletes"]) == (11, 4)
    assert world.sink.contents == world.source.rows


def test_who_is_in_no_log_is_not_deleted(world: World, history: list[UUID]) -> None:
    del world.source.rows[50]

    assert replay(world, history[2]).counts["deletes"] == 0
    assert 50 in world.sink.contents
    assert world.run().counts["deletes"] == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_replay_that_dies_anywhere_is_finished_by_the_next_holder(world: World, history: list[UUID], step: str) -> None:
    world.sink.contents = {n: f"name {n}" for n in range(100)}
    run_id = world.new_run(replay=ReplayOrder(run_ids=tuple(history[1:])))
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at(step, 1)))

    assert execute(world.job(run_id)).state == "succeeded"

    assert world.sink.contents == world.source.rows
    assert world.run().counts["upserts"] == 0


def test_a_replay_that_is_given_up_half_way_leaves_its_rows_to_the_next_run(world: World, history: list[UUID]) -> None:
    run_id = world.new_run(replay=ReplayOrder(run_ids=(history[0],)))
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_ack", 1)))
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", (run_id,))

    world.run()

    assert world.sink.contents == world.source.rows


def test_guards_judge_a_replay_as_any_run(world: World, history: list[UUID]) -> None:
    world.spec = replace(world.spec, guards=Guards(max_delete_percent=1))
    assert replay(world, history[1]).state == "blocked"

    world.spec = replace(world.spec, guards=Guards(max_delete_percent=20))
    world.engine.execute("UPDATE wsync.run SET state = 'cancelled' WHERE state = 'blocked'")
    assert replay(world, history[1]).state == "succeeded"


def test_a_dry_replay_counts_and_sends_nothing(world: World, history: list[UUID]) -> None:
    world.sink.calls.clear()

    outcome = execute(world.job(world.new_run(dry_run=True, replay=ReplayOrder(run_ids=tuple(history)))))

    assert (outcome.state, outcome.reason, world.sink.calls) == ("blocked", "dry run: 101 upserts and 4 deletes would be sent", [])


def test_rows_that_were_rejected_are_offered_again_by_a_replay(world: World) -> None:
    world.sink.refuse = frozenset({3})
    run_id = world.new_run()
    execute(world.job(run_id))
    world.sink.refuse = frozenset()

    replay(world, run_id)

    assert world.sink.contents == world.source.rows
    assert world.run().counts["held_back"] == 0


def test_an_incremental_sync_reads_from_the_start_after_a_replay_and_goes_on_from_there(ledger: Ledger) -> None:
    ledger.put(*range(30))
    first = ordinary(ledger)
    ledger.put(3, name="newer")
    ordinary(ledger)

    replay(ledger, first)
    assert ledger.sink.contents[3] == "name 3 at 4"

    again = ledger.run()
    assert (again.counts["read"], again.counts["upserts"], ledger.sink.contents) == (30, 1, ledger.names())
    ledger.put(40)
    assert ledger.run().counts["read"] == 2


def test_logs_of_a_time_with_fewer_partitions_are_replayed_row_by_row(world: World, history: list[UUID]) -> None:
    world.rows_per_partition = 30
    world.source.rows[0] = "in four partitions"
    world.source.rows |= {n: f"name {n}" for n in range(300, 330)}
    world.spec = replace(world.spec, guards=Guards())
    last = ordinary(world)
    assert world.scalar("SELECT (manifest ->> 'partitions')::int FROM wsync.snapshot") > 1
    world.sink.contents.clear()

    outcome = replay(world, *history, last)

    assert (outcome.state, world.sink.contents) == ("succeeded", world.source.rows)
    assert world.run().counts["upserts"] == 0


def test_wide_rows_are_replayed_too(world: World) -> None:
    world.source.rows = {n: str(n) * 100_000 for n in range(12)}
    first = ordinary(world)
    world.source.rows[5] = "x" * 100_000
    second = ordinary(world)
    world.sink.contents.clear()

    replay(world, first, second)

    assert world.sink.contents == world.source.rows


def test_before_values_are_those_that_the_destination_has(world: World) -> None:
    world.sink.needs_before = frozenset({"name"})
    first = ordinary(world)
    world.source.rows[3] = "newer"
    ordinary(world)
    seen: dict[int, Any] = {}

    def look(chunk: Any) -> WriteResult:
        seen.update({row["id"]: row[BEFORE] for row in chunk.to_rows()})
        return WriteResult(accepted_rows=chunk.rows)

    world.sink.verdict = look
    replay(world, first)

    assert seen[3] == {"name": ['"newer"']}


# -- what can't be replayed


def refused(world: World, *run_ids: UUID) -> str:
    with pytest.raises(ConfigError) as caught:
        replay(world, *run_ids)
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE state = 'running'")
    return caught.value.message


def test_what_was_never_delivered_is_refused_by_name(world: World, history: list[UUID]) -> None:
    world.source.rows[1] = "other"
    dry = world.new_run(dry_run=True)
    execute(world.job(dry))
    assert f"run {dry} has not ended" in refused(world, history[0], dry)
    world.engine.execute("UPDATE wsync.run SET state = 'cancelled' WHERE run_id = %s", (dry,))

    assert f"run {dry} was never delivered" in refused(world, history[0], dry)


def test_a_log_that_is_gone_is_refused_by_name(world: World, history: list[UUID]) -> None:
    world.storage.drop_run(str(history[1]))

    assert f"the change log of run {history[1]} is not in the storage folder" in refused(world, *history)


def test_logs_with_other_fields_are_refused_by_name(world: World, history: list[UUID]) -> None:
    world.engine.execute(
        "UPDATE wsync.run SET change_log = jsonb_set(change_log, '{key,0,1}', '\"INTEGER\"') WHERE run_id = %s", (history[1],)
    )

    assert f"runs {history[0]} and {history[1]} have other fields" in refused(world, *history)


def test_a_run_of_another_sync_is_refused_by_name(world: World, history: list[UUID]) -> None:
    stranger = uuid7()

    assert f"run {stranger} is none of the sync's" in refused(world, history[0], stranger)


def test_a_sync_that_was_moved_since_is_not_filled_with_what_its_former_destination_got(world: World, history: list[UUID]) -> None:
    world.destination = "another/recording"

    assert f"run {history[0]} went to another destination" in refused(world, history[0])


# -- elsewhere


def elsewhere(world: World, run_id: UUID, faults: Callable[[str], None] = no_faults) -> Job:
    job = world.job(run_id, faults)
    return replace(job, sink=world.other, destination="other/recording")  # type: ignore[attr-defined]


@pytest.fixture
def other(world: World) -> RecordingSink:
    made = RecordingSink()
    world.other = made  # type: ignore[attr-defined]
    return made


def test_another_destination_gets_it_and_the_snapshot_is_as_it_was(world: World, history: list[UUID], other: RecordingSink) -> None:
    before = world.scalar("SELECT to_jsonb(s)::text FROM wsync.snapshot s")
    world.sink.calls.clear()

    outcome = execute(elsewhere(world, world.new_run(replay=ReplayOrder(run_ids=tuple(history), sink_id=uuid7(), stream="people"))))

    assert (outcome.state, other.contents, world.sink.calls) == ("succeeded", world.source.rows, [])
    assert world.scalar("SELECT to_jsonb(s)::text FROM wsync.snapshot s") == before
    assert world.run().counts["upserts"] == 0


def test_what_another_destination_got_of_a_run_that_died_is_never_taken_for_the_syncs_own(
    world: World, history: list[UUID], other: RecordingSink
) -> None:
    run_id = world.new_run(replay=ReplayOrder(run_ids=(history[0],), sink_id=uuid7(), stream="people"))
    with pytest.raises(Crash):
        execute(elsewhere(world, run_id, crash_at("after_ack", 2)))
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", (run_id,))
    world.sink.calls.clear()

    assert world.run().counts["upserts"] == 0
    assert world.sink.calls == []
    assert world.scalar("SELECT folded_at IS NOT NULL FROM wsync.run WHERE run_id = %s", run_id) is True
