"""What is kept of a key goes, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from wsync_engine.model.ids import TenantId
from wsync_engine.pipeline.run import execute
from wsync_engine.services.key_purge import PurgedKeys, purge_keys
from wsync_sdk import ConfigError

from .ledger import Ledger
from .test_key_resync import ask_for, sent
from .test_replay import replay
from .world import Crash, World, crash_at


class OneKey:
    """A keyring of the world's own key."""

    def __init__(self, world: World) -> None:
        self._world = world

    def tenant(self, tenant_id: object) -> Any:
        return self._world.cipher


def forget(world: World, *typed: str) -> PurgedKeys:
    keyring: Any = OneKey(world)
    ids = (world.engine, TenantId(world.tenant_id), "people")
    return purge_keys(*ids, typed, storage=world.storage, keyring=keyring, actor="ann")


def kept(world: World, key: int) -> list[str]:
    """The files that have a row of the key."""
    return [path.name for path in world.storage.root.rglob("*.parquet") if key in pq.read_table(path).column("id").to_pylist()]


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


def test_no_file_has_the_key_any_more_and_all_others_are_kept(world: World) -> None:
    run_id = world.new_run()
    execute(world.job(run_id))
    assert len(kept(world, 31)) == 2

    done = forget(world, "31", "32")

    assert (done.entries, done.changes) == (2, 2)
    assert (kept(world, 31), kept(world, 32), len(kept(world, 30))) == ([], [], 2)
    assert forget(world, "31") == PurgedKeys(entries=0, carried_rows=0, changes=0, rejections=0)
    world.sink.calls.clear()
    assert (world.run().counts["upserts"], sent(world)) == (2, [31, 32])
    assert replay(world, run_id).counts["upserts"] == 98


def test_who_left_the_result_is_not_deleted_at_the_destination_afterwards(world: World) -> None:
    world.run()
    forget(world, "31")
    del world.source.rows[31]

    assert (world.run().counts["deletes"], 31 in world.sink.contents) == (0, True)


def test_rejections_and_rows_that_wait_to_be_offered_again_go_with_it_and_the_cursor_stays(ledger: Ledger) -> None:
    ledger.put(*range(30))
    ledger.sink.refuse = frozenset({3, 4})
    ledger.run()
    assert ledger.scalar("SELECT count(*) FROM wsync.rejection") == 2

    done = forget(ledger, "3")

    assert (done.entries, done.carried_rows, done.changes, done.rejections) == (1, 1, 1, 1)
    ledger.sink.refuse = frozenset()
    ledger.end_backoff()
    outcome = ledger.run()
    assert (outcome.counts["read"], outcome.counts["carried"], outcome.counts["accepted"], 3 in ledger.sink.contents) == (1, 1, 1, False)


def test_a_key_that_waits_to_be_offered_again_waits_no_longer_and_others_do(world: World) -> None:
    world.run()
    ask_for(world, 3, 4)

    forget(world, "3")

    world.source.rows.pop(3)
    world.sink.calls.clear()
    world.run()
    assert sent(world) == [4]


def test_the_event_says_who_and_how_many_and_no_key(world: World) -> None:
    world.run()
    forget(world, "31")

    detail = world.scalar("SELECT detail::text FROM wsync.run_event WHERE kind = 'sync.keys_purged'")
    assert (json.loads(detail)["actor"], json.loads(detail)["keys"], set(json.loads(detail))) == (
        "ann",
        1,
        {"actor", "keys", "sync", "sync_id"},
    )


def test_a_purge_that_died_between_its_steps_is_finished_by_the_next_one(world: World) -> None:
    world.run()
    (log,) = world.storage.root.rglob("log/*.parquet")
    whole = log.read_bytes()
    forget(world, "31")
    log.write_bytes(whole)  # as if it had died before it came to the logs

    assert forget(world, "31").changes == 1
    assert kept(world, 31) == []


def test_a_run_that_is_open_or_not_folded_stops_it(world: World) -> None:
    world.run()
    world.source.rows[1] = "other"
    run_id = world.new_run()
    with pytest.raises(Crash):
        execute(world.job(run_id, crash_at("after_ack", 1)))
    with pytest.raises(ConfigError, match=f"run {run_id} of the sync is open"):
        forget(world, "31")
    world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", (run_id,))

    with pytest.raises(ConfigError, match=f"what run {run_id} sent is not in the snapshot yet"):
        forget(world, "31")

    world.run()
    assert forget(world, "31").entries == 1


def test_what_is_no_key_is_refused_and_nothing_is_removed(world: World) -> None:
    world.run()

    with pytest.raises(ConfigError, match="no BIGINT"):
        forget(world, "31", "thirty-two")

    assert len(kept(world, 31)) == 2
