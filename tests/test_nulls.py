"""What becomes of a NULL, as the mapping asks field by field: from a real Postgres to a real endpoint, and to a real table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import MappingEntry, Mode, SyncSpec
from wsync_sdk import ConfigError, Nulls, Sink

from .one_sync import OneSync
from .record_store import RecordStore, RecordWorld, serving

QUERY = "SELECT * FROM person ORDER BY id"
PEOPLE = "CREATE TABLE person AS SELECT n AS id, CASE WHEN n = 1 THEN 'Ann' END AS name, NULL::int AS age FROM generate_series(1, 2) n"


def mapping(**nulls: Nulls | None) -> tuple[MappingEntry, ...]:
    """Name and age, the latter in a group, with what is asked of their NULLs."""
    return (
        MappingEntry(target="id", column="id"),
        MappingEntry(target="name", column="name", nulls=nulls.get("name")),
        MappingEntry(target="more.age", column="age", nulls=nulls.get("age")),
        MappingEntry(target="more.kind", constant="person"),
    )


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path) -> Iterator[RecordWorld]:
    with serving() as store:
        made = RecordWorld(database, servers.endpoints.admin_url, tmp_path, store)
        made.admin.execute(PEOPLE)
        yield made
        made.close()


@pytest.fixture
def store(world: RecordWorld) -> RecordStore:
    return world.store


@pytest.mark.parametrize(
    ("config", "nulls", "second"),
    [
        ({}, {}, {"id": "2", "name": None, "more": {"kind": "person", "age": None}}),
        ({}, {"name": Nulls.OMIT}, {"id": "2", "more": {"kind": "person", "age": None}}),
        ({}, {"age": Nulls.OMIT}, {"id": "2", "name": None, "more": {"kind": "person"}}),
        ({"nulls": "omit"}, {}, {"id": "2", "more": {"kind": "person"}}),
        ({"nulls": "omit"}, {"name": Nulls.SEND}, {"id": "2", "name": None, "more": {"kind": "person"}}),
        ({"nulls": "omit"}, {"age": Nulls.SEND}, {"id": "2", "more": {"kind": "person", "age": None}}),
    ],
)
def test_each_field_is_sent_or_left_out_as_it_asks(
    world: RecordWorld, store: RecordStore, config: dict[str, Any], nulls: dict[str, Nulls], second: dict[str, Any]
) -> None:
    world.config |= config

    world.read(QUERY, mapping=mapping(**nulls))

    first, found = store.taken()
    assert found == second
    assert first["name"] == "Ann"


def test_a_sync_says_it_for_all_its_fields_and_a_field_for_itself(world: RecordWorld, store: RecordStore) -> None:
    world.read(QUERY, nulls=Nulls.OMIT)
    implicit = store.taken()

    world.read(QUERY, nulls=Nulls.OMIT, mapping=mapping(age=Nulls.SEND))

    assert implicit == [{"id": "1", "name": "Ann"}, {"id": "2"}]
    assert store.taken()[1] == {"id": "2", "more": {"kind": "person", "age": None}}


def test_only_rows_with_a_null_are_sent_again_when_it_is_asked_for(world: RecordWorld, store: RecordStore) -> None:
    world.read(QUERY, mapping=mapping())
    store.taken()

    world.read(QUERY, mapping=mapping(name=Nulls.OMIT))
    of_the_name = store.taken()
    world.read(QUERY, mapping=mapping(name=Nulls.OMIT, age=Nulls.OMIT))

    assert [record["id"] for record in of_the_name] == ["2"]
    assert [record["id"] for record in store.taken()] == ["1", "2"]
    assert world.read(QUERY, mapping=mapping(name=Nulls.OMIT, age=Nulls.OMIT)).counts["unchanged"] == 2


def test_a_json_column_is_left_out_where_it_is_null_and_sent_where_it_holds_null(world: RecordWorld, store: RecordStore) -> None:
    world.admin.execute("ALTER TABLE person ADD extra jsonb; UPDATE person SET extra = 'null' WHERE id = 1")

    world.read("SELECT id, extra FROM person", nulls=Nulls.OMIT)

    assert store.taken() == [{"id": "1", "extra": None}, {"id": "2"}]


class TableWorld(OneSync):
    """The same people, to a table."""

    sink_plugin = "postgres"

    def open_sink(self) -> Sink:
        return self.host.open_sink("postgres", {"url": "env:SINK"}, lambda _: self.url)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.admin.execute("SELECT * FROM copy ORDER BY id").fetchall()


@pytest.fixture
def tables(database: Any, servers: Any, tmp_path: Path) -> Iterator[TableWorld]:
    made = TableWorld(database, servers.endpoints.admin_url, tmp_path)
    made.admin.execute(f"{PEOPLE}; CREATE TABLE copy (id int PRIMARY KEY, name text, age int)")
    made.spec = SyncSpec(name="people", source="w", sink="s", query=QUERY, key=("id",), stream="copy", mode=Mode.UPSERT)
    yield made
    made.close()


def test_a_column_keeps_what_it_has_where_its_null_is_left_out(tables: TableWorld) -> None:
    entries = [MappingEntry(target=name, column=name) for name in ("id", "name", "age")]
    tables.spec = replace(tables.spec, mapping=(*entries[:2], replace(entries[2], nulls=Nulls.OMIT)))
    tables.admin.execute("INSERT INTO copy VALUES (1, 'old', 30)")

    first = tables.run()
    tables.admin.execute("UPDATE person SET name = NULL, age = 31 WHERE id = 2")
    tables.run()
    tables.admin.execute("UPDATE person SET name = 'Bob', age = NULL WHERE id = 2; UPDATE person SET name = NULL WHERE id = 1")
    last = tables.run()

    assert (first.state, last.state, last.counts["accepted"]) == ("succeeded", "succeeded", 2)
    assert tables.rows() == [(1, None, 30), (2, "Bob", 31)]


def test_a_part_of_a_jsonb_column_can_not_be_left_out(tables: TableWorld) -> None:
    tables.admin.execute("ALTER TABLE copy ADD more jsonb")
    tables.spec = replace(tables.spec, mapping=mapping(age=Nulls.OMIT))

    with pytest.raises(ConfigError, match=r"`more\.age`: it is a part of the column `more`"):
        tables.run()


@pytest.mark.parametrize(
    ("ddl", "targets", "words", "next_step"),
    [
        ("", ("id", "nmae"), "mapping.nmae: the stream `copy` has no field `nmae`", "did you mean `name`?"),
        ("ALTER TABLE copy ADD city text NOT NULL", ("id", "name"), "the stream `copy` needs the field `city`", "map a column to `city`"),
    ],
)
def test_a_table_that_can_not_take_the_mapping_is_named_before_the_query_runs(
    tables: TableWorld, ddl: str, targets: tuple[str, str], words: str, next_step: str
) -> None:
    tables.admin.execute(ddl or "SELECT 1")
    tables.spec = replace(
        tables.spec,
        query="SELECT 1 / 0 AS id, 'x' AS name",
        mapping=tuple(MappingEntry(target=target, column=column) for target, column in zip(targets, ("id", "name"), strict=True)),
    )

    with pytest.raises(ConfigError) as refused:
        tables.run()

    assert (refused.value.message, refused.value.next_step) == (words, next_step)
    assert tables.engine.execute("SELECT warehouse_query FROM wsync.run").fetchall() == [(None,)]


def test_the_columns_of_a_sync_without_a_mapping_are_held_against_the_table_too(tables: TableWorld) -> None:
    tables.admin.execute("ALTER TABLE person ADD city text")

    with pytest.raises(ConfigError, match=r"mapping\.city: the stream `copy` has no field `city`"):
        tables.run()


@pytest.mark.parametrize(
    "ddl", ["ALTER TABLE copy ADD city text NOT NULL DEFAULT 'Rome'", "ALTER TABLE copy ADD n int GENERATED ALWAYS AS IDENTITY"]
)
def test_a_column_that_the_table_fills_itself_need_not_be_mapped(tables: TableWorld, ddl: str) -> None:
    tables.admin.execute(ddl)

    assert tables.run().state == "succeeded"


def test_a_column_that_a_trigger_fills_need_not_be_mapped(tables: TableWorld) -> None:
    tables.admin.execute(
        "ALTER TABLE copy ADD city text NOT NULL; CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.city := 'Rome';"
        " RETURN NEW; END $$; CREATE TRIGGER fill BEFORE INSERT ON copy FOR EACH ROW EXECUTE FUNCTION fill()"
    )

    assert tables.run().state == "succeeded"
