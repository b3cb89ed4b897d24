"""Reading by a cursor: it moves when every change is settled, in the transaction of the snapshot, and nothing that was not read is taken as gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from wsync_engine.model.sync import Cursor, FromRun, MappingEntry, Read
from wsync_engine.pipeline.context import Cancelled
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_sdk import FatalError, RetryableError, WriteResult

from .ledger import Ledger, instant
from .test_beside import beside
from .test_cursor_types import NOW, VALUES
from .test_run import STEPS
from .world import Crash, crash_at


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


# -- what is read


def test_a_run_reads_what_lies_at_the_cursor_or_behind_it_and_the_rest_stays_delivered(ledger: Ledger) -> None:
    ledger.put(*range(30))
    first = ledger.run()
    ledger.put(3, 40)

    second = ledger.run()

    assert (first.state, first.counts["read"], first.counts["accepted"]) == ("succeeded", 30, 30)
    assert (second.state, second.counts["read"], second.counts["upserts"], second.counts["unchanged"]) == ("succeeded", 3, 2, 1)
    assert [asked["cursor"] for asked in ledger.source.asked] == [-(2**63), 30]
    assert ledger.stored() == "32"
    assert ledger.sink.contents == ledger.names()
    assert ledger.scalar("SELECT manifest ->> 'rows' FROM wsync.snapshot") == "31"


def test_a_row_at_the_very_cursor_is_not_lost(ledger: Ledger) -> None:
    ledger.put(1)
    ledger.run()
    ledger.source.entries[2] = ("came late", ledger.at)

    assert ledger.run().counts["upserts"] == 1


def test_a_read_without_rows_is_an_ordinary_one_and_leaves_the_cursor(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.source.entries.clear()

    outcome = ledger.run()

    assert (outcome.state, outcome.counts["read"], ledger.stored()) == ("succeeded", 0, "30")
    assert ledger.run().state == "succeeded"
    assert len(ledger.sink.contents) == 30


def test_an_empty_result_that_is_read_from_the_start_is_still_guarded(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.source.entries.clear()
    ledger.ask_for_resync()

    assert "the result is empty" in ledger.run().reason


def test_rows_that_are_read_again_move_the_cursor_also_where_nothing_is_sent(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    for key in range(5):
        ledger.put(key, name=ledger.source.entries[key][0])

    assert ledger.run().counts["unchanged"] == 6
    assert ledger.stored() == "35"


def test_the_overlap_is_read_again(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", overlap_by=5))
    ledger.put(*range(30))
    ledger.run()
    ledger.source.entries[99] = ("committed late", 26)

    outcome = ledger.run()

    assert (ledger.last_asked(), outcome.counts["upserts"], outcome.counts["unchanged"]) == (25, 1, 6)


def test_a_row_without_a_value_is_delivered_counted_and_moves_nothing(ledger: Ledger) -> None:
    ledger.put(1)
    ledger.source.entries[2] = ("nowhere", None)

    outcome = ledger.run()

    assert (outcome.state, outcome.counts["accepted"], outcome.counts["null_cursors"], ledger.stored()) == ("succeeded", 2, 1, "1")
    assert ledger.run().counts["null_cursors"] == 1


def test_without_any_value_everything_is_read_again(ledger: Ledger) -> None:
    ledger.source.entries[2] = ("nowhere", None)

    assert [ledger.run().counts["read"] for _ in range(2)] == [1, 1]
    assert [asked["cursor"] for asked in ledger.source.asked] == [-(2**63)] * 2


def test_the_first_run_begins_at_the_initial_value(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", initial=20))
    ledger.put(*range(30))

    assert ledger.run().counts["read"] == 11
    assert ledger.last_asked() == 20


# -- the time of the last run


def by_time(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, read=Read.FULL, cursor=None, query="SELECT id, name, seen FROM people WHERE seen >= :last_sync_time")
    ledger.source.type = pa.timestamp("us", tz="UTC")


def test_the_last_run_is_the_one_that_was_settled_and_counts_from_before_its_query(ledger: Ledger) -> None:
    by_time(ledger)
    ledger.source.entries = {1: ("a", instant(1))}
    before = ledger.scalar("SELECT wsync.clock()")

    ledger.run()
    ledger.sink.verdict = lambda chunk: WriteResult(accepted_rows=0, unknown=tuple(range(chunk.rows)))
    ledger.source.entries[2] = ("b", instant(1))
    unsettled = ledger.run()
    ledger.sink.verdict = None
    ledger.run()
    ledger.run()

    first, second, third, fourth = (asked["last_sync_time"] for asked in ledger.source.asked)
    assert first == datetime(1970, 1, 1, tzinfo=UTC)
    assert (unsettled.state, second, fourth > second) == ("partial", third, True)
    began = ledger.scalar("SELECT min(at) FROM wsync.run_event WHERE kind = 'plan.started'")
    assert before <= second <= began


def test_what_a_query_by_the_time_of_the_last_run_does_not_give_is_not_forgotten(ledger: Ledger) -> None:
    by_time(ledger)
    ledger.source.entries = {key: (f"name {key}", instant(1)) for key in range(30)}
    ledger.run()
    ledger.source.entries.clear()

    outcome = ledger.run()

    assert (outcome.state, ledger.scalar("SELECT manifest ->> 'rows' FROM wsync.snapshot")) == ("succeeded", "30")


# -- when the cursor moves


@pytest.mark.parametrize("step", STEPS)
def test_wherever_the_process_dies_the_cursor_moves_with_what_was_delivered(ledger: Ledger, step: str) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(*range(20, 50))
    run_id = ledger.new_run()

    with pytest.raises(Crash):
        execute(ledger.job(run_id, crash_at(step, 1)))
    assert ledger.stored() == ("60" if step == "after_finish" else "30")
    if step != "after_finish":
        assert execute(ledger.job(run_id)).state == "succeeded"

    assert ledger.stored() == "60"
    assert ledger.sink.contents == ledger.names()


@pytest.mark.parametrize(("step", "occurrence"), [("after_start_delivery", 1), ("after_mark_sent", 2), ("after_ack", 2)])
def test_a_run_that_was_cancelled_half_way_leaves_the_cursor_and_the_next_one_makes_up_for_it(
    ledger: Ledger, step: str, occurrence: int
) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(*range(20, 220))
    job = ledger.job(ledger.new_run(), crash_at(step, occurrence))
    with pytest.raises(Crash):
        execute(job)

    conclude(ledger.job(job.books.run_id), Cancelled("cancelled", next_step=""), outcome="cancelled")

    assert ledger.stored() == "30"
    assert ledger.run().state == "succeeded"
    assert ledger.stored() == "230"
    assert ledger.sink.contents == ledger.names()


def test_the_next_run_folds_what_a_killed_one_had_settled_and_goes_on_from_there(ledger: Ledger) -> None:
    ledger.put(*range(30))
    run_id = ledger.new_run()
    with pytest.raises(Crash):
        execute(ledger.job(run_id, crash_at("before_finish", 1)))
    ledger.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now() WHERE run_id = %s", (run_id,))

    ledger.run()

    assert ledger.last_asked() == 30


def test_changes_without_a_verdict_are_read_again(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(*range(5))
    ledger.sink.verdict = lambda chunk: WriteResult(accepted_rows=0, unknown=tuple(range(chunk.rows)))
    unsure = ledger.run()
    ledger.sink.verdict = None

    outcome = ledger.run()

    assert (unsure.state, ledger.last_asked(), outcome.counts["upserts"]) == ("partial", 30, 5)
    assert ledger.sink.contents == ledger.names()


def test_an_unsure_row_that_has_gone_is_not_forgotten(ledger: Ledger) -> None:
    ledger.put(*range(5))
    ledger.sink.verdict = lambda chunk: WriteResult(accepted_rows=0, unknown=tuple(range(chunk.rows)))
    ledger.run()
    ledger.sink.verdict = None
    ledger.put(9)
    ledger.run()
    assert ledger.scalar("SELECT manifest ->> 'rows' FROM wsync.snapshot") == "6"


def test_a_key_that_is_there_twice_keeps_the_cursor_until_one_of_its_rows_has_gone(ledger: Ledger) -> None:
    ledger.put(*range(10))
    ledger.source.extra_rows = [{"id": 3, "name": "another", "seen": 5}]

    refused = ledger.run()
    ledger.source.extra_rows = []
    mended = ledger.run()

    assert (refused.state, refused.counts["refused_duplicates"]) == ("partial", 1)
    assert mended.state == "succeeded"
    assert ledger.sink.contents == ledger.names()


def test_a_cursor_never_goes_back(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", overlap_by=20))
    ledger.put(*range(30))
    ledger.run()
    ledger.source.entries = {1: ("changed without a new position", 15)}

    ledger.run()

    assert ledger.stored() == "30"


def test_a_dry_run_moves_nothing_and_its_approval_does(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(*range(5))
    run_id = ledger.new_run(dry_run=True)

    assert execute(ledger.job(run_id)).state == "blocked"
    assert ledger.stored() == "30"
    ledger.engine.execute("UPDATE wsync.run SET state = 'queued', dry_run = false, approved_by = 'ann' WHERE run_id = %s", (run_id,))

    assert execute(ledger.job(run_id)).state == "succeeded"
    assert ledger.stored() == "35"


def test_a_run_beside_which_another_delivered_reads_from_the_others_cursor(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(*range(5))

    outcome = ledger.run(beside("after_change_log", ledger.run_beside))

    assert [asked["cursor"] for asked in ledger.source.asked] == [-(2**63), 30, 30, 35]
    assert (outcome.state, outcome.counts["read"], ledger.stored()) == ("succeeded", 1, "35")


def test_an_approved_plan_from_before_the_cursor_moved_is_refused(ledger: Ledger) -> None:
    ledger.put(*range(30))
    run_id = ledger.new_run(dry_run=True)
    execute(ledger.job(run_id))
    ledger.run()
    ledger.engine.execute("UPDATE wsync.run SET state = 'queued', dry_run = false, approved_by = 'ann' WHERE run_id = %s", (run_id,))

    with pytest.raises(FatalError, match="stale plan"):
        execute(ledger.job(run_id))


def test_a_holder_that_lost_its_lease_moves_no_cursor(ledger: Ledger) -> None:
    ledger.put(*range(30))
    run_id = ledger.new_run()

    def take_over() -> None:
        assert execute(ledger.job(run_id)).state == "succeeded"
        ledger.engine.execute("UPDATE wsync.snapshot SET cursor = jsonb_set(cursor, '{cursor,value}', '\"31\"')")

    with pytest.raises(Exception, match="no longer ours"):
        execute(ledger.job(run_id, beside("before_finish", take_over)))

    assert ledger.stored() == "31"


# -- when everything is read again


def resync(ledger: Ledger) -> None:
    ledger.ask_for_resync()


def other_query(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, query=f"{ledger.spec.query} AND true")


def other_mapping(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, mapping=(*ledger.spec.mapping, MappingEntry(target="kind", constant="person")))


def other_initial(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", initial=-5))


def a_swap_by_an_older_engine(ledger: Ledger) -> None:
    ledger.engine.execute("UPDATE wsync.snapshot SET version = version + 1")


def another_destination(ledger: Ledger) -> None:
    ledger.move()


@pytest.mark.parametrize("change", [resync, other_query, other_mapping, other_initial, a_swap_by_an_older_engine, another_destination])
def test_what_makes_the_cursor_worthless_has_the_next_run_read_everything(ledger: Ledger, change: Callable[[Ledger], None]) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(40)
    change(ledger)

    outcome = ledger.run()

    assert (outcome.state, outcome.counts["read"], ledger.stored()) == ("succeeded", 31, "31")
    assert ledger.scalar("SELECT count(*) FROM wsync.run_event WHERE kind = 'cursor.forgotten'") == 1
    ledger.run()
    assert ledger.last_asked() == 31


def test_a_resync_offers_everything_and_one_that_died_half_way_goes_on(ledger: Ledger) -> None:
    ledger.put(*range(200))
    ledger.run()
    ledger.sink.calls.clear()
    ledger.ask_for_resync()
    job = ledger.job(ledger.new_run(), crash_at("after_ack", 2))
    with pytest.raises(Crash):
        execute(job)
    conclude(ledger.job(job.books.run_id), Cancelled("cancelled", next_step=""), outcome="cancelled")

    outcome = ledger.run()

    assert (outcome.counts["read"], outcome.counts["unchanged"] + outcome.counts["upserts"]) == (200, 200)
    assert {key for _, keys in ledger.sink.calls for key in keys} == set(range(200))
    assert ledger.run().counts["read"] == 1


def test_adopting_takes_everything_as_delivered_and_the_next_run_goes_on_behind_it(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    ledger.put(3)

    outcome = ledger.adopt()
    following = ledger.run()

    assert (outcome.counts["read"], outcome.counts["accepted"]) == (30, 1)
    assert (ledger.last_asked(), following.counts["upserts"]) == (31, 0)


def test_other_values_of_the_parameters_are_another_result(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.spec = replace(ledger.spec, parameters={"country": "DE", "day": FromRun(name="nominal_at")})
    asked = []
    for parameters in ({"country": "DE", "day": instant(1)}, {"country": "DE", "day": instant(2)}, {"country": "FR", "day": instant(2)}):
        execute(replace(ledger.job(ledger.new_run()), parameters=parameters))
        asked.append(ledger.last_asked())

    assert asked == [-(2**63), 30, -(2**63)]


def test_fields_of_another_type_have_everything_read_again_in_the_same_run(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, mapping=())
    ledger.put(*range(30))
    ledger.run()
    ledger.source.type = pa.int32()

    outcome = ledger.run()

    assert (outcome.state, outcome.counts["read"]) == ("succeeded", 30)
    assert [asked["cursor"] for asked in ledger.source.asked] == [-(2**63), 30, -(2**63)]


def test_fields_that_changed_when_no_plan_is_left_are_read_by_the_next_attempt(ledger: Ledger) -> None:
    ledger.spec = replace(ledger.spec, mapping=())
    ledger.put(*range(30))
    ledger.run()
    ledger.source.type = pa.int32()
    ledger.source.expire_plans = 2
    run_id = ledger.new_run()

    with pytest.raises(RetryableError):
        execute(ledger.job(run_id))

    assert execute(ledger.job(run_id)).counts["read"] == 30


def test_a_full_read_in_between_makes_the_cursor_worthless(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    incremental = ledger.spec
    ledger.spec = replace(ledger.spec, read=Read.FULL, cursor=None, query="SELECT id, name, seen FROM people")
    ledger.put(3)
    assert ledger.run().counts["read"] == 30
    ledger.spec = incremental

    ledger.run()

    assert ledger.last_asked() == -(2**63)


def test_what_a_clock_stored_that_was_ahead_is_not_trusted(ledger: Ledger) -> None:
    by_time(ledger)
    ledger.source.entries = {1: ("a", instant(1))}
    ledger.run()
    later = (NOW + timedelta(days=1)).isoformat()
    ledger.engine.execute("UPDATE wsync.snapshot SET cursor = cursor || jsonb_build_object('last_sync_at', %s::text)", (later,))

    ledger.run()

    assert ledger.source.asked[-1]["last_sync_time"] == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_clock_that_was_ahead_by_less_than_the_overlap_costs_nothing(ledger: Ledger) -> None:
    ledger.source.type = VALUES["timestamptz"][0]
    ledger.source.entries = {1: ("a", instant(1))}
    ledger.run()
    later = NOW + timedelta(minutes=9)
    ledger.engine.execute(
        "UPDATE wsync.snapshot SET cursor = jsonb_set(cursor, '{cursor,value}', to_jsonb(%s::text))", (later.isoformat(),)
    )

    ledger.run()

    assert ledger.last_asked() == later - timedelta(minutes=10)


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
def test_a_cursor_in_the_future_is_not_trusted(ledger: Ledger, kind: str) -> None:
    ledger.source.type, values, lowest, _ = VALUES[kind]
    ledger.source.entries = {1: ("a", values[0])}
    ledger.run()
    later = values[0].replace(year=NOW.year + 1).isoformat()
    ledger.engine.execute("UPDATE wsync.snapshot SET cursor = jsonb_set(cursor, '{cursor,value}', to_jsonb(%s::text))", (later,))

    ledger.run()

    assert ledger.last_asked() == lowest
