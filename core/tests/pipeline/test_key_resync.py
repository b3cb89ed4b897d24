"""A resync of some keys: just these are offered again, whatever happens to the run that does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.context import Cancelled
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_engine.pipeline.shape import KeyColumn
from wsync_engine.pipeline.subscriber_keys import parsed_keys
from wsync_engine.pipeline.unsure_keys import KeyRequest, open_requests, sealed_requests
from wsync_sdk import ConfigError

from .ledger import Ledger
from .world import Crash, World, change, crash_at


def ask_for(world: World, *keys: int) -> None:
    """As the service does."""
    number, stored = world.engine.execute("SELECT key_resync + 1, unsure_keys FROM wsync.sync").fetchone()  # type: ignore[misc]
    request = KeyRequest(number=number, columns=("id",), keys=tuple((str(key),) for key in keys))
    sealed = sealed_requests([*open_requests(stored, world.cipher, done=0), request], world.cipher)
    world.engine.execute("UPDATE wsync.sync SET key_resync = %s, unsure_keys = %s", (number, sealed))


def sent(world: World) -> list[int]:
    keys = sorted(key for _, keys in world.sink.calls for key in keys)
    world.sink.calls.clear()
    return keys


@pytest.fixture
def delivered(world: World) -> World:
    world.run()
    world.sink.calls.clear()
    return world


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


def test_only_the_keys_that_were_asked_for_are_offered_again_and_once(delivered: World) -> None:
    ask_for(delivered, 3, 4)

    assert delivered.run().state == "succeeded"

    assert sent(delivered) == [3, 4]
    assert delivered.scalar("SELECT unsure_keys IS NULL FROM wsync.sync") is True
    assert (delivered.run().counts["upserts"], sent(delivered)) == (0, [])


def test_one_of_them_that_left_the_result_is_deleted_in_mirror_and_forgotten_in_upsert(delivered: World) -> None:
    del delivered.source.rows[3]
    ask_for(delivered, 3)
    assert delivered.run().counts["deletes"] == 1
    delivered.spec = replace(delivered.spec, mode=Mode.UPSERT)
    del delivered.source.rows[4]
    ask_for(delivered, 4)

    outcome = delivered.run()

    assert (outcome.counts["upserts"], outcome.counts["deletes"], 4 in delivered.sink.contents) == (0, 0, True)
    assert delivered.scalar("SELECT manifest ->> 'key_resync' FROM wsync.snapshot") == "2"
    delivered.source.rows[4] = "name 4"
    assert delivered.run().counts["upserts"] == 1


def test_what_was_rejected_before_is_offered_again_with_it(world: World) -> None:
    world.run()
    world.source.rows[3] = "poison"
    world.sink.refuse = frozenset({3})
    assert world.run().counts["rejected"] == 1
    world.sink.refuse = frozenset()
    ask_for(world, 3)

    assert world.run().counts["accepted"] == 1
    assert world.sink.contents == world.source.rows


def test_a_request_during_a_run_is_done_by_the_next_one(delivered: World) -> None:
    change(delivered)
    run_id = delivered.new_run()
    with pytest.raises(Crash):
        execute(delivered.job(run_id, crash_at("after_mark_sent", 1)))
    ask_for(delivered, 50)
    execute(delivered.job(run_id))
    delivered.sink.calls.clear()

    delivered.run()

    assert sent(delivered) == [50]


@pytest.mark.parametrize(
    "step", ["extract", "diff", "after_change_log", "after_start_delivery", "before_mark_sent", "fold", "before_finish"]
)
def test_a_run_that_dies_anywhere_offers_them_all_the_same(delivered: World, step: str) -> None:
    ask_for(delivered, 3, 4)
    run_id = delivered.new_run()
    with pytest.raises(Crash):
        execute(delivered.job(run_id, crash_at(step, 1)))

    execute(delivered.job(run_id))

    assert set(sent(delivered)) == {3, 4}
    assert delivered.run().counts["upserts"] == 0


@pytest.mark.parametrize("step", ["after_start_delivery", "before_mark_sent", "after_mark_sent"])
def test_a_run_that_is_cancelled_before_it_sent_them_leaves_them_to_the_next_one(delivered: World, step: str) -> None:
    ask_for(delivered, 3, 4)
    job = delivered.job(delivered.new_run(), crash_at(step, 1))
    with pytest.raises(Crash):
        execute(job)
    conclude(delivered.job(job.books.run_id), Cancelled("cancelled", next_step=""), outcome="cancelled")

    delivered.run()

    assert set(sent(delivered)) == {3, 4}


def test_a_second_request_before_the_first_was_done_adds_to_it(delivered: World) -> None:
    ask_for(delivered, 3)
    ask_for(delivered, 4)

    delivered.run()

    assert sent(delivered) == [3, 4]


def test_an_incremental_sync_reads_them_again(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    sent(ledger)
    ask_for(ledger, 3, 4)

    outcome = ledger.run()

    assert (outcome.counts["read"], sent(ledger)) == (30, [3, 4])
    ledger.put(50)
    assert ledger.run().counts["read"] == 2


def test_a_plan_that_was_made_before_the_request_is_not_gone_on_with(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.run()
    sent(ledger)
    ledger.put(40)
    ledger.source.is_durable = True
    run_id = ledger.new_run()
    with pytest.raises(Crash):
        execute(ledger.job(run_id, crash_at("extract", 1)))
    ask_for(ledger, 3)

    execute(ledger.job(run_id))

    assert sent(ledger) == [3, 40]


def test_a_snapshot_in_more_partitions_knows_them(delivered: World) -> None:
    delivered.rows_per_partition = 30
    ask_for(delivered, *range(10, 20))

    delivered.run()

    assert sent(delivered) == list(range(10, 20))


def test_the_keys_are_in_no_readable_form_in_the_state_store(delivered: World) -> None:
    ask_for(delivered, 31415926)
    delivered.run()

    for query in ("SELECT unsure_keys::text FROM wsync.sync", "SELECT string_agg(to_jsonb(r)::text, '') FROM wsync.run r"):
        assert "31415926" not in str(delivered.scalar(query))


@pytest.mark.parametrize(
    ("typed", "columns", "keys"),
    [
        (["7", "007", "7"], [("id", "BIGINT")], [("7",)]),
        (["a=1,b=2"], [("id", "VARCHAR")], [("a=1,b=2",)]),
        (["a=x,y,b=2", "b=3,a=z"], [("a", "VARCHAR"), ("b", "INTEGER")], [("x,y", "2"), ("z", "3")]),
    ],
)
def test_keys_are_read_as_their_columns_types(typed: list[str], columns: list[tuple[str, str]], keys: list[tuple[str, ...]]) -> None:
    assert parsed_keys(typed, [KeyColumn(name=name, type=kind) for name, kind in columns]) == keys


@pytest.mark.parametrize(
    ("typed", "message"), [("x", "`a`"), ("a=1", "2 columns"), ("a=1,b=2,a=3", "2 columns"), ("0,a=1,b=2", "2 columns")]
)
def test_what_is_no_key_is_refused_without_showing_it(typed: str, message: str) -> None:
    columns = [KeyColumn(name="a", type="BIGINT"), KeyColumn(name="b", type="BIGINT")][: 1 if typed == "x" else 2]

    with pytest.raises(ConfigError, match=message):
        parsed_keys([typed], columns)
