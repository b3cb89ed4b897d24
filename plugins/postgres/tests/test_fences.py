"""Who may write: deliveries, epochs, and runs that continue what a database has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from wsync_postgres.sink import PostgresSink
from wsync_sdk import ConfigError, RunRef, StateError

from .chunks import RUN, TARGET, chunk, people, wait_for_waiting
from .conftest import Database


@pytest.mark.parametrize(("delivery", "epoch"), [(1, 9), (2, 2)])
def test_a_writer_with_a_lower_delivery_or_epoch_is_fenced_off(sink: PostgresSink, database: Database, delivery: int, epoch: int) -> None:
    newer = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2)
    older = RunRef(tenant_id="acme", sync_id="people", run_id=f"run-{delivery}", delivery=delivery)
    token = sink.begin(newer, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}], run=newer, epoch=3), token)

    with pytest.raises(StateError):
        sink.write(chunk([{"id": 2, "name": "late"}], first=1, run=older, epoch=epoch), token)

    assert people(database) == [(1, "a")]


def test_begin_fences_off_every_earlier_delivery(sink: PostgresSink) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    newer = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2)

    sink.begin(newer, TARGET)

    with pytest.raises(StateError):
        sink.write(chunk([{"id": 2, "name": "late"}], first=1, partition=5), token)
    with pytest.raises(StateError):
        sink.begin(RUN, TARGET)


@pytest.mark.parametrize("lost", ["everything", "the bookkeeping's row", "the table"])
def test_a_run_that_continues_what_the_database_never_had_or_lost_is_refused(sink: PostgresSink, database: Database, lost: str) -> None:
    changes = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2, continues=1)
    if lost != "everything":
        sink.begin(RUN, TARGET)
        database.execute("DROP TABLE people" if lost == "the table" else "DELETE FROM wsync_sink.wsync_fence")

    with pytest.raises(ConfigError, match="gone" if lost == "the table" else "never seen") as caught:
        sink.begin(changes, TARGET)

    assert "sync resync NAME" in caught.value.next_step
    assert "sync adopt NAME" in caught.value.next_step
    assert database.execute("SELECT to_regclass('people')::text") == [("people" if lost == "the bookkeeping's row" else None,)]
    assert database.execute("SELECT to_regclass('wsync_sink.wsync_fence') IS NULL") == [(lost == "everything",)]


def test_a_run_that_continues_what_is_there_begins(sink: PostgresSink, database: Database) -> None:
    sink.write(chunk([{"id": 1, "name": "a"}]), sink.begin(RUN, TARGET))
    changes = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2, continues=1)

    for _ in range(2):  # `begin` is repeated after a crash
        token = sink.begin(changes, TARGET)
    sink.write(chunk([{"id": 2, "name": "b"}], run=changes), token)

    assert people(database) == [(1, "a"), (2, "b")]


def test_another_tenants_sync_of_the_same_name_is_another_sync(sink: PostgresSink) -> None:
    other = RunRef(tenant_id="bravo", sync_id="people", run_id="run-1", delivery=7)
    sink.begin(other, TARGET)

    token = sink.begin(RUN, TARGET)

    assert sink.write(chunk([{"id": 1, "name": "a"}]), token).accepted_rows == 1
    assert sink.recorded(other, TARGET, 0) == []


def test_a_newer_writer_waits_for_one_that_is_inside_and_then_shuts_it_out(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    with psycopg.connect(database.url) as blocker:
        blocker.execute("SELECT * FROM people WHERE id = 1 FOR UPDATE")
        with ThreadPoolExecutor(max_workers=2) as pool:
            inside = pool.submit(sink.write, chunk([{"id": 1, "name": "old"}], first=1, epoch=1), token)
            wait_for_waiting(database, 1)
            newer = pool.submit(sink.write, chunk([{"id": 1, "name": "new"}], first=2, epoch=2), token)
            wait_for_waiting(database, 2)
            blocker.rollback()
            assert inside.result().accepted_rows == newer.result().accepted_rows == 1

    assert people(database) == [(1, "new")]
    with pytest.raises(StateError):
        sink.write(chunk([{"id": 1, "name": "older"}], first=3, epoch=1), token)
