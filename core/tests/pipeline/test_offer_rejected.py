"""What was rejected is offered again when a person says that it is mended, not when its backoff says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.pipeline.run import execute

from .ledger import Ledger
from .world import Crash, World, crash_at


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


def reject(world: World, *keys: int) -> None:
    world.sink.refuse = frozenset(keys)
    assert world.run().counts["rejected"] == len(keys)
    world.sink.refuse = frozenset()


def test_rows_that_were_rejected_are_offered_again_at_once_and_nothing_else_is(world: World) -> None:
    reject(world, 3, 4)
    world.sink.calls.clear()

    outcome = execute(world.job(world.new_run(offer_rejected=True)))

    assert (outcome.state, outcome.counts["upserts"], outcome.counts["held_back"]) == ("succeeded", 2, 0)
    assert sorted(key for _, keys in world.sink.calls for key in keys) == [3, 4]
    assert world.sink.contents == world.source.rows


def test_a_delete_that_was_rejected_is_offered_again_at_once(world: World) -> None:
    world.run()
    del world.source.rows[7]
    reject(world, 7)
    assert world.run().counts["held_deletes"] == 1

    outcome = execute(world.job(world.new_run(offer_rejected=True)))

    assert (outcome.counts["deletes"], outcome.counts["accepted"], 7 in world.sink.contents) == (1, 1, False)


def test_an_incremental_read_offers_rejected_rows_that_it_does_not_read_again(ledger: Ledger) -> None:
    ledger.put(*range(30))
    reject(ledger, 3, 4)
    ledger.put(40)

    outcome = execute(ledger.job(ledger.new_run(offer_rejected=True)))

    assert (outcome.state, outcome.counts["read"], outcome.counts["carried"], outcome.counts["accepted"]) == ("succeeded", 2, 2, 3)
    assert ledger.sink.contents == ledger.names()


def test_what_is_refused_once_more_waits_again(world: World) -> None:
    reject(world, 3)
    world.sink.refuse = frozenset({3})
    assert execute(world.job(world.new_run(offer_rejected=True))).counts["rejected"] == 1

    assert world.run().counts["held_back"] == 1


def test_the_wish_survives_the_death_of_the_process_that_compares(world: World) -> None:
    reject(world, 3)
    run_id = world.new_run(offer_rejected=True)
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("diff", 1)))

    assert execute(world.job(run_id)).counts["accepted"] == 1
