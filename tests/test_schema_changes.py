"""A table's columns change between two runs of a sync: what is sent again, what stops the run, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import Guards, MappingEntry, Mode

from .record_store import RecordStore, RecordWorld, serving

MAPPING = (MappingEntry(target="id", column="id"), MappingEntry(target="who.name", column="name"))


@pytest.fixture
def undelivered(database: Any, servers: Any, tmp_path: Path) -> Iterator[RecordWorld]:
    """Two people, and a sync that sends every column under its own name."""
    with serving() as store:
        made = RecordWorld(database, servers.endpoints.admin_url, tmp_path, store)
        made.admin.execute(
            "CREATE TABLE person AS SELECT n AS id, 'n' || n AS name, n AS score, (n + 0.5)::numeric(10, 2) AS price, n::numeric(6, 0) AS code"
            " FROM generate_series(1, 2) n; ALTER TABLE person ALTER price TYPE numeric(10, 2), ALTER code TYPE numeric(6, 0)"
        )
        yield made
        made.close()


@pytest.fixture
def world(undelivered: RecordWorld) -> RecordWorld:
    """They are delivered."""
    undelivered.read("SELECT * FROM person")
    undelivered.store.taken()
    return undelivered


@pytest.fixture
def store(world: RecordWorld) -> RecordStore:
    return world.store


def mapped(world: RecordWorld) -> None:
    """The sync sends what its mapping names, and has done so."""
    world.read("SELECT * FROM person", mapping=MAPPING)
    world.store.taken()


@pytest.mark.parametrize("alter", ["ALTER score TYPE bigint", "ALTER name TYPE varchar(30)", "ALTER price TYPE numeric(20, 2)"])
def test_a_type_that_changes_no_payload_sends_no_row_again(world: RecordWorld, store: RecordStore, alter: str) -> None:
    world.admin.execute(f"ALTER TABLE person {alter}")

    outcome = world.run()

    assert (outcome.state, outcome.counts["unchanged"], store.taken()) == ("succeeded", 2, [])


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        ("ALTER score TYPE text", "`score` was integer, is text"),
        ("ALTER price TYPE numeric(10, 3)", "`price` was decimal with 2 places, is decimal with 3 places"),
        ("ADD city text", "`city` is new"),
        ("DROP score", "`score` is gone"),
        ("RENAME score TO points", "`points` is new, `score` is gone"),
    ],
)
def test_a_change_that_would_send_every_row_again_blocks_the_run_until_it_is_approved(
    world: RecordWorld, store: RecordStore, alter: str, words: str
) -> None:
    world.admin.execute(f"ALTER TABLE person {alter}")
    run_id = world.new_run()

    blocked = world.attempt(run_id)
    sent_before = store.taken()
    approved = world.approve(run_id)

    assert (blocked.state, blocked.reason, sent_before) == (
        "blocked",
        f"the mapped columns changed: {words} (guard `allow_schema_change`)",
        [],
    )
    assert (approved.state, len(store.taken())) == ("succeeded", 2)
    assert (world.run().state, store.taken()) == ("succeeded", []), "from then on that is how the columns are"


def test_a_change_blocks_again_after_it_was_discarded(world: RecordWorld) -> None:
    world.admin.execute("ALTER TABLE person ADD city text")
    run_id = world.new_run()
    world.attempt(run_id)
    world.discard(run_id)

    assert world.run().state == "blocked"


def test_a_change_is_delivered_at_once_where_the_sync_allows_it(world: RecordWorld, store: RecordStore) -> None:
    world.spec = replace(world.spec, guards=Guards(allow_schema_change=True))
    world.admin.execute("ALTER TABLE person ADD city text")

    outcome = world.run()

    assert (outcome.state, [record["city"] for record in store.taken()]) == ("succeeded", [None, None])


def test_a_changed_mapping_is_no_changed_schema(world: RecordWorld, store: RecordStore) -> None:
    outcome = world.read("SELECT * FROM person", mapping=MAPPING)

    assert (outcome.state, len(store.taken())) == ("succeeded", 2)


@pytest.mark.parametrize("alter", ["ADD city text", "DROP score", "ALTER score TYPE text"])
def test_columns_that_are_not_mapped_may_change(world: RecordWorld, store: RecordStore, alter: str) -> None:
    mapped(world)
    world.admin.execute(f"ALTER TABLE person {alter}")

    outcome = world.run()

    assert (outcome.state, outcome.counts["unchanged"], store.taken()) == ("succeeded", 2, [])


def test_a_mapped_column_that_is_gone_is_named_with_the_nearest(world: RecordWorld) -> None:
    mapped(world)
    world.admin.execute("ALTER TABLE person RENAME name TO names")

    refused = world.refusal()

    assert refused.message == "mapping of `who.name`: the query has no column `name`"
    assert refused.next_step == "did you mean `names`?"


def test_a_key_column_that_is_gone_is_named(world: RecordWorld) -> None:
    world.admin.execute("ALTER TABLE person DROP id")

    assert world.refusal().message == "key: the query has no column `id`"


@pytest.mark.parametrize(("key", "alter"), [("id", "ALTER id TYPE bigint"), ("code", "ALTER code TYPE numeric(12, 0)")])
def test_a_wider_key_is_the_same_key(undelivered: RecordWorld, key: str, alter: str) -> None:
    entries = (MappingEntry(target="id", column=key), MappingEntry(target="name", column="name"))
    undelivered.read("SELECT * FROM person", mapping=entries, mode=Mode.MIRROR, guards=Guards(max_delete_percent=None))
    undelivered.admin.execute(f"ALTER TABLE person {alter}; UPDATE person SET name = 'x' WHERE id = 1; DELETE FROM person WHERE id = 2")

    outcome = undelivered.run()

    assert (outcome.state, outcome.counts["upserts"], outcome.counts["deletes"]) == ("succeeded", 1, 1)
    assert undelivered.run().counts["unchanged"] == 1


@pytest.mark.parametrize(("alter", "type_"), [("ALTER id TYPE text", "VARCHAR"), ("ALTER id TYPE smallint", "SMALLINT")])
def test_a_key_of_another_type_is_refused_before_the_result_is_read(world: RecordWorld, alter: str, type_: str) -> None:
    world.admin.execute(f"ALTER TABLE person {alter}")

    refused = world.refusal()

    assert refused.message == f"the key `id` is {type_}, and that of the snapshot is INTEGER"
    assert "cast" in refused.next_step
