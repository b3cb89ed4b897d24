"""What a batch reads does not grow with the tables: of a tenant with thousands of syncs that share a connection, only the rows of the batch.

The planner's statistics are those of a table that was just filled, and those after an ANALYZE: both lead to the same lookups.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler import sweeper
from wsync_engine.scheduler.caps import compare_caps
from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.runs import Beat, Finish, claim_runs, finish_runs, heartbeat
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.worker.store import load_assignments

MANY = 20_000
BATCH = 32
ROWS_PER_RUN = 40
WORKER = UUID(int=7)
KEYRING = Keyring.from_text("cGxhbnMtcGxhbnMtcGxhbnMtcGxhbnMtcGxhbnMtMTI=")
FILL = (
    "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
    " SELECT id, %(tenant)s, id, %(connection)s, %(connection)s,"
    """ '{"name": "s", "source": "here", "sink": "here", "query": "SELECT 1", "key": ["id"], "stream": "x", "mode": "upsert"}', id"""
    " FROM unnest(CAST(%(ids)s AS uuid[])) AS id",
    "INSERT INTO wsync.schedule (schedule_id, tenant_id, name, sync_id, connection_id, credential_id, overlap_key, kind, cron, zone)"
    " SELECT id, %(tenant)s, id, id, %(connection)s, %(connection)s, id, 'cron', '* * * * *', 'UTC' FROM unnest(CAST(%(ids)s AS uuid[])) AS id",
    "INSERT INTO wsync.schedule_clock (schedule_id, tenant_id, shard, next_nominal_at, next_due_at)"
    " SELECT id, %(tenant)s, 0, %(at)s, %(at)s FROM unnest(CAST(%(ids)s AS uuid[])) AS id",
    "INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind)"
    " SELECT %(at)s, %(tenant)s, id, id, 1, 'run.settled' FROM unnest(CAST(%(ids)s AS uuid[])) AS id",
    "INSERT INTO wsync.run (run_id, tenant_id, shard, schedule_id, sync_id, connection_id, credential_id, overlap_key, trigger, nominal_at,"
    " due_at, ready_at, priority, exclusive, state, epoch)"
    " SELECT id, %(tenant)s, 0, id, id, %(connection)s, %(connection)s, id, 'schedule', %(before)s, %(before)s, %(before)s, 1, true,"
    " 'succeeded', 1 FROM unnest(CAST(%(ids)s AS uuid[])) AS id",
)


@pytest.fixture(params=["just filled", "analyzed"])
def schedules(world: Any, request: pytest.FixtureRequest) -> list[UUID]:
    ids = [uuid7() for _ in range(MANY)]
    columns = {
        "ids": ids,
        "tenant": world.tenant_id,
        "connection": world.connection_id,
        "at": world.now,
        "before": world.now - timedelta(minutes=1),
    }
    for statement in FILL:
        world.engine.execute(statement, columns)
    if request.param == "analyzed":
        with psycopg.connect(world.database.owner_url, autocommit=True) as owner:
            owner.execute("ANALYZE wsync.sync, wsync.schedule, wsync.schedule_clock, wsync.run_event, wsync.run")
    return ids


def rows_read(world: Any, work: Callable[[], Any]) -> tuple[int, Any]:
    """Rows that a piece of work read from tables, in one transaction, and its result."""
    query = "SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0) FROM pg_stat_xact_all_tables WHERE schemaname = 'wsync'"
    with world.engine.transaction():
        before = world.engine.execute(query).fetchone()[0]
        done = work()
        return int(world.engine.execute(query).fetchone()[0] - before), done


def test_a_batch_reads_its_own_rows_only(world: Any, schedules: list[UUID]) -> None:
    world.move(1)
    read: dict[str, int] = {}

    read["fire"], fired = rows_read(world, lambda: fire(world.engine, [(schedule_id, 1) for schedule_id in schedules[-BATCH:]]))
    run_ids = [run.run_id for run in fired.runs]
    read["claim"], claimed = rows_read(world, lambda: claim_runs(world.engine, run_ids, WORKER))
    read["assign"], assigned = rows_read(
        world, lambda: load_assignments(world.engine, claimed, KEYRING, write_until_s=1.0, call_timeout_s=1.0, rows_per_partition=1_000)
    )
    beats = [Beat(run_id=run.run_id, epoch=run.epoch) for run in claimed]
    read["heartbeat"], held = rows_read(world, lambda: heartbeat(world.engine, WORKER, beats))
    ends = [Finish(run_id=run.run_id, epoch=run.epoch, outcome="succeeded") for run in claimed]
    read["finish"], done = rows_read(world, lambda: finish_runs(world.engine, ends))

    assert [len(fired.runs), len(claimed), len(assigned), len(held), len(done.lost)] == [BATCH, BATCH, BATCH, BATCH, 0]
    assert {name: rows for name, rows in read.items() if rows > BATCH * ROWS_PER_RUN} == {}


def test_a_batch_of_skipped_fires_reads_the_runs_that_it_met_only(world: Any, schedules: list[UUID]) -> None:
    world.engine.execute("UPDATE wsync.run SET state = 'queued' WHERE run_id = ANY(%s)", [schedules])
    world.move(1)

    read, fired = rows_read(world, lambda: fire(world.engine, [(schedule_id, 1) for schedule_id in schedules[-BATCH:]]))

    assert (len(fired.entries), len(fired.runs), len(world.events("schedule.skipped"))) == (BATCH, 0, BATCH)
    assert read <= BATCH * ROWS_PER_RUN


def test_a_page_of_a_walk_through_all_that_is_due_or_in_line_reads_no_more_than_itself(world: Any, schedules: list[UUID]) -> None:
    world.engine.execute("UPDATE wsync.run SET state = 'queued' WHERE run_id = ANY(%s)", [schedules])
    world.engine.execute(
        "UPDATE wsync.schedule_clock SET next_due_at = next_due_at + interval '1 day' WHERE schedule_id = ANY(%s)",
        [schedules[3 * sweeper.BATCH :]],
    )
    walks = {
        "clock_all": ({"shard": 0}, "next_due_at", "schedule_id"),
        "clock_soon": ({"shard": 0, "until_at": world.now}, "next_due_at", "schedule_id"),
        "run_waiting": ({"shard": 0, "until_at": world.now}, "ready_at", "run_id"),
    }
    read: dict[str, int] = {}

    for name, (columns, at, key) in walks.items():
        pages = sweeper._pages(world.engine, name, columns, at, key)
        read[name], first = rows_read(world, lambda pages=pages: next(pages))
        read[f"{name}, second page"], second = rows_read(world, lambda pages=pages: next(pages))
        if name == "clock_soon":
            read[f"{name}, the rest"], rest = rows_read(world, lambda pages=pages: list(pages))
            assert [len(page) for page in rest] == [sweeper.BATCH]
        assert len({row[key] for row in (*first, *second)}) == 2 * sweeper.BATCH

    assert {name: rows for name, rows in read.items() if rows > 2 * sweeper.BATCH} == {}


def test_comparing_the_caps_reads_each_breaker_once(world: Any) -> None:
    world.engine.execute(
        "INSERT INTO wsync.breaker (tenant_id, credential_id) SELECT %s, gen_random_uuid() FROM generate_series(1, %s)",
        [world.tenant_id, MANY],
    )

    read, _ = rows_read(world, lambda: compare_caps(world.engine, world.index))

    assert read < 2 * MANY
