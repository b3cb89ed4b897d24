"""The ways out when what is taken as delivered is not what the sink holds: offer everything again, or take the result as delivered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsync_engine.model.sync import Guards
from wsync_engine.pipeline.context import Cancelled
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_sdk import FatalError

from .world import Crash, World, change, crash_at


def lose_snapshot(world: World) -> None:
    for path in world.storage.snapshot_folder(str(world.sync_id)).iterdir():
        path.unlink()


def damage_snapshot(world: World) -> None:
    """Its footer is whole: only who reads the rows finds out."""
    for path in world.storage.snapshot_folder(str(world.sync_id)).iterdir():
        data = bytearray(path.read_bytes())
        data[4:40] = bytes(36)
        path.write_bytes(data)


def test_a_resync_offers_everything_once_and_deletes_who_left(world: World) -> None:
    world.run()
    world.sink.contents = {999: "not ours"}  # the sink lost what it had
    del world.source.rows[7]
    world.ask_for_resync()

    outcome = world.run()

    assert (outcome.state, outcome.counts["upserts"], outcome.counts["deletes"]) == ("succeeded", 99, 1)
    assert world.sink.contents == {**world.source.rows, 999: "not ours"}
    assert world.run().counts["upserts"] == 0


def test_a_resync_that_died_half_way_goes_on_where_it_was(world: World) -> None:
    world.run()
    world.sink.calls.clear()
    world.ask_for_resync()
    job = world.job(world.new_run())
    job.context.is_cancelled = lambda: len(world.sink.calls) >= 5
    with pytest.raises(Cancelled) as caught:
        execute(job)
    conclude(job, caught.value, outcome="cancelled")
    sent = {key for _, keys in world.sink.calls for key in keys}
    assert 0 < len(sent) < 100

    outcome = world.run()

    assert outcome.counts["upserts"] == 100 - len(sent)
    assert world.run().counts["upserts"] == 0


def test_a_resync_asked_for_while_a_run_delivers_is_done_by_the_next_one(world: World) -> None:
    world.run()
    change(world)
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_mark_sent", 1)))
    world.ask_for_resync()

    assert execute(world.job(run_id)).counts["upserts"] == 15
    assert world.run().counts["upserts"] == len(world.source.rows)
    assert world.run().counts["upserts"] == 0


def test_a_resync_offers_again_what_was_rejected(world: World) -> None:
    world.sink.refuse = frozenset({3})
    assert world.run().state == "partial"
    world.sink.refuse = frozenset()
    assert world.run().counts["held_back"] == 1
    world.ask_for_resync()

    outcome = world.run()

    assert (outcome.state, world.sink.contents) == ("succeeded", world.source.rows)


@pytest.mark.parametrize("harm", [lose_snapshot, damage_snapshot])
def test_after_a_lost_snapshot_a_resync_sends_everything_and_departed_rows_stay(world: World, harm) -> None:  # type: ignore[no-untyped-def]
    world.run()
    harm(world)
    del world.source.rows[7]
    assert "snapshot_lost" in world.failed_run().message
    world.ask_for_resync()

    outcome = world.run()

    assert (outcome.state, outcome.counts["upserts"], outcome.counts["deletes"]) == ("succeeded", 99, 0)
    assert world.sink.contents == {**world.source.rows, 7: "name 7"}
    assert world.scalar("SELECT count(*) FROM wsync.run_event WHERE kind = 'snapshot.restarted'") == 1
    del world.source.rows[8]
    assert world.run().counts["deletes"] == 1


def test_a_lost_run_that_was_not_folded_is_given_up_by_a_resync(world: World) -> None:
    world.run()
    change(world)
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_ack", 1)))
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", (run_id,))
    for path in world.storage.log_folder(str(run_id)).iterdir():
        path.unlink()
    assert "snapshot_lost" in world.failed_run().message
    world.ask_for_resync()

    outcome = world.run()

    assert (outcome.state, world.sink.contents) == ("succeeded", world.source.rows)
    assert world.scalar("SELECT count(*) FROM wsync.run_event WHERE kind = 'fold.given_up'") == 1
    assert world.run().counts["upserts"] == 0


def test_adopting_a_full_sink_sends_nothing_and_the_next_run_only_changes(world: World) -> None:
    world.sink.contents = dict(world.source.rows)

    adopted = world.adopt()

    assert (adopted.state, adopted.reason) == ("succeeded", "100 rows taken as acknowledged, nothing was sent")
    assert world.sink.calls == []
    change(world)
    outcome = world.run()
    assert (outcome.counts["upserts"], outcome.counts["deletes"]) == (15, 5)
    assert world.sink.contents == world.source.rows


@pytest.mark.parametrize("step", ["extract", "after_change_log", "after_start_delivery", "fold", "before_finish", "after_finish"])
def test_an_adoption_that_dies_anywhere_is_finished_by_the_next_holder(world: World, step: str) -> None:
    run_id = world.new_run(adopt=True)
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at(step, 1)))

    if step != "after_finish":
        execute(world.job(run_id))

    assert (world.run().counts["unchanged"], world.sink.calls) == (100, [])


def test_adopting_keeps_departed_rows_for_the_next_run_to_delete(world: World) -> None:
    world.run()
    change(world)
    world.sink.contents |= world.source.rows  # somebody else brought the new values, and deleted nothing

    assert world.adopt().counts["deletes"] == 0

    outcome = world.run()
    assert (outcome.counts["upserts"], outcome.counts["deletes"]) == (0, 5)
    assert world.sink.contents == world.source.rows


def test_a_lost_snapshot_can_be_adopted(world: World) -> None:
    world.run()
    lose_snapshot(world)
    world.sink.calls.clear()

    assert world.adopt().state == "succeeded"

    assert (world.run().counts["unchanged"], world.sink.calls) == (100, [])


def test_adopting_passes_the_guards_since_it_harms_nobody(world: World) -> None:
    world.run()
    world.source.rows = {1: "name 1"}
    world.spec = replace(world.spec, guards=Guards(max_delete_percent=0))

    assert world.adopt().state == "succeeded"
    assert world.run().state == "blocked"


def test_a_change_log_is_never_delivered_to_another_sink(world: World) -> None:
    world.run()
    world.sink.calls.clear()
    change(world)
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("before_mark_sent", 1)))
    world.destination = "another/recording"

    with pytest.raises(FatalError, match="moved to another sink"):
        execute(world.job(run_id))

    assert world.sink.calls == []


def test_a_moved_sync_offers_everything_and_deletes_nothing_at_the_new_destination(world: World) -> None:
    world.run()
    world.sink.contents = {7: "not ours", 999: "not ours"}
    del world.source.rows[7]
    world.move()

    outcome = world.run()

    assert (outcome.state, outcome.counts["upserts"], outcome.counts["deletes"]) == ("succeeded", 99, 0)
    assert world.sink.contents == {**world.source.rows, 7: "not ours", 999: "not ours"}
    del world.source.rows[8]
    assert world.run().counts["deletes"] == 1


def test_a_run_of_the_former_destination_that_is_folded_late_is_forgotten_too(world: World) -> None:
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_ack", 2)))
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", (run_id,))
    world.sink.contents.clear()
    world.move()

    assert world.run().counts["upserts"] == 100
    assert world.sink.contents == world.source.rows


def test_a_sink_is_told_whether_a_run_only_brings_it_up_to_date(world: World) -> None:
    world.run()
    world.run()
    world.ask_for_resync()
    world.run()
    world.adopt()
    world.source.rows[1] = "other"
    world.adopt()
    world.run()

    assert [continues > 0 for continues in world.sink.continues] == [False, True, False, False]
