"""Chunks and their acks: applied once and recorded together, whoever sends them how often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from wsync_postgres.config import PostgresConfig
from wsync_postgres.sink import PostgresSink
from wsync_sdk import RetryableError, RowRange, RunRef, Secret, StateError

from .chunks import RUN, TARGET, chunk, people, wait_for_waiting
from .conftest import Database


def test_upserts_and_deletes_are_applied_and_recorded(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": None}]), token)

    result = sink.write(chunk([{"op": "delete", "id": 1}, {"id": 2, "name": "B"}, {"id": 4, "name": ""}], first=3), token)

    assert result.accepted_rows == 3
    assert people(database) == [(2, "B"), (3, None), (4, "")]
    assert sink.recorded(RUN, TARGET, 0) == [RowRange(0, 2), RowRange(3, 5)]
    assert sink.recorded(RUN, TARGET, 1) == []


def test_the_same_chunk_twice_is_applied_once(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sent = chunk([{"id": 1, "name": "a"}])
    sink.write(sent, token)
    database.execute("UPDATE people SET name = 'changed by hand'")

    assert sink.write(sent, token).accepted_rows == 1
    assert people(database) == [(1, "changed by hand")]


def test_a_part_of_a_recorded_chunk_is_applied_once(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": i, "name": "a"} for i in range(4)]), token)
    database.execute("UPDATE people SET name = 'changed by hand'")

    assert sink.write(chunk([{"id": 2, "name": "a"}], first=2), token).accepted_rows == 1
    assert {name for _, name in people(database)} == {"changed by hand"}


def test_a_chunk_that_overlaps_recorded_rows_is_refused(sink: PostgresSink) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), token)

    with pytest.raises(StateError):
        sink.write(chunk([{"id": 2, "name": "a"}, {"id": 3, "name": "a"}], first=1), token)


def test_one_chunk_sent_twice_at_once_is_applied_once(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint PRIMARY KEY, name text, hits int DEFAULT 1)")
    database.execute(
        "CREATE FUNCTION hit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.hits := OLD.hits + 1; RETURN NEW; END';"
        "CREATE TRIGGER hit BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION hit()"
    )
    token = sink.begin(RUN, TARGET)
    sent = chunk([{"id": i, "name": "a"} for i in range(100)])

    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(lambda _: sink.write(sent, token), range(4)))

    assert [result.accepted_rows for result in results] == [100] * 4
    assert database.execute("SELECT DISTINCT hits FROM people") == [(1,)]


def test_partitions_are_written_at_the_same_time(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda p: sink.write(chunk([{"id": p, "name": "a"}], partition=p), token), range(8)))

    assert len(people(database)) == 8


def test_another_process_finds_what_was_recorded(sink: PostgresSink, database: Database) -> None:
    sink.write(chunk([{"id": 1, "name": "a"}]), sink.begin(RUN, TARGET))

    with PostgresSink(PostgresConfig(url=Secret(database.url))) as other:
        assert other.recorded(RUN, TARGET, 0) == [RowRange(0, 0)]


def test_nothing_is_recorded_where_nothing_was_ever_written(sink: PostgresSink) -> None:
    assert sink.recorded(RUN, TARGET, 0) == []


def test_the_acks_of_the_last_two_deliveries_are_kept(sink: PostgresSink, database: Database) -> None:
    runs = [RunRef(tenant_id="acme", sync_id="people", run_id=f"run-{n}", delivery=n) for n in range(1, 5)]
    for run in runs[:3]:
        sink.write(chunk([{"id": 1, "name": "a"}], run=run), sink.begin(run, TARGET))

    assert [sink.recorded(run, TARGET, 0) for run in runs] == [[], [RowRange(0, 0)], [RowRange(0, 0)], []]
    sink.begin(runs[3], TARGET)  # one that may write nothing
    assert [len(sink.recorded(run, TARGET, 0)) for run in runs] == [0, 0, 1, 0]
    assert database.execute("SELECT delivery FROM wsync_sink.wsync_ack") == [(3,)]


def test_what_is_recorded_is_told_after_the_writer_that_is_inside(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    with psycopg.connect(database.url) as blocker:
        blocker.execute("SELECT * FROM people WHERE id = 1 FOR UPDATE")
        with ThreadPoolExecutor(max_workers=2) as pool, PostgresSink(PostgresConfig(url=Secret(database.url))) as other:
            inside = pool.submit(sink.write, chunk([{"id": 1, "name": "late"}], first=1), token)
            wait_for_waiting(database, 1)
            asked = pool.submit(other.recorded, RUN, TARGET, 0)
            wait_for_waiting(database, 2)
            assert other.recorded(RUN, TARGET, 1) == []  # another partition's writers don't matter
            blocker.rollback()
            assert inside.result().accepted_rows == 1
            assert asked.result() == [RowRange(0, 0), RowRange(1, 1)]


def test_who_asks_past_a_writer_that_stays_inside_is_asked_to_wait(sink: PostgresSink, database: Database) -> None:
    sink.write(chunk([{"id": 1, "name": "a"}]), sink.begin(RUN, TARGET))
    with psycopg.connect(database.url) as writer, PostgresSink(PostgresConfig(url=Secret(database.url)), writer_wait_s=0.1) as other:
        writer.execute("SELECT * FROM wsync_sink.wsync_fence FOR SHARE")

        with pytest.raises(RetryableError) as caught:
            other.recorded(RUN, TARGET, 0)

    assert caught.value.retry_after_s == 0.1


def test_a_write_out_of_time_may_be_sent_again(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    with psycopg.connect(database.url) as blocker:
        blocker.execute("SELECT * FROM people FOR UPDATE")
        with pytest.raises(RetryableError):
            sink.write(chunk([{"id": 1, "name": "b"}], first=1, timeout_s=0.4), token)
    assert sink.recorded(RUN, TARGET, 0) == [RowRange(0, 0)]

    assert sink.write(chunk([{"id": 1, "name": "b"}], first=1), token).accepted_rows == 1
