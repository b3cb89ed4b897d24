"""Daily partitions of events and of ended runs."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from wsync_engine.state.database import connect
from wsync_engine.state.statements import load_statements

SQL = load_statements("partition")


@pytest.fixture
def engine(database):
    with connect(database.engine_url, application_name="test") as connection:
        yield connection


def at(engine: psycopg.Connection, instant: str) -> None:
    engine.execute("SELECT set_config('wsync.test_now', %s, false)", [instant])


def partition_make(engine: psycopg.Connection, days_ahead: int) -> int:
    return engine.execute(SQL["partition_make"], {"days_ahead": days_ahead}).fetchone()[0]


def test_the_days_that_lack_a_partition_get_one(engine) -> None:
    at(engine, "2030-02-27T23:59:59Z")

    made = [partition_make(engine, 1), partition_make(engine, 2), partition_make(engine, 2)]

    assert made == [4, 2, 0]
    engine.execute("INSERT INTO wsync.run_event (at, tenant_id, kind) VALUES ('2030-03-01T23:59:59.999999Z', %s, 'x')", [uuid4()])
    assert engine.execute(SQL["partition_default_rows"], {}).fetchone() == (0,)


def test_a_day_whose_rows_came_before_its_partition_stays_in_the_default_one(engine) -> None:
    engine.execute("INSERT INTO wsync.run_event (at, tenant_id, kind) VALUES ('2030-03-01T12:00Z', %s, 'x')", [uuid4()])
    at(engine, "2030-03-01T00:00Z")

    assert partition_make(engine, 1) == 3
    assert engine.execute(SQL["partition_default_rows"], {}).fetchone() == (1,)


def test_old_days_are_dropped_and_newer_ones_stay(engine) -> None:
    at(engine, "2030-03-01T00:00Z")
    partition_make(engine, 2)
    engine.execute("INSERT INTO wsync.run_event (at, tenant_id, kind) VALUES ('2030-03-01T12:00Z', %s, 'x')", [uuid4()])
    engine.execute("INSERT INTO wsync.run_event (at, tenant_id, kind) VALUES ('2030-03-03T12:00Z', %s, 'x')", [uuid4()])

    engine.execute(SQL["partition_drop"], {"parent": "run_event", "before_day": "2030-03-03"})

    assert engine.execute("SELECT count(*) FROM wsync.run_event").fetchone() == (1,)
    assert engine.execute(SQL["partition_drop"], {"parent": "run_event", "before_day": "2030-03-03"}).fetchone() == (0,)


def test_only_partitioned_tables_are_dropped_from(engine) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="not a partitioned table"):
        engine.execute(SQL["partition_drop"], {"parent": "run", "before_day": "2999-01-01"})
