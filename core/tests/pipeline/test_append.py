"""Mode `append`: each key is sent once, and a log that was left is finished under the same chunk keys before anything else is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from wsync_engine.model.sync import Guards, Mode
from wsync_engine.pipeline.context import Cancelled
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_sdk import ConfigError, FatalError, RetryableError, WriteMode, WriteResult

from .ledger import Ledger
from .test_run import STEPS
from .world import Crash, World, change, crash_at

SENT = [("after_mark_sent", 1), ("after_write", 1), ("after_write", 3), ("before_ack", 1), ("after_ack", 1)]
"""Steps, and which time one comes to them, at which chunks may have been sent, and rows have no verdict."""


@pytest.fixture
def appending(world: World) -> World:
    world.spec = replace(world.spec, mode=Mode.APPEND)
    return world


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    made.spec = replace(made.spec, mode=Mode.APPEND)
    yield made
    made.close()


def end(world: World, run_id: UUID, state: str = "failed") -> None:
    """As the reaper ends a run whose process is gone."""
    world.engine.execute("UPDATE wsync.run SET state = %s, finished_at = now(), worker_id = NULL WHERE run_id = %s", (state, run_id))


def crashed_run(world: World, step: str = "after_write", occurrence: int = 3) -> UUID:
    """A run that died at a step, and was given up."""
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at(step, occurrence)))
    end(world, run_id)
    return run_id


def keys_by_row(world: World) -> dict[int, set[str]]:
    """Under which chunk keys each row was sent."""
    found: dict[int, set[str]] = {}
    for key, rows in world.sink.calls:
        for row in rows:
            found.setdefault(row, set()).add(key)
    return found


def appended(world: World) -> dict[int, int]:
    """How often a destination that knows chunk keys has each row."""
    return {row: len(keys) for row, keys in keys_by_row(world).items()}


def once(*rows: int) -> dict[int, int]:
    return dict.fromkeys(rows, 1)


# -- what is sent


def test_a_key_is_sent_once_whether_its_row_changes_leaves_or_comes_back(appending: World) -> None:
    appending.run()
    change(appending)
    changed = appending.run()
    appending.source.rows |= {key: f"back {key}" for key in range(20, 25)}

    again = appending.run()

    assert (changed.counts["upserts"], changed.counts["deletes"], changed.counts["unchanged"]) == (5, 0, 95)
    assert (again.state, again.counts["upserts"], again.counts["unchanged"]) == ("succeeded", 0, 105)
    assert appended(appending) == once(*range(100), *range(200, 205))
    assert appending.sink.contents[0] == "name 0"
    assert appending.sink.sent_as == {WriteMode.APPEND}


def test_a_rejected_row_is_offered_again_after_its_backoff_and_not_before(appending: World) -> None:
    appending.sink.refuse = frozenset({3, 50})
    first = appending.run()
    appending.sink.refuse = frozenset()
    early = appending.run()
    appending.end_backoff()

    late = appending.run()

    assert (first.counts["accepted"], first.counts["rejected"]) == (98, 2)
    assert (early.counts["upserts"], early.counts["held_back"]) == (0, 2)
    assert (late.state, late.counts["upserts"], late.counts["unchanged"]) == ("succeeded", 2, 98)


def test_a_row_of_which_the_destination_said_nothing_is_offered_again(appending: World) -> None:
    appending.sink.verdict = lambda chunk: WriteResult(accepted_rows=chunk.rows - 1, unknown=(0,))
    doubted = appending.run().counts["unsure"]
    appending.sink.verdict = None

    assert (appending.run().counts["upserts"], appending.run().counts["upserts"]) == (doubted, 0)
    assert doubted > 0


def test_a_resync_offers_everything_again(appending: World) -> None:
    appending.run()
    appending.ask_for_resync()

    assert (appending.run().counts["upserts"], appending.run().counts["upserts"]) == (100, 0)


def test_an_adopted_result_is_never_sent(appending: World) -> None:
    appending.adopt()
    change(appending)

    assert appending.run().counts["upserts"] == 5
    assert appended(appending) == once(*range(200, 205))


def test_an_empty_result_is_stopped_by_its_guard(appending: World) -> None:
    appending.run()
    appending.source.rows.clear()

    assert appending.run().state == "blocked"


def test_of_a_cursors_window_only_new_keys_are_sent(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(3, 40)

    second = ledger.run()

    assert (second.counts["read"], second.counts["upserts"], second.counts["unchanged"]) == (3, 1, 2)
    assert appended(ledger) == once(*range(30), 40)
    assert ledger.stored() == "32"


def test_a_stream_that_can_not_append_is_refused_before_the_query(appending: World) -> None:
    appending.sink.write_modes = frozenset({WriteMode.MERGE})

    with pytest.raises(ConfigError, match="`append` adds rows") as caught:
        appending.run()

    assert "mode: upsert" in caught.value.next_step
    assert appending.source.plans == 0


# -- a run that goes on


@pytest.mark.parametrize("step", STEPS)
def test_wherever_the_process_dies_the_run_goes_on_and_no_row_has_two_chunks(appending: World, step: str) -> None:
    run_id = appending.new_run()
    with pytest.raises(Crash):
        execute(appending.job(run_id, crash_at(step, 1)))

    if step != "after_finish":
        assert execute(appending.job(run_id)).state == "succeeded"

    assert appended(appending) == once(*range(100))
    assert appending.run().counts["upserts"] == 0


# -- a run that ended


@pytest.mark.parametrize(("step", "occurrence"), SENT)
@pytest.mark.parametrize("rows_per_partition", [30, 1_000])
def test_the_next_run_finishes_what_was_left_under_the_same_chunk_keys(
    appending: World, rows_per_partition: int, step: str, occurrence: int
) -> None:
    appending.source.rows = {key: f"name {key}" for key in range(40)}
    appending.run()
    appending.rows_per_partition = rows_per_partition
    appending.source.rows |= {key: f"name {key}" for key in range(40, 100)}
    left = crashed_run(appending, step, occurrence)
    change(appending)

    after = appending.run()

    assert (after.state, after.counts["upserts"], after.counts["unchanged"]) == ("succeeded", 5, 95)
    assert appended(appending) == once(*range(100), *range(200, 205))
    assert all(str(left) in key for row, keys in keys_by_row(appending).items() if 40 <= row < 100 for key in keys)
    counts = appending.scalar("SELECT counts FROM wsync.run WHERE run_id = %s", left)
    assert (counts["accepted"], counts["unsure"], counts["not_sent"]) == (60, 0, 0)


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_a_run_that_failed_or_was_cancelled_in_mid_delivery_leaves_its_log_open(appending: World, outcome: str) -> None:
    job = appending.job(appending.new_run())
    appending.sink.lose_replies = 100
    with pytest.raises(RetryableError) as caught:
        execute(job)
    error = Cancelled("cancelled", next_step="run again") if outcome == "cancelled" else caught.value
    ended = conclude(job, error, outcome=outcome)
    appending.sink.lose_replies = 0
    change(appending)

    after = appending.run()

    assert (ended.state, ended.counts["unsure"] > 0) == (outcome, True)
    assert "the next run of the sync sends the rest" in ended.reason
    assert (after.state, after.counts["upserts"]) == ("succeeded", 5)
    assert appended(appending) == once(*range(100), *range(200, 205))


def test_a_run_that_failed_before_it_sent_anything_leaves_nothing_to_finish(appending: World) -> None:
    appending.sink.refuse_begin = FatalError("the table is gone", next_step="make it")
    appending.failed_run()
    appending.sink.refuse_begin = None
    change(appending)

    assert appending.run().counts["upserts"] == 100
    assert appending.scalar("SELECT count(*) FROM wsync.run WHERE finisher IS NOT NULL") == 0


def test_rows_that_are_rejected_while_the_log_is_finished_are_the_ended_runs(appending: World) -> None:
    left = crashed_run(appending)
    sent = set(keys_by_row(appending))
    refused = next(row for row in range(100) if row not in sent)
    appending.sink.refuse = frozenset({refused})

    after = appending.run()

    assert (after.state, after.counts["upserts"], after.counts["held_back"]) == ("partial", 0, 1)
    assert appending.scalar("SELECT run_id FROM wsync.rejection WHERE sync_id = %s", appending.sync_id) == left


@pytest.mark.parametrize(("step", "occurrence"), [("after_log_taken", 1), ("after_write", 2), ("after_ack", 1), ("after_log_finished", 1)])
def test_whoever_finishes_a_log_may_die_too(appending: World, step: str, occurrence: int) -> None:
    crashed_run(appending)
    successor = appending.new_run()
    with pytest.raises(Crash):
        execute(appending.job(successor, crash_at(step, occurrence)))

    assert execute(appending.job(successor)).state == "succeeded"
    assert appended(appending) == once(*range(100))


def test_after_a_successor_that_ended_another_one_finishes_the_log(appending: World) -> None:
    crashed_run(appending)
    crashed_run(appending, "after_log_taken", 1)

    assert appending.run().counts["upserts"] == 0
    assert appended(appending) == once(*range(100))


def test_two_runs_do_not_finish_a_log_at_the_same_time(appending: World) -> None:
    crashed_run(appending)
    successor = appending.new_run()
    appending.engine.execute("UPDATE wsync.run SET exclusive = false WHERE run_id = %s", (successor,))
    with pytest.raises(Crash):
        execute(appending.job(successor, crash_at("after_log_taken", 1)))

    with pytest.raises(RetryableError, match="finishes an earlier one's change log"):
        appending.run_beside()
    appending.engine.execute("UPDATE wsync.run SET state = 'cancelled' WHERE state = 'running' AND run_id <> %s", (successor,))

    assert execute(appending.job(successor)).state == "succeeded"
    assert appended(appending) == once(*range(100))


def test_a_dry_run_leaves_the_log_to_a_run_that_may_deliver(appending: World) -> None:
    crashed_run(appending)
    calls = len(appending.sink.calls)

    outcome = execute(appending.job(appending.new_run(dry_run=True)))

    assert (outcome.state, len(appending.sink.calls)) == ("blocked", calls)
    assert appending.run().state == "succeeded"
    assert appended(appending) == once(*range(100))


def test_the_cursor_moves_when_the_log_is_finished(ledger: Ledger) -> None:
    ledger.put(*range(30))
    crashed_run(ledger, "after_write", 2)

    second = ledger.run()

    assert (second.counts["read"], second.counts["upserts"], ledger.last_asked()) == (1, 0, 30)
    assert appended(ledger) == once(*range(30))


# -- what a person decides


def lose_logs(world: World) -> None:
    for path in world.storage.log_folder("x").parent.parent.rglob("changes-*.parquet"):
        path.unlink()


def ask(world: World) -> None:
    world.ask_for_resync()


def nothing(_: World) -> None:
    pass


def test_a_lost_log_is_said_and_holds_the_sync(appending: World) -> None:
    left = crashed_run(appending)
    lose_logs(appending)

    for _ in range(2):
        error = appending.failed_run()

        assert str(left) in error.message
        assert "sync resync" in error.next_step
        assert "sync adopt" in error.next_step


@pytest.mark.parametrize("lose", [nothing, lose_logs])
def test_a_resync_gives_the_log_up_and_offers_everything_again(appending: World, lose: Callable[[World], None]) -> None:
    crashed_run(appending)
    lose(appending)
    appending.ask_for_resync()

    assert appending.run().counts["upserts"] == 100
    assert appending.run().counts["upserts"] == 0


@pytest.mark.parametrize("lose", [nothing, lose_logs])
def test_an_adoption_gives_the_log_up_and_sends_nothing(appending: World, lose: Callable[[World], None]) -> None:
    crashed_run(appending)
    calls = len(appending.sink.calls)
    lose(appending)

    assert appending.adopt().counts["accepted"] > 0
    assert appending.run().counts["upserts"] == 0
    assert len(appending.sink.calls) == calls


def test_a_sync_that_went_to_another_destination_begins_there(appending: World) -> None:
    crashed_run(appending)
    appending.sink.calls.clear()
    appending.destination = "s/other"
    appending.move()

    assert appending.run().counts["upserts"] == 100
    assert appended(appending) == once(*range(100))


def test_a_sync_that_is_an_upsert_by_now_still_finishes_the_log(appending: World) -> None:
    crashed_run(appending)
    appending.spec = replace(appending.spec, mode=Mode.UPSERT, guards=Guards())
    change(appending)

    after = appending.run()

    assert (after.state, after.counts["upserts"]) == ("succeeded", 15)
    assert appended(appending) == {**once(*range(100), *range(200, 205)), **dict.fromkeys(range(10), 2)}
