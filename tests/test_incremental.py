"""Reading what changed, with the real Postgres source: every type that can be a cursor, late commits, the server's own refusals, into a real table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsync_engine.model.sync import Cursor, Guards, MappingEntry, Mode, Read, SyncSpec
from wsync_engine.pipeline.finish import conclude
from wsync_engine.services.storage import claim_storage
from wsync_engine.services.storage_sweep import Swept, sweep_storage
from wsync_sdk import ConfigError, Sink, WsyncError

from .one_sync import Crash, OneSync

ROWS = 1_000


class World(OneSync):
    """A table with one column of each type that can be a cursor, and a destination, in one database."""

    sink_plugin = "postgres"

    def __init__(self, database: Any, admin_url: str, folder: Path) -> None:
        super().__init__(database, admin_url, folder)
        self.admin.execute(
            "CREATE TABLE customer (id bigint PRIMARY KEY, email text, seen_at timestamptz(6) DEFAULT now(), wall_at timestamp, day date,"
            " place int, amount numeric(20, 3), ratio float8, code text)"
        )
        self.put(1, ROWS)
        self.use("seen_at")

    def use(self, column: str, **options: Any) -> None:
        self.spec = SyncSpec(
            name="people",
            source="w",
            sink="s",
            query=f"SELECT id, email, {column} FROM customer WHERE {column} >= :cursor",
            key=("id",),
            stream="public.subscriber",
            mode=Mode.UPSERT,
            split_by="id",
            guards=Guards(),
            read=Read.INCREMENTAL,
            cursor=Cursor(column=column, **options),
            mapping=(MappingEntry(target="id", column="id"), MappingEntry(target="email", column="email")),
        )

    def put(self, first: int, last: int) -> None:
        """Rows whose columns all rise with their id, up to a second ago."""
        self.admin.execute(
            "INSERT INTO customer SELECT n, 'user' || n || '@example.com', at, at AT TIME ZONE 'UTC', date '2024-01-01' + n::int, n,"
            " n / 8.0, n / 8.0, to_char(n, 'FM000000') FROM generate_series(%s::bigint, %s) n,"
            " LATERAL (SELECT timestamptz '2025-01-01 00:00:00.000001Z' + n * interval '1 minute') AS t(at)",
            (first, last),
        )

    def open_sink(self) -> Sink:
        return self.host.open_sink("postgres", {"url": "env:WAREHOUSE_URL"}, lambda _: self.url)

    def failed_run(self) -> WsyncError:
        run_id = self.new_run()
        try:
            raise AssertionError(self.attempt(run_id))
        except WsyncError as exc:
            with self._job(run_id, 1, lambda _: None) as job:
                conclude(job, exc)
            return exc

    def differences(self) -> list[Any]:
        return self.admin.execute("SELECT id, email FROM customer EXCEPT SELECT id, email FROM subscriber").fetchall()

    def cursor(self) -> Any:
        row = self.admin.execute("SELECT cursor -> 'cursor' ->> 'value' FROM wsync.snapshot").fetchone()
        return None if row is None else row[0]


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path) -> Iterator[World]:
    made = World(database, servers.endpoints.admin_url, tmp_path)
    yield made
    made.close()


NO_OVERLAP = {"seen_at": {"overlap_ms": 0}, "wall_at": {"overlap_ms": 0}, "day": {"overlap_ms": 0}}


@pytest.mark.parametrize("column", ["seen_at", "wall_at", "day", "place", "amount", "ratio", "code"])
def test_only_what_lies_at_the_cursor_or_behind_it_is_read_and_the_table_equals_the_query(world: World, column: str) -> None:
    world.use(column, **NO_OVERLAP.get(column, {}))
    first = world.run()
    world.put(ROWS + 1, ROWS + 20)

    second = world.run()

    assert (first.state, first.counts["read"], first.counts["accepted"]) == ("succeeded", ROWS, ROWS)
    assert (second.counts["read"], second.counts["unchanged"], second.counts["accepted"]) == (21, 1, 20)
    assert world.differences() == []


@pytest.mark.parametrize(
    ("column", "initial", "rows"),
    [
        ("seen_at", "2025-01-01T09:00:00.000001+01:00", ROWS - 479),
        ("wall_at", "2025-01-01T08:00:00.000001", ROWS - 479),
        ("day", "2024-01-31", ROWS - 29),
        ("place", 30, ROWS - 29),
        ("amount", 3.75, ROWS - 29),
        ("ratio", 3.75, ROWS - 29),
        ("code", "000030", ROWS - 29),
    ],
)
def test_the_first_run_begins_at_an_initial_value_of_the_columns_type(world: World, column: str, initial: Any, rows: int) -> None:
    world.use(column, initial=initial)

    assert world.run().counts["read"] == rows


def test_a_zone_of_the_servers_or_the_sessions_changes_nothing(world: World) -> None:
    world.admin.execute(f"ALTER DATABASE {world.admin.info.dbname} SET TimeZone = 'America/New_York'")
    world.use("wall_at", overlap_ms=0)
    world.run()
    wall = world.cursor()
    world.use("seen_at", overlap_ms=0)
    world.run()

    assert (wall, world.cursor()) == ("2025-01-01T16:40:00.000001", "2025-01-01T16:40:00.000001+00:00")
    assert world.run().counts["read"] == 1


def test_a_row_that_is_committed_late_is_read_within_the_overlap(world: World) -> None:
    with psycopg.connect(world.url) as late:
        late.execute("INSERT INTO customer (id, email) VALUES (5001, 'late')")
        world.admin.execute("INSERT INTO customer (id, email) VALUES (5002, 'in time')")
        world.run()
        assert world.differences() == []
        late.commit()

    world.run()

    assert world.differences() == []
    assert world.admin.execute("SELECT count(*) FROM subscriber WHERE id = 5001").fetchone() == (1,)


def test_rows_without_a_value_come_where_the_query_says_so(world: World) -> None:
    world.spec = replace(world.spec, query=f"{world.spec.query} OR seen_at IS NULL")
    world.run()
    world.admin.execute("INSERT INTO customer (id, email, seen_at) VALUES (5001, 'nowhere', NULL)")

    outcome = world.run()

    assert (outcome.state, outcome.counts["null_cursors"], world.differences()) == ("succeeded", 1, [])


@pytest.mark.parametrize(("column", "highest"), [("char(9)", "'abc'"), ("numeric(38)", "12345678901234567890123456789012345679")])
def test_rows_at_the_very_cursor_are_read_again_of_whatever_type_it_is(world: World, column: str, highest: str) -> None:
    world.admin.execute(f"ALTER TABLE customer ADD COLUMN version {column} DEFAULT {highest}")
    world.use("version")
    world.run()
    world.put(ROWS + 1, ROWS + 20)

    assert world.run().counts["accepted"] == 20
    assert world.differences() == []


def test_a_value_that_can_not_be_read_is_a_rejection_and_moves_no_cursor(world: World) -> None:
    world.use("seen_at")
    world.admin.execute("INSERT INTO customer (id, email, seen_at) VALUES (5001, 'for ever', 'infinity')")

    outcome = world.run()

    assert (outcome.counts["null_cursors"], world.cursor()) == (1, "2025-01-01T16:40:00.000001+00:00")


def test_a_column_that_became_another_type_names_both_also_where_the_server_refuses_the_query(world: World) -> None:
    world.use("place")
    world.run()
    world.admin.execute("ALTER TABLE customer ALTER COLUMN place TYPE text")

    refused = world.failed_run()

    assert isinstance(refused, ConfigError)
    assert refused.message == "the cursor column `place` was an integer, and is a text now"
    assert world.cursor() == str(ROWS)
    world.engine.execute("UPDATE wsync.sync SET resync = resync + 1")
    world.spec = replace(world.spec, guards=Guards(allow_empty=True))
    assert world.run().counts["read"] == ROWS
    assert world.differences() == []


def test_the_time_of_the_last_run_is_bound_as_a_timestamp_with_zone(world: World) -> None:
    world.spec = replace(
        world.spec,
        read=Read.FULL,
        cursor=None,
        query="SELECT id, email FROM customer WHERE seen_at >= :last_sync_time - interval '1 minute'",
    )
    first = world.run()
    world.admin.execute("INSERT INTO customer (id, email) VALUES (5001, 'new')")

    second = world.run()

    assert (first.counts["read"], second.counts["read"], world.differences()) == (ROWS, 1, [])


@pytest.mark.parametrize(
    "step", ["after_publish", "after_start_delivery", "after_mark_sent", "after_write", "before_ack", "fold", "before_finish"]
)
def test_wherever_the_process_dies_the_next_holder_moves_the_cursor_once(world: World, step: str) -> None:
    world.use("place")
    world.run()
    world.put(ROWS + 1, ROWS + 500)
    run_id = world.new_run()

    def die(name: str) -> None:
        if name == step:
            raise Crash(step)

    with pytest.raises(Crash):
        world.attempt(run_id, die)
    assert world.cursor() == str(ROWS)
    outcome = world.attempt(run_id)

    assert (outcome.state, outcome.counts["accepted"], world.cursor()) == ("succeeded", 500, str(ROWS + 500))
    assert world.differences() == []
    assert world.run().counts["upserts"] == 0


def sweep_after_days(world: World) -> None:
    """What the snapshot names stays in the storage, however old it is."""
    at_s = time.time() - 400 * 86_400
    for path in world.storage.root.rglob("*"):
        os.utime(path, (at_s, at_s))
    claim_storage(world.engine, world.storage.root.as_uri())
    assert sweep_storage(world.engine, world.storage.root.as_uri(), keep_days=0) == Swept(runs=3)


def end_backoff(world: World) -> None:
    """As if the time had passed after which rejected rows are offered again."""
    for path in world.storage.snapshot_folder(str(world.sync_id)).glob("*.parquet"):
        entries = pq.read_table(path)
        place = entries.schema.get_field_index("wsync_offer_at")
        pq.write_table(entries.set_column(place, "wsync_offer_at", pa.array([0] * len(entries), pa.int64())), path)


def test_a_row_that_the_table_refuses_is_kept_and_arrives_when_it_is_taken(world: World) -> None:
    world.use("place")
    world.admin.execute("CREATE TABLE subscriber (id bigint PRIMARY KEY, email text CONSTRAINT picky CHECK (email <> 'user7@example.com'))")
    first = world.run()
    second = world.run()
    world.put(ROWS + 1, ROWS + 20)
    third = world.run()
    world.admin.execute("ALTER TABLE subscriber DROP CONSTRAINT picky")
    end_backoff(world)
    sweep_after_days(world)

    last = world.run()

    assert (first.counts["rejected"], second.counts["upserts"], second.counts["held_back"]) == (1, 0, 1)
    assert (third.counts["accepted"], third.counts["read"], third.counts["carried"], world.cursor()) == (20, 21, 1, str(ROWS + 20))
    assert (last.state, last.counts["accepted"], world.differences()) == ("succeeded", 1, [])
    assert world.run().state == "succeeded"
