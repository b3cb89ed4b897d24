"""Rows that are appended: inserted as they come, each chunk once, whoever sends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsync_postgres.sink import PostgresSink
from wsync_sdk import Chunk, ConfigError, RowError, RowRange, RunRef, WriteMode

from .chunks import RUN, TARGET, chunk, people
from .conftest import Database

APPENDING = replace(RUN, write_mode=WriteMode.APPEND)
ROWS = [{"id": 1, "name": "a"}, {"id": 2, "name": None}]


def appended(*, run: RunRef = APPENDING, first: int = 0) -> Chunk:
    return chunk(ROWS, run=run, first=first)


def test_a_table_without_a_unique_key_takes_every_row(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint, name text)")
    token = sink.begin(APPENDING, TARGET)
    sink.write(appended(), token)

    sink.write(appended(first=2), token)

    assert people(database) == [(1, "a"), (1, "a"), (2, None), (2, None)]
    with pytest.raises(ConfigError, match="no unique index"):
        sink.begin(RUN, TARGET)


def test_the_same_chunk_by_a_later_delivery_of_the_same_run_is_not_appended_again(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint, name text)")
    token = sink.begin(APPENDING, TARGET)
    sink.write(appended(), token)
    finisher = replace(APPENDING, delivery=APPENDING.delivery + 1)

    assert sink.recorded(finisher, TARGET, 0) == [RowRange(0, 1)]
    assert sink.write(appended(run=finisher), token).accepted_rows == 2
    assert people(database) == [(1, "a"), (2, None)]


def test_a_key_that_is_there_is_refused_and_stays_as_it_is(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint PRIMARY KEY, name text)")
    database.execute("INSERT INTO people VALUES (2, 'by hand')")
    token = sink.begin(APPENDING, TARGET)

    with pytest.raises(RowError):
        sink.write(appended(), token)

    assert people(database) == [(2, "by hand")]
    assert sink.recorded(APPENDING, TARGET, 0) == []


def test_a_row_that_a_trigger_drops_is_refused(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint, name text)")
    database.execute("CREATE FUNCTION dropped() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    database.execute("CREATE TRIGGER dropped BEFORE INSERT ON people FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION dropped()")
    token = sink.begin(APPENDING, TARGET)

    with pytest.raises(RowError, match="did not keep the row"):
        sink.write(appended(), token)

    assert people(database) == []
