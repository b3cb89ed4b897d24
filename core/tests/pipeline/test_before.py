"""Streams that have to take the old value away are given it, in whatever way the runs before ended."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from wsync_engine.model.sync import Guards, MappingEntry
from wsync_engine.pipeline.context import no_faults
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_engine.secrets.keyring import Keyring
from wsync_sdk import Chunk, ConfigError, RetryableError, RowError, WriteResult, WsyncError

from .world import Crash, RecordingSink, World, crash_at


class AddressBook(RecordingSink):
    """Each key has a set of addresses: an upsert adds one, and only the before-values say which have to go."""

    def __init__(self) -> None:
        super().__init__()
        self.needs_before = frozenset({"name", "absent"})
        self.addresses: dict[int, set[str]] = {}
        self.told: list[tuple[int, Any]] = []

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        rows = chunk.to_rows()
        if self.fail is not None:
            raise self.fail
        if any(row["id"] in self.refuse for row in rows):
            raise RowError("refused", code="refused", next_step="mend the row")
        for row in rows:
            self.told.append((row["id"], row["wsync_before"]))
            known = {json.loads(value) for value in (row["wsync_before"] or {"name": []})["name"]}
            held = self.addresses.setdefault(row["id"], set())
            held -= known
            if row["wsync_op"] == "upsert" and row["name"] is not None:
                held.add(row["name"])
        if self.lose_replies:
            self.lose_replies -= 1
            raise RetryableError("reply lost", next_step="wait", retry_after_s=0.0)
        return WriteResult(accepted_rows=chunk.rows)

    @property
    def held(self) -> dict[int, set[str]]:
        return {key: addresses for key, addresses in self.addresses.items() if addresses}


@pytest.fixture
def book(world: World) -> AddressBook:
    world.sink = AddressBook()
    world.spec = replace(world.spec, guards=Guards(max_delete_percent=None, allow_empty=True))
    return world.sink


def in_step(world: World) -> dict[int, set[str]]:
    return {key: {name} for key, name in world.source.rows.items() if name is not None}


def snapshot_bytes(world: World) -> bytes:
    return b"".join(path.read_bytes() for path in Path(world.storage.root).rglob("snapshots/**/*.parquet"))


def test_a_changed_and_a_departed_row_come_with_what_was_sent_before(world: World, book: AddressBook) -> None:
    world.source.rows = {1: "one@old", 2: "two@old", 3: "three"}
    world.run()
    book.told.clear()
    world.source.rows = {1: "one@new", 3: "three", 4: "four"}

    world.run()

    assert book.told == [(1, {"name": ['"one@old"']}), (2, {"name": ['"two@old"']}), (4, None)]
    assert book.held == in_step(world)


def test_a_change_without_a_verdict_leaves_both_values_to_be_taken_away(world: World, book: AddressBook) -> None:
    world.source.rows = {1: "first"}
    world.run()
    world.source.rows = {1: "second"}
    book.lose_replies = 10
    world.failed_run()
    book.lose_replies = 0
    book.told.clear()
    world.source.rows = {1: "third"}

    world.run()

    assert [(key, sorted(known["name"])) for key, known in book.told] == [(1, ['"first"', '"second"'])]
    assert book.held == {1: {"third"}}


def test_a_rejected_change_leaves_what_was_known(world: World, book: AddressBook) -> None:
    world.source.rows = {1: "first"}
    world.run()
    world.source.rows, book.refuse = {1: "refused"}, frozenset({1})
    world.run()
    book.refuse = frozenset()
    book.told.clear()
    world.source.rows = {1: "second"}

    world.run()

    assert book.told == [(1, {"name": ['"first"']})]


def test_a_value_that_becomes_null_is_known_when_it_comes_back(world: World, book: AddressBook) -> None:
    for name in ("first", None, "second"):
        world.source.rows = {1: name}  # type: ignore[dict-item]
        world.run()

    assert book.told == [(1, None), (1, {"name": ['"first"']}), (1, {"name": []})]
    assert book.held == {1: {"second"}}


def test_after_adoption_and_after_a_resync_the_old_value_is_known(world: World, book: AddressBook) -> None:
    world.source.rows = {1: "adopted", 2: "stays"}
    book.addresses = {1: {"adopted"}, 2: {"stays"}}
    world.adopt()
    world.ask_for_resync()
    world.source.rows = {1: "new", 2: "stays"}

    world.run()

    assert book.told == [(1, {"name": ['"adopted"']}), (2, {"name": ['"stays"']})]
    assert book.held == in_step(world)


def test_nested_fields_lists_and_json_arrive_as_json_texts(world: World, book: AddressBook) -> None:
    world.spec = replace(
        world.spec,
        mapping=(
            MappingEntry(target="id", column="id"),
            MappingEntry(target="name", column="name"),
            MappingEntry(target="channels.mail", column="name"),
            MappingEntry(target="extra", column="name", cast="json"),
        ),
    )
    book.needs_before = frozenset({"name", "channels.mail", "channels.sms", "extra"})
    for name in ('{"x": [1]}', '"b"'):
        world.source.rows = {1: name}
        world.run()

    text = json.dumps('{"x": [1]}')
    assert book.told[-1] == (1, {"channels.mail": [text], "extra": ['{"x": [1]}'], "name": [text]})


def test_a_snapshot_from_before_the_stream_asked_is_read_and_knows_nothing(world: World, book: AddressBook) -> None:
    world.source.rows = {1: "first", 2: "stays"}
    book.needs_before = frozenset()
    book.verdict = None
    plain = RecordingSink()
    world.sink = plain
    world.run()
    world.sink = book
    book.needs_before = frozenset({"name"})
    for name in ("second", "third"):
        world.source.rows = {1: name, 2: "stays"}
        world.run()

    assert book.told == [(1, None), (1, {"name": ['"second"']})]
    world.sink = plain  # and back: nothing is kept for a stream that does not ask
    world.source.rows = {1: "fourth", 2: "stays"}
    world.run()
    columns = [pq.read_schema(path).names for path in Path(world.storage.root).rglob("snapshots/**/*.parquet")]
    assert ["wsync_before" in names for names in columns] == [False]


def test_the_snapshot_keeps_the_values_sealed(world: World, book: AddressBook) -> None:
    world.source.rows = {key: f"secret-{key}@example.com" for key in range(50)}
    world.run()

    files = list(Path(world.storage.root).rglob("snapshots/**/*.parquet"))
    values = [value for path in files for value in pq.read_table(path).column("wsync_before").to_pylist()]

    assert len(values) == 50
    assert all(value is not None and b"example" not in value for value in values)
    assert b"example" not in snapshot_bytes(world)


def test_values_of_another_key_end_the_run_with_what_to_do_and_send_nothing(world: World, book: AddressBook) -> None:
    world.source.rows = {1: "first", 2: "second"}
    world.run()
    book.told.clear()
    world.cipher = Keyring.throwaway().tenant(world.tenant_id)
    world.source.rows = {1: "changed", 2: "second"}

    with pytest.raises(ConfigError, match="can't be decrypted"):
        world.run()

    assert book.told == []


STEPS = ("after_mark_sent", "after_write", "before_ack", "after_ack", "fold", "before_finish", "after_change_log", "after_start_delivery")


def end_somehow(world: World, chance: random.Random) -> None:
    """A run that may die at any step, be continued by another holder, or end without anybody who concludes it."""
    run_id = world.new_run()
    for faults in (crash_at(chance.choice(STEPS), chance.randint(1, 4)), no_faults):
        job = world.job(run_id, faults)
        try:
            try:
                execute(job)
            except WsyncError as exc:
                conclude(job, exc)
            return
        except Crash:
            if chance.random() < 0.5:
                break
    ended = "UPDATE wsync.run SET state = 'failed', finished_at = now() WHERE run_id = %s AND state = 'running'"
    world.engine.execute(ended, (run_id,))


@pytest.mark.parametrize("seed", range(25))
def test_in_any_history_no_address_is_left_behind(world: World, book: AddressBook, seed: int) -> None:
    chance = random.Random(seed)
    world.source.rows = {key: f"a{key}" for key in range(30)}
    for turn in range(8):
        for key in chance.sample(range(40), 8):
            if chance.random() < 0.25:
                world.source.rows.pop(key, None)
            else:
                world.source.rows[key] = f"{chance.choice('abc')}{key}"
        book.lose_replies = chance.choice((0, 0, 1, 4, 9))
        book.refuse = frozenset(chance.sample(range(40), chance.choice((0, 0, 2))))
        end_somehow(world, chance)
        if turn == 5:
            world.ask_for_resync()
    book.lose_replies, book.refuse = 0, frozenset()
    world.ask_for_resync()  # what was rejected is offered again

    world.run()

    assert book.held == in_step(world)
