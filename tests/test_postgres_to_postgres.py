"""The main job without its scheduler: a Postgres warehouse to a Postgres table, exactly once, through the real connectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import Guards, MappingEntry, Mode, SyncSpec
from wsync_sdk import Sink

from .one_sync import Crash, OneSync

ROWS = 3_000


class World(OneSync):
    """A warehouse table and a destination in one database."""

    sink_plugin = "postgres"

    def __init__(self, database: Any, admin_url: str, folder: Path) -> None:
        super().__init__(database, admin_url, folder)
        self.admin.execute(
            "CREATE TABLE customer AS SELECT n AS id, 'user' || n || '@example.com' AS email, CASE WHEN n % 7 > 0 THEN 'Zoë 日本 ' || n END AS"
            " full_name, (n % 100 / 7.0)::numeric(8, 3) AS score, jsonb_build_object('n', n) AS extra,"
            " timestamptz '2024-01-01' + n * interval '1 second' AS seen_at FROM generate_series(1, 3000) n"
        )
        self.spec = SyncSpec(
            name="people",
            source="w",
            sink="s",
            query="SELECT id, email, full_name, score, extra, seen_at FROM customer",
            key=("id",),
            stream="public.subscriber",
            mode=Mode.MIRROR,
            split_by="id",
            guards=Guards(),
        )

    def open_sink(self) -> Sink:
        return self.host.open_sink("postgres", {"url": "env:WAREHOUSE_URL"}, lambda _: self.url)

    def note_what_is_applied(self) -> None:
        self.admin.execute("CREATE TABLE applied (id bigint)")
        self.admin.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN INSERT INTO applied VALUES (coalesce(NEW.id, OLD.id)); RETURN NULL; END'"
        )
        self.admin.execute("CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON subscriber FOR EACH ROW EXECUTE FUNCTION note()")

    def change(self) -> None:
        self.admin.execute("UPDATE customer SET full_name = full_name || '!' WHERE id <= 100 AND id % 7 > 0")
        self.admin.execute("DELETE FROM customer WHERE id BETWEEN 201 AND 220")
        self.admin.execute("INSERT INTO customer SELECT n, 'new', NULL, NULL, '{}', now() FROM generate_series(10001, 10050) n")

    def differences(self) -> int:
        row = self.admin.execute(
            "SELECT count(*) FROM (SELECT id, email, full_name, score, extra, seen_at FROM customer) q"
            " FULL JOIN subscriber s USING (id) WHERE (q.email, q.full_name, q.score, q.extra, q.seen_at)"
            " IS DISTINCT FROM (s.email, s.full_name, s.score, s.extra, s.seen_at)"
        ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path) -> Iterator[World]:
    made = World(database, servers.endpoints.admin_url, tmp_path)
    yield made
    made.close()


def test_the_table_equals_the_query_and_the_second_run_sends_only_the_changes(world: World) -> None:
    first = world.run()
    assert (first.state, first.counts["accepted"], world.differences()) == ("succeeded", ROWS, 0)
    world.change()

    second = world.run()

    assert (second.state, second.counts["upserts"], second.counts["deletes"]) == ("succeeded", 86 + 50, 20)
    assert world.differences() == 0


STEPS = [
    "plan",
    "extract",
    "after_publish",
    "diff",
    "after_change_log",
    "after_mark_sent",
    "after_write",
    "before_ack",
    "after_ack",
    "fold",
]


@pytest.mark.parametrize("step", STEPS)
def test_wherever_the_process_dies_each_row_is_applied_exactly_once(world: World, step: str) -> None:
    world.run()
    world.change()
    world.note_what_is_applied()
    run_id = world.new_run()

    def die(name: str) -> None:
        if name == step:
            raise Crash(step)

    with pytest.raises(Crash):
        world.attempt(run_id, die)
    assert world.attempt(run_id).state == "succeeded"

    assert world.differences() == 0
    applied = world.admin.execute("SELECT count(*), count(DISTINCT id) FROM applied").fetchone()
    assert applied == (156, 156)


@pytest.mark.parametrize("is_concluded", [False, True])
def test_what_the_table_took_without_our_knowing_is_not_applied_again(world: World, is_concluded: bool) -> None:
    world.admin.execute("CREATE TABLE subscriber AS TABLE customer WITH NO DATA")
    world.admin.execute("CREATE UNIQUE INDEX ON subscriber (id)")
    world.note_what_is_applied()
    run_id = world.new_run()

    def die(step: str) -> None:
        if step == "before_ack":
            raise Crash(step)

    with pytest.raises(Crash):
        world.attempt(run_id, die)
    if is_concluded:
        world.end(run_id)
    else:  # its worker died for the last time: nobody was there to fold
        world.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", (run_id,))
    assert world.run().state == "succeeded"

    assert world.differences() == 0
    assert world.admin.execute("SELECT count(*), count(DISTINCT id) FROM applied").fetchone() == (ROWS, ROWS)


def test_a_row_that_the_table_refuses_is_a_rejection_and_the_others_arrive(world: World) -> None:
    world.run()
    world.admin.execute("ALTER TABLE subscriber ADD CHECK (email <> 'poison')")
    world.admin.execute("UPDATE customer SET email = 'poison' WHERE id = 5")
    world.change()

    outcome = world.run()

    assert (outcome.state, outcome.counts["rejected"]) == ("partial", 1)
    assert world.differences() == 1


def test_infinite_timestamps_are_rejections_and_their_rows_are_kept(world: World) -> None:
    world.run()
    world.admin.execute("UPDATE customer SET seen_at = 'infinity' WHERE id = 9")

    outcome = world.run()

    assert (outcome.state, outcome.counts["refused"], outcome.counts["deletes"]) == ("partial", 1, 0)


def test_a_key_range_of_casted_and_nested_fields_arrives(world: World) -> None:
    world.spec = SyncSpec(
        name="people",
        source="w",
        sink="s",
        query="SELECT id, email, extra FROM customer",
        key=("id",),
        stream="nested",
        mode=Mode.UPSERT,
        mapping=(
            MappingEntry(target="id", column="id", cast="text"),
            MappingEntry(target="channels.email", column="email"),
            MappingEntry(target="extra", column="extra"),
            MappingEntry(target="origin", constant="warehouse"),
        ),
    )

    assert world.run().state == "succeeded"

    row = world.admin.execute("SELECT id, channels, extra, origin FROM nested WHERE id = '7'").fetchone()
    assert row == ("7", {"email": "user7@example.com"}, {"n": 7}, "warehouse")
