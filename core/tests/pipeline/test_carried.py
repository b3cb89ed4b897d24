"""Rejected rows of an incremental read: nobody reads them again, so they are kept, and offered again when their time has come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import MappingEntry, Mode, Read
from wsync_engine.pipeline.context import Cancelled
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_engine.secrets.keyring import Keyring
from wsync_sdk import ConfigError, WriteResult

from .ledger import Ledger
from .world import Crash, crash_at

FOLD_STEPS = ["before_finish", "fold", "after_finish"]


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


def reject_some(ledger: Ledger) -> None:
    """30 rows, of which 3 and 4 are refused."""
    ledger.put(*range(30))
    ledger.sink.refuse = frozenset({3, 4})
    assert ledger.run().counts["rejected"] == 2
    ledger.sink.refuse = frozenset()


def test_a_rejection_does_not_hold_the_cursor_and_is_offered_again_after_its_backoff(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.put(40)
    waiting = ledger.run()
    ledger.end_backoff()

    offered = ledger.run()

    assert (waiting.state, waiting.counts["read"], waiting.counts["carried"], waiting.counts["held_back"]) == ("partial", 2, 2, 2)
    assert (offered.state, offered.counts["read"], offered.counts["carried"], offered.counts["accepted"]) == ("succeeded", 1, 2, 2)
    assert ledger.sink.contents == ledger.names()
    assert ledger.carried_files() == []
    assert ledger.run().counts["carried"] == 0


def test_a_row_that_is_refused_again_waits_longer_and_is_not_lost(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.sink.refuse = frozenset({3})
    ledger.end_backoff()
    assert ledger.run().counts["rejected"] == 1
    ledger.sink.refuse = frozenset()
    assert ledger.run().counts["held_back"] == 1
    ledger.end_backoff()

    ledger.run()

    assert ledger.sink.contents == ledger.names()


def test_the_row_as_it_is_now_takes_the_place_of_the_one_that_was_kept(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.put(3, name="mended")

    outcome = ledger.run()

    assert (outcome.counts["carried"], outcome.counts["accepted"], ledger.sink.contents[3]) == (1, 1, "mended")
    ledger.end_backoff()
    ledger.run()
    assert ledger.sink.contents == ledger.names()


def test_a_row_that_the_mapping_refuses_now_is_not_offered_as_it_was(ledger: Ledger) -> None:
    ledger.spec = replace(
        ledger.spec, mapping=(MappingEntry(target="id", column="id"), MappingEntry(target="name", column="name", required=True))
    )
    reject_some(ledger)
    ledger.source.entries[3] = (None, 99)  # type: ignore[assignment]
    assert ledger.run().counts["refused"] == 1
    ledger.end_backoff()

    ledger.run()

    assert 3 not in ledger.sink.contents
    assert 4 in ledger.sink.contents


def test_a_kept_row_that_got_no_verdict_is_offered_again(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.end_backoff()
    ledger.sink.verdict = lambda chunk: WriteResult(accepted_rows=0, unknown=tuple(range(chunk.rows)))
    assert ledger.run().counts["unsure"] == 2
    ledger.sink.verdict = None

    assert ledger.run().counts["accepted"] == 2
    assert ledger.sink.contents == ledger.names()


def test_a_kept_row_that_was_not_sent_is_offered_again(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.end_backoff()
    job = ledger.job(ledger.new_run(), crash_at("before_mark_sent", 1))
    with pytest.raises(Crash):
        execute(job)
    conclude(ledger.job(job.books.run_id), Cancelled("cancelled", next_step=""), outcome="cancelled")

    assert ledger.run().counts["accepted"] == 2
    assert ledger.sink.contents == ledger.names()


@pytest.mark.parametrize("step", FOLD_STEPS)
def test_wherever_the_fold_dies_what_is_kept_is_kept_once(ledger: Ledger, step: str) -> None:
    ledger.put(*range(30))
    ledger.sink.refuse = frozenset({3, 4})
    run_id = ledger.new_run()
    with pytest.raises(Crash):
        execute(ledger.job(run_id, crash_at(step, 1)))
    if step != "after_finish":
        execute(ledger.job(run_id))
    assert len(ledger.carried_files()) == 1
    ledger.sink.refuse = frozenset()
    ledger.end_backoff()

    assert ledger.run().counts["accepted"] == 2
    assert ledger.sink.contents == ledger.names()
    assert ledger.carried_files() == []


def test_rows_that_were_rejected_by_full_reads_are_kept_from_the_first_incremental_one(ledger: Ledger) -> None:
    incremental = ledger.spec
    ledger.spec = replace(ledger.spec, read=Read.FULL, cursor=None, query="SELECT id, name, seen FROM people", mode=Mode.MIRROR)
    reject_some(ledger)
    ledger.spec = incremental
    first = ledger.run()
    assert (first.counts["read"], first.counts["upserts"], first.counts["held_back"]) == (30, 0, 2)
    ledger.end_backoff()

    assert ledger.run().counts["accepted"] == 2
    assert ledger.sink.contents == ledger.names()


def test_a_full_read_keeps_no_rows(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.spec = replace(ledger.spec, read=Read.FULL, cursor=None, query="SELECT id, name, seen FROM people")
    ledger.put(9)

    outcome = ledger.run()

    assert (outcome.counts["carried"], outcome.counts["held_back"], ledger.carried_files()) == (0, 2, [])


def test_a_resync_offers_kept_rows_as_they_are_at_the_source(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.source.entries[3] = ("changed in silence", 1)
    ledger.ask_for_resync()

    assert ledger.run().state == "succeeded"
    assert ledger.sink.contents == ledger.names()
    assert ledger.carried_files() == []


def test_kept_rows_are_encrypted(ledger: Ledger) -> None:
    reject_some(ledger)

    (file,) = ledger.carried_files()

    assert b"name 3" not in file.read_bytes()
    ledger.cipher = Keyring.throwaway().tenant(ledger.tenant_id)
    assert isinstance(ledger.failed_run(), ConfigError)


@pytest.mark.parametrize("bytes_left", [None, 0, 30, -1])
def test_a_file_of_kept_rows_that_is_not_whole_blocks_the_sync_until_a_resync(ledger: Ledger, bytes_left: int | None) -> None:
    reject_some(ledger)
    (file,) = ledger.carried_files()
    whole = file.read_bytes()
    if bytes_left is None:
        file.unlink()
    else:
        file.write_bytes(whole[:bytes_left])

    assert "snapshot_lost" in ledger.failed_run().message
    ledger.ask_for_resync()

    assert ledger.run().state == "succeeded"
    assert ledger.sink.contents == ledger.names()


def test_kept_rows_are_found_when_the_snapshot_is_cut_into_more_partitions(ledger: Ledger) -> None:
    reject_some(ledger)
    ledger.end_backoff()
    ledger.source.estimated_rows = 10_000_000  # four partitions, where there was one

    outcome = ledger.run()

    assert (outcome.counts["carried"], outcome.counts["accepted"]) == (2, 2)
    assert ledger.sink.contents == ledger.names()
    assert ledger.run().counts["carried"] == 0
