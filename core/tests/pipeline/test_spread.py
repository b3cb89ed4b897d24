"""A run of several partitions dies at any step, and whoever takes it up goes on: nothing is lost, doubled, or done from the start without need."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.types.json import Jsonb

from wsync_engine.pipeline.run import execute

from .world import Crash, World, change, crash_at

STEPS = (
    "plan",
    "after_plan",
    "after_extract",
    "diff",
    "before_task_done",
    "after_task_done",
    "after_change_log",
    "after_start_delivery",
    "before_mark_sent",
    "after_mark_sent",
    "before_ack",
    "after_ack",
    "fold",
    "before_finish",
    "after_finish",
)
ONLY_ONCE = {"plan", "after_plan", "after_extract", "after_change_log", "after_start_delivery", "before_finish", "after_finish"}
PLANNED_AGAIN = {"after_plan"}
"""Before all is read, a plan that lives in the process that died begins anew."""


def spread_world(world: World) -> World:
    """100 rows are there, in four partitions from now on."""
    world.run()
    world.rows_per_partition = 30
    world.sink.calls.clear()
    change(world)
    return world


@pytest.mark.parametrize(("step", "occurrence"), [(step, n) for step in STEPS for n in (1, 2, 4) if n == 1 or step not in ONLY_ONCE])
def test_whoever_takes_up_a_spread_run_goes_on_where_it_was_left(world: World, step: str, occurrence: int) -> None:
    spread_world(world)
    plans = world.source.plans
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at(step, occurrence)))

    if step != "after_finish":
        outcome = execute(world.job(run_id))
        assert outcome.state == "succeeded"
        assert (outcome.counts["upserts"], outcome.counts["deletes"], outcome.counts["unchanged"]) == (15, 5, 85)

    assert world.sink.contents == world.source.rows
    ids_by_key: dict[str, tuple[int, ...]] = {}
    for key, ids in world.sink.calls:
        assert ids_by_key.setdefault(key, ids) == ids
    assert sorted(n for ids in ids_by_key.values() for n in ids) == sorted([*range(10), *range(20, 25), *range(200, 205)])
    is_in_extract = step in {"before_task_done", "after_task_done"} and occurrence <= 2  # two splits
    assert world.source.plans - plans == 1 + (step in PLANNED_AGAIN or is_in_extract)
    world.sink.calls.clear()
    assert (world.run().counts["unchanged"], world.sink.calls) == (100, [])


def test_a_run_that_dies_at_each_of_its_folds_ends_with_the_whole_snapshot(world: World) -> None:
    spread_world(world)
    run_id = world.new_run()
    for _ in range(4):
        with pytest.raises(Crash):
            execute(world.job(run_id, crash_at("after_task_done", 1)))

    assert execute(world.job(run_id)).state == "succeeded"

    assert world.scalar("SELECT manifest->>'rows' FROM wsync.snapshot WHERE sync_id = %s", world.sync_id) == "100"
    world.sink.calls.clear()
    assert (world.run().counts["unchanged"], world.sink.calls) == (100, [])


def test_a_run_that_gets_on_between_the_deaths_of_its_processes_is_no_crash_loop(world: World) -> None:
    spread_world(world)
    run_id = world.new_run()
    world.engine.execute("UPDATE wsync.run SET crashes = 2 WHERE run_id = %s", (run_id,))

    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("before_task_done", 1)))
    assert world.scalar("SELECT crashes FROM wsync.run WHERE run_id = %s", run_id) == 2
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_task_done", 1)))

    assert world.scalar("SELECT crashes FROM wsync.run WHERE run_id = %s", run_id) == 0


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_stage_that_is_lost_before_it_was_compared_is_read_again(world: World, harm: str) -> None:
    spread_world(world)
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_extract", 1)))
    for file in (world.storage.root / "t" / "runs" / str(run_id)).glob("stage-*/**/*.parquet"):
        file.unlink() if harm == "missing" else file.write_bytes(file.read_bytes()[:-20])
    plans = world.source.plans

    outcome = execute(world.job(run_id))

    assert (outcome.state, world.source.plans - plans) == ("succeeded", 1)
    assert world.sink.contents == world.source.rows


def test_a_snapshot_that_moved_on_while_a_run_was_left_has_it_compared_anew(world: World) -> None:
    spread_world(world)
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_extract", 1)))
    world.engine.execute("UPDATE wsync.run SET exclusive = false WHERE run_id = %s", (run_id,))
    del world.source.rows[0]
    assert execute(world.job(world.new_run(is_beside=True, is_earlier=True))).state == "succeeded"
    world.source.rows[0] = "came back"

    assert execute(world.job(run_id)).state == "succeeded"

    assert world.sink.contents == world.source.rows
    world.sink.calls.clear()
    assert (world.run().counts["unchanged"], world.sink.calls) == (100, [])


def test_a_stage_goes_as_soon_as_its_partition_is_compared(world: World) -> None:
    spread_world(world)
    run_id = world.new_run()

    def staged() -> set[str]:
        return {file.parent.name for file in (world.storage.root / "t" / "runs" / str(run_id)).glob("stage-*/**/*.parquet")}

    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("diff", 3)))
    assert staged() == {"wsync_partition=2", "wsync_partition=3"}
    execute(world.job(run_id))
    assert staged() == set()


@pytest.mark.parametrize("refused", [frozenset(), frozenset({3, 203})])
def test_a_change_log_of_an_older_engine_whose_stage_is_still_there_is_folded_as_ever(world: World, refused: frozenset[int]) -> None:
    spread_world(world)
    world.sink.refuse = refused
    run_id = world.new_run()
    kept: dict[Path, bytes] = {}

    def faults(step: str) -> None:
        if step == "after_extract":
            kept.update({file: file.read_bytes() for file in world.storage.root.glob(f"t/runs/{run_id}/stage-*/**/*.parquet")})
        crash_at_end(step)

    crash_at_end = crash_at("before_finish", 1)
    with pytest.raises(Crash):
        execute(world.job(run_id, faults))
    for file, content in kept.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    stage = {
        str(part): [world.storage.relative(file) for file in kept if file.parent.name == f"wsync_partition={part}"] for part in range(4)
    }
    world.engine.execute(
        "UPDATE wsync.run SET change_log = jsonb_set(change_log - 'aside', '{stage}', %s) WHERE run_id = %s", (Jsonb(stage), run_id)
    )
    world.engine.execute("DELETE FROM wsync.task WHERE run_id = %s", (run_id,))

    outcome = execute(world.job(run_id))

    assert outcome.counts["rejected"] == len(refused)
    world.sink.refuse = frozenset()
    world.sink.calls.clear()
    assert world.run().counts["held_back"] == len(refused)
    assert world.sink.calls == []
