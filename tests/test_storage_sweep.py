"""The sweep of the storage frees what nobody needs, and nothing else: whatever died before it tidied up, the next run finds all it compares with."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from wsync_engine.model.ids import ids_from, uuid7
from wsync_engine.services.storage import claim_storage
from wsync_engine.services.storage_sweep import Swept, keep_swept, sweep_storage

from .one_sync import Crash
from .test_postgres_to_postgres import ROWS, World

DAY_S = 86_400


class SweptWorld(World):
    """With the address under which the sweep connects."""

    engine_url: str


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path) -> Iterator[SweptWorld]:
    made = SweptWorld(database, servers.endpoints.admin_url, tmp_path)
    claim_storage(made.engine, tmp_path.as_uri())
    made.engine_url = database.engine_url
    yield made
    made.close()


def sweep(world: SweptWorld, *, keep_days: int = 0) -> Swept | None:
    with psycopg.connect(world.engine_url, autocommit=True) as conn:
        return sweep_storage(conn, world.storage.root.as_uri(), keep_days=keep_days)


def files_of(world: SweptWorld, run_id: UUID) -> set[str]:
    folder = world.storage.root / world.storage.tenant_id / "runs" / str(run_id)
    return {entry.name for entry in folder.glob("*")}


def snapshot_files(world: SweptWorld) -> set[str]:
    return {path.name for path in (world.storage.root / world.storage.tenant_id / "snapshots").rglob("*.parquet")}


def age(world: SweptWorld, *, days: int) -> None:
    """As if all files lay there for so long."""
    at_s = time.time() - days * DAY_S
    for path in world.storage.root.rglob("*"):
        os.utime(path, (at_s, at_s))


def die(world: SweptWorld, at: str) -> UUID:
    """A run whose process dies at a step."""
    run_id = world.new_run()

    def faults(step: str) -> None:
        if step == at:
            raise Crash

    with pytest.raises(Crash):
        world.attempt(run_id, faults)
    return run_id


def assert_nothing_is_sent_again(world: SweptWorld) -> None:
    counts = world.attempt(world.new_run()).counts
    assert (counts["unchanged"], counts["upserts"], counts["deletes"]) == (ROWS, 0, 0)


def test_a_change_log_stays_for_its_days_and_goes_then_and_the_snapshot_stays(world: SweptWorld) -> None:
    run_id = world.new_run()
    world.attempt(run_id)
    age(world, days=400)

    assert sweep(world, keep_days=7) == Swept()
    assert files_of(world, run_id) == {"log"}
    assert sweep(world) == Swept(runs=1)

    assert files_of(world, run_id) == set()
    assert_nothing_is_sent_again(world)


def test_what_a_run_left_that_died_after_its_end_goes_and_its_log_stays(world: SweptWorld) -> None:
    run_id = die(world, "after_finish")
    assert files_of(world, run_id) > {"log"}

    assert sweep(world, keep_days=7) == Swept(leftovers=1)

    assert files_of(world, run_id) == {"log"}
    assert_nothing_is_sent_again(world)


@pytest.mark.parametrize("at", ["extract", "diff", "after_change_log", "after_mark_sent", "after_ack", "fold", "before_finish"])
def test_nothing_of_a_run_that_goes_on_is_touched(world: SweptWorld, at: str) -> None:
    run_id = die(world, at)
    before, snapshots = files_of(world, run_id), snapshot_files(world)
    age(world, days=400)

    assert sweep(world) == Swept()
    assert (files_of(world, run_id), snapshot_files(world)) == (before, snapshots)

    world.attempt(run_id)
    assert world.differences() == 0
    assert_nothing_is_sent_again(world)


def test_an_ended_run_keeps_everything_until_its_acks_are_in_the_snapshot(world: SweptWorld) -> None:
    run_id = die(world, "after_ack")
    world.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now() - interval '9 days' WHERE run_id = %s", (run_id,))
    age(world, days=9)

    assert sweep(world) == Swept()
    world.attempt(world.new_run())  # folds it

    assert sweep(world) == Swept(runs=2)
    assert world.differences() == 0
    assert_nothing_is_sent_again(world)


def test_snapshot_files_that_never_counted_go_after_days_and_those_that_count_stay(world: SweptWorld) -> None:
    run_id = die(world, "fold")
    strays = snapshot_files(world)
    assert strays
    world.attempt(run_id)
    named = snapshot_files(world)
    for stray in strays:  # as if its holder had not been able to tidy up
        (world.storage.snapshot_folder(str(world.sync_id)) / stray).write_bytes(b"")

    assert sweep(world, keep_days=7) == Swept()
    age(world, days=3)
    assert sweep(world, keep_days=7) == Swept(snapshot_files=len(strays - named))

    assert snapshot_files(world) == named - strays
    assert_nothing_is_sent_again(world)


def test_a_run_that_waits_for_a_decision_keeps_its_log(world: SweptWorld) -> None:
    run_id = world.new_run()
    world.attempt(run_id)
    blocked = world.new_run()
    world.admin.execute("DELETE FROM customer WHERE id > 10")
    assert world.attempt(blocked).state == "blocked"
    age(world, days=9)

    assert sweep(world) == Swept(runs=1)

    assert "log" in files_of(world, blocked)
    world.engine.execute("UPDATE wsync.run SET approved_by = 'ann', approved_at = now() WHERE run_id = %s", (blocked,))
    assert world.attempt(blocked).state == "succeeded"
    assert world.differences() == 0


def test_files_of_runs_that_the_state_store_does_not_know_stay_and_so_does_what_is_not_ours(world: SweptWorld) -> None:
    world.attempt(world.new_run())
    with ids_from(lambda: round(1_000 * (time.time() - 400 * DAY_S)), os.urandom):
        unknown = uuid7()
    runs, snapshots = world.storage.root / world.storage.tenant_id / "runs", world.storage.snapshot_folder(str(world.sync_id))
    for name in (str(unknown), "lost+found"):
        (runs / name / "log").mkdir(parents=True)
    (world.storage.root / "lost+found").mkdir()
    kept = [snapshots / "what-somebody-copied-in-a-hurry.parquet", snapshots / f"{unknown}-{uuid7()}.parquet"]
    for path in kept:
        path.touch()
    age(world, days=400)

    assert sweep(world) == Swept(runs=1)

    assert {entry.name for entry in runs.iterdir()} == {str(unknown), "lost+found"}
    assert (world.storage.root / "lost+found").is_dir()
    assert [path.is_file() for path in kept] == [True, True]


def test_a_run_is_known_to_its_own_tenant_only(world: SweptWorld) -> None:
    run_id, tenant_id = world.new_run(), uuid7()
    world.attempt(run_id)
    world.engine.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, 'other')", (tenant_id,))
    other = world.storage.root / str(tenant_id) / "runs" / str(run_id) / "log"
    other.mkdir(parents=True)

    assert sweep(world) == Swept(runs=1)

    assert other.is_dir()
    assert files_of(world, run_id) == set()


def test_what_another_installation_keeps_in_the_same_folder_stays(world: SweptWorld) -> None:
    with ids_from(lambda: round(1_000 * (time.time() - 3 * DAY_S)), os.urandom):
        theirs, run_id = world.storage.root / str(uuid7()), uuid7()
    kept = [theirs / "runs" / str(run_id) / "log" / "changes.parquet", theirs / "snapshots" / str(uuid7()) / f"{run_id}-{uuid7()}.parquet"]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    age(world, days=9)

    assert sweep(world) == Swept()

    assert [path.is_file() for path in kept] == [True, True]


def test_one_process_sweeps_at_a_time_and_only_the_installations_storage(world: SweptWorld, tmp_path: Path) -> None:
    world.attempt(world.new_run())
    with psycopg.connect(world.engine_url, autocommit=True) as first:
        assert sweep_storage(first, world.storage.root.as_uri(), keep_days=7) == Swept()
        assert sweep(world) is None
    assert sweep_storage(world.engine, (tmp_path / "other").as_uri(), keep_days=0) is None


def test_a_worker_sweeps_in_rounds_until_it_is_told_to_stop(world: SweptWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsync_engine.services.storage_sweep.ROUND_S", 0.05)
    run_id, stop = world.new_run(), threading.Event()
    world.attempt(run_id)
    troubles: list[Exception] = [psycopg.OperationalError("away"), OSError("away")]

    def connect() -> psycopg.Connection[Any]:
        if troubles:
            raise troubles.pop()
        return psycopg.connect(world.engine_url, autocommit=True)

    thread = threading.Thread(target=keep_swept, args=(connect, world.storage.root.as_uri()), kwargs={"keep_days": 0, "stop": stop})
    thread.start()
    until_s = time.monotonic() + 30
    while files_of(world, run_id) and time.monotonic() < until_s:
        stop.wait(0.05)
    stop.set()
    thread.join(10)

    assert files_of(world, run_id) == set()
    assert not thread.is_alive()
