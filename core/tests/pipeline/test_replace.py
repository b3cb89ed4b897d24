"""Mode `replace`: what the destination shows is always one whole result, and becomes the next one in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from wsync_engine.model.sync import Guards, Mode
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_sdk import ConfigError, FatalError, Inspection, Rejection, RetryableError, RunRef, Target, WriteMode, WriteResult, WsyncError
from wsync_sdk.sink import Chunk

from .test_run import STEPS
from .world import Crash, RecordingSink, World, change, crash_at


class VersionedSink(RecordingSink):
    """Shows `contents`, and fills versions beside it.

    :ivar lose_commits: so many switches are made, and not answered. :ivar drop_commits: so many are neither. :ivar tells: whether it knows of tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drafts: dict[bytes, dict[int, str]] = {}
        self.committed: list[bytes] = []
        self.totals: list[Mapping[str, int]] = []
        self.begun = 0
        self.lose_commits = 0
        self.drop_commits = 0
        self.tells = True
        self.fail_inspect: WsyncError | None = None

    def begin(self, run: RunRef, target: Target) -> bytes:
        super().begin(run, target)
        assert (run.write_mode, run.stream) == (WriteMode.REPLACE, "people")
        self.begun += 1
        token = f"version-{self.begun}".encode()
        self.drafts[token] = {}
        return token

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        shown, self.contents = self.contents, self.drafts[token]
        try:
            return super().write(chunk, token)
        finally:
            self.contents = shown

    def commit(self, token: bytes, totals: Mapping[str, int]) -> None:
        if token in self.committed:
            return
        if self.drop_commits:
            self.drop_commits -= 1
            raise RetryableError("no answer", next_step="wait")
        if token not in self.drafts:
            raise FatalError("the version is gone", next_step="begin again")
        self.totals.append(totals)
        self.contents = self.drafts.pop(token)
        self.committed.append(token)
        if self.lose_commits:
            self.lose_commits -= 1
            raise RetryableError("no answer", next_step="wait")

    def abort(self, token: bytes) -> None:
        self.drafts.pop(token, None)

    def inspect(self, token: bytes) -> Inspection:
        if self.fail_inspect is not None:
            raise self.fail_inspect
        if token in self.drafts:
            return Inspection.OPEN
        if not self.tells:
            return Inspection.UNKNOWN
        return Inspection.COMMITTED if token in self.committed else Inspection.GONE

    def find_open(self, run: RunRef) -> Sequence[bytes]:
        assert run.stream == "people"
        return list(self.drafts)


@pytest.fixture
def replacing(world: World) -> World:
    world.spec = replace(world.spec, mode=Mode.REPLACE)
    world.sink = VersionedSink()
    return world


def sink_of(world: World) -> VersionedSink:
    assert isinstance(world.sink, VersionedSink)
    return world.sink


def sent(world: World) -> int:
    return sum(len(rows) for _, rows in world.sink.calls)


def end(world: World, run_id: UUID) -> None:
    """As the reaper ends a run whose process is gone."""
    world.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now(), worker_id = NULL WHERE run_id = %s", (run_id,))


def crashed_run(world: World, step: str, occurrence: int = 1) -> UUID:
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at(step, occurrence)))
    end(world, run_id)
    return run_id


def entries(world: World) -> Any:
    return world.scalar("SELECT (manifest ->> 'rows')::int FROM wsync.snapshot WHERE sync_id = %s", world.sync_id)


# -- what is sent


@pytest.mark.parametrize("rows_per_partition", [30, 1_000])
def test_a_result_that_differs_is_sent_whole_and_takes_the_place_of_the_former_one(replacing: World, rows_per_partition: int) -> None:
    replacing.sink.contents = {7_000: "somebody else's"}
    first = replacing.run()
    replacing.rows_per_partition = rows_per_partition
    shown = dict(replacing.sink.contents)
    change(replacing)

    second = replacing.run()

    assert (first.state, first.counts["upserts"], shown.get(7_000)) == ("succeeded", 100, None)
    assert (second.state, second.counts["upserts"], second.counts["departed"], second.counts["deletes"]) == ("succeeded", 100, 5, 0)
    assert replacing.sink.contents == replacing.source.rows
    assert [totals["accepted"] for totals in sink_of(replacing).totals] == [100, 100]
    assert entries(replacing) == 100


def test_a_result_that_is_the_same_is_not_sent(replacing: World) -> None:
    replacing.run()
    replacing.sink.calls.clear()

    again = replacing.run()

    assert (again.state, again.counts["unchanged"], again.counts["upserts"]) == ("succeeded", 100, 0)
    assert (replacing.sink.calls, sink_of(replacing).begun) == ([], 1)


@pytest.mark.parametrize("leaving", [True, False])
def test_one_row_that_left_or_came_is_reason_enough(replacing: World, leaving: bool) -> None:
    replacing.run()
    if leaving:
        del replacing.source.rows[1]
    else:
        replacing.source.rows[100] = "new"

    assert replacing.run().counts["upserts"] == len(replacing.source.rows)
    assert replacing.sink.contents == replacing.source.rows


def test_what_another_mode_sent_is_not_taken_for_a_version(replacing: World) -> None:
    replacing.sink, versioned = RecordingSink(), replacing.sink
    replacing.spec = replace(replacing.spec, mode=Mode.UPSERT)
    replacing.run()
    replacing.sink, replacing.spec = versioned, replace(replacing.spec, mode=Mode.REPLACE)

    assert replacing.run().counts["upserts"] == 100
    assert replacing.sink.contents == replacing.source.rows


def test_a_resync_sends_the_same_result_once_more(replacing: World) -> None:
    replacing.run()
    replacing.ask_for_resync()

    assert (replacing.run().counts["upserts"], replacing.run().counts["upserts"]) == (100, 0)


def test_an_adopted_result_is_a_version_that_is_there(replacing: World) -> None:
    replacing.adopt()

    assert (replacing.run().counts["unchanged"], sink_of(replacing).begun) == (100, 0)
    del replacing.source.rows[0]
    assert replacing.run().counts["upserts"] == 99


def test_a_stream_without_versions_is_refused_before_the_query(replacing: World) -> None:
    replacing.sink.write_modes = frozenset({WriteMode.MERGE, WriteMode.APPEND})

    with pytest.raises(ConfigError, match="has no versions") as caught:
        replacing.run()

    assert "mode: mirror" in caught.value.next_step
    assert replacing.source.plans == 0


# -- what is not switched to


def test_a_version_that_lacks_a_rejected_row_is_dropped(replacing: World) -> None:
    replacing.run()
    shown = dict(replacing.sink.contents)
    change(replacing)
    replacing.sink.refuse = frozenset({50})

    error = replacing.failed_run()

    assert "1 of 100 rows were rejected" in error.message
    assert (replacing.sink.contents, sink_of(replacing).drafts, entries(replacing)) == (shown, {}, 100)
    replacing.sink.refuse = frozenset()
    assert replacing.run().counts["upserts"] == 100
    assert replacing.sink.contents == replacing.source.rows


def test_rejections_within_the_guard_are_left_out_and_offered_with_the_next_version_after_their_backoff(replacing: World) -> None:
    replacing.spec = replace(replacing.spec, guards=Guards(max_rejection_percent=2))
    replacing.sink.refuse = frozenset({3, 50})
    first = replacing.run()
    early = replacing.run()
    replacing.sink.refuse = frozenset()
    replacing.end_backoff()

    late = replacing.run()

    assert (first.state, first.counts["accepted"], first.counts["rejected"]) == ("partial", 98, 2)
    assert (early.state, early.counts["upserts"], early.counts["unchanged"], early.counts["held_back"]) == ("partial", 0, 98, 2)
    assert (late.state, late.counts["accepted"]) == ("succeeded", 100)
    assert replacing.sink.contents == replacing.source.rows


def test_a_row_that_was_there_and_is_rejected_now_is_gone_with_the_former_version(replacing: World) -> None:
    replacing.run()
    replacing.spec = replace(replacing.spec, guards=Guards(max_rejection_percent=2))
    replacing.source.rows[50] = "changed"
    replacing.sink.refuse = frozenset({50})
    replacing.run()
    replacing.source.rows[50] = "name 50"
    replacing.sink.refuse = frozenset()

    assert replacing.run().counts["accepted"] == 100
    assert replacing.sink.contents == replacing.source.rows


def test_rows_without_a_verdict_are_not_switched_to(replacing: World) -> None:
    replacing.sink.verdict = lambda chunk: WriteResult(accepted_rows=chunk.rows - 1, unknown=(0,))

    assert "nobody knows" in replacing.failed_run().message
    assert (replacing.sink.contents, sink_of(replacing).drafts) == ({}, {})


@pytest.mark.parametrize("is_first", [True, False])
def test_an_empty_result_empties_nothing_unless_it_may(replacing: World, is_first: bool) -> None:
    replacing.sink.contents = {7_000: "somebody else's"}
    if not is_first:
        replacing.run()
    shown = dict(replacing.sink.contents)
    replacing.source.rows.clear()
    blocked = replacing.run()
    replacing.engine.execute("UPDATE wsync.run SET state = 'cancelled' WHERE state = 'blocked'")
    replacing.spec = replace(replacing.spec, guards=Guards(allow_empty=True, max_delete_percent=None))

    assert (blocked.state, "allow_empty" in blocked.reason, replacing.sink.contents) == ("blocked", True, shown)
    assert replacing.run().state == "succeeded"
    assert replacing.sink.contents == {}
    assert replacing.run().counts["upserts"] == 0
    assert sink_of(replacing).begun == (1 if is_first else 2)


def test_who_leaves_with_the_former_version_is_guarded_as_a_delete(replacing: World) -> None:
    replacing.run()
    for key in range(30):
        del replacing.source.rows[key]

    outcome = replacing.run()

    assert (outcome.state, "30 of 100 subscribers would be deleted" in outcome.reason) == ("blocked", True)


def test_rows_that_the_mapping_refuses_stop_a_version(replacing: World) -> None:
    replacing.source.rows[1_000] = "x"
    replacing.spec = replace(replacing.spec, key=("name",))
    replacing.source.rows[1_001] = "x"

    outcome = replacing.run()

    assert (outcome.state, "would not be in the new version" in outcome.reason) == ("blocked", True)


# -- a run that dies


@pytest.mark.parametrize("step", [*STEPS, "before_commit", "after_commit"])
def test_wherever_the_process_dies_the_run_goes_on_in_its_version(replacing: World, step: str) -> None:
    replacing.run()
    shown = dict(replacing.sink.contents)
    change(replacing)
    run_id = replacing.new_run()
    with pytest.raises(Crash):
        execute(replacing.job(run_id, crash_at(step, 1)))
    assert replacing.sink.contents in (shown, replacing.source.rows)

    if step != "after_finish":
        assert execute(replacing.job(run_id)).state == "succeeded"

    assert replacing.sink.contents == replacing.source.rows
    assert (sink_of(replacing).begun, sink_of(replacing).drafts) == (2, {})
    assert replacing.run().counts["upserts"] == 0


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize(
    ("step", "occurrence"), [("after_start_delivery", 1), ("after_write", 3), ("after_ack", 1), ("before_commit", 1), ("after_commit", 1)]
)
def test_what_a_run_that_ended_left_is_dropped_unless_it_was_switched_to(replacing: World, step: str, occurrence: int, tells: bool) -> None:
    replacing.run()
    sink_of(replacing).tells = tells
    change(replacing)
    crashed_run(replacing, step, occurrence)
    replacing.sink.calls.clear()

    after = replacing.run()

    is_known = step == "after_commit" and tells
    assert (after.state, after.counts["unchanged"] if is_known else after.counts["upserts"]) == ("succeeded", 100)
    assert (replacing.sink.contents, sink_of(replacing).drafts) == (replacing.source.rows, {})
    assert replacing.run().counts["upserts"] == 0


def test_a_switch_in_doubt_is_not_believed_when_the_result_is_as_before(replacing: World) -> None:
    replacing.run()
    before = dict(replacing.source.rows)
    change(replacing)
    sink_of(replacing).tells = False
    crashed_run(replacing, "after_commit")
    replacing.source.rows = before

    assert replacing.run().counts["upserts"] == 100
    assert replacing.sink.contents == before


@pytest.mark.parametrize("lost", ["lose_commits", "drop_commits"])
@pytest.mark.parametrize("tells", [True, False])
def test_a_switch_that_nobody_answered_is_looked_up_before_it_is_repeated(replacing: World, lost: str, tells: bool) -> None:
    setattr(replacing.sink, lost, 1)
    sink_of(replacing).tells = tells
    run_id = replacing.new_run()
    with pytest.raises(RetryableError):
        execute(replacing.job(run_id))

    assert execute(replacing.job(run_id)).state == "succeeded"
    assert (replacing.sink.contents, sink_of(replacing).begun, len(sink_of(replacing).committed)) == (replacing.source.rows, 1, 1)
    assert replacing.run().counts["upserts"] == 0


def test_a_run_that_ended_after_a_switch_that_nobody_answered_is_folded(replacing: World) -> None:
    sink_of(replacing).lose_commits = 1

    replacing.failed_run()

    assert (entries(replacing), replacing.run().counts["unchanged"]) == (100, 100)


def test_a_destination_that_is_away_at_the_end_is_asked_by_the_next_run(replacing: World) -> None:
    sink = sink_of(replacing)
    sink.lose_commits = 1
    job = replacing.job(replacing.new_run())
    with pytest.raises(RetryableError) as caught:
        execute(job)
    sink.fail_inspect = RetryableError("away", next_step="wait")
    conclude(job, caught.value)
    sink.fail_inspect = None

    assert replacing.run().counts["unchanged"] == 100


def test_a_version_that_somebody_dropped_ends_the_run_and_the_next_one_begins_anew(replacing: World) -> None:
    run_id = replacing.new_run()
    with pytest.raises(Crash):
        execute(replacing.job(run_id, crash_at("after_write", 2)))
    sink_of(replacing).drafts.clear()
    job = replacing.job(run_id)
    with pytest.raises(FatalError, match="was dropped") as caught:
        execute(job)
    conclude(job, caught.value)

    assert replacing.run().counts["accepted"] == 100
    assert replacing.sink.contents == replacing.source.rows


def test_versions_that_nobody_knows_of_are_dropped_before_the_next_one_begins(replacing: World) -> None:
    sink_of(replacing).drafts[b"forgotten"] = {1: "x"}

    replacing.run()

    assert sink_of(replacing).drafts == {}


def test_a_rejection_is_listed_though_its_version_is_dropped(replacing: World) -> None:
    replacing.sink.verdict = lambda chunk: WriteResult(
        accepted_rows=chunk.rows - 1, rejections=(Rejection(row=0, code="unknown_user", message="no"),)
    )

    replacing.failed_run()

    assert replacing.scalar("SELECT count(*) FROM wsync.rejection WHERE sync_id = %s", replacing.sync_id) == len(replacing.sink.calls)
