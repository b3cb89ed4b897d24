"""Mapping, staging, comparing and folding over Parquet, without a state store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsync_engine.model.sync import Duplicates, MappingEntry, Mode, SyncSpec
from wsync_engine.pipeline.canonical import ALGORITHM, partition_of_key
from wsync_engine.pipeline.diff import DiffCounts, DiffInput, diff_partition
from wsync_engine.pipeline.extract import extract_split
from wsync_engine.pipeline.fold import Target, Verdicts, fold_partition
from wsync_engine.pipeline.local_database import Budget, opened
from wsync_engine.pipeline.manifest import KeyColumn, Manifest
from wsync_engine.pipeline.mapping import HASH, REFUSAL, compile_mapping
from wsync_engine.secrets.values import ValueSealer
from wsync_sdk import REFUSED_COLUMNS, ConfigError, RowRange, Split

BUDGET = Budget()
SCHEMA = pa.schema([("id", pa.int64()), ("email", pa.string()), ("score", pa.string())])


class TableSource:
    """Yields one table in batches of two rows."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        yield from self.table.to_batches(max_chunksize=2)


SEALER = ValueSealer([bytes(32)])


def spec(**changes: Any) -> SyncSpec:
    values: dict[str, Any] = {
        "name": "people",
        "source": "warehouse",
        "sink": "store",
        "query": "SELECT",
        "key": ("id",),
        "stream": "people",
        "mode": Mode.MIRROR,
    }
    return SyncSpec(**(values | changes))


def rows(*values: tuple[Any, ...], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, value, strict=True)) for value in values], schema=schema)


class World:
    """One partition's files from run to run."""

    def __init__(self, folder: Path, sync: SyncSpec) -> None:
        self.folder = folder
        self.sync = sync
        self.snapshot: Path | None = None
        self.count = 0

    def run(
        self, table: pa.Table, verdicts: Sequence[tuple[int, int, str]] | None = None, now_us: int = 0
    ) -> tuple[DiffCounts, list[dict[str, Any]]]:
        self.count += 1
        stage = self.folder / f"stage-{self.count}"
        stage.mkdir()
        mapping = compile_mapping(self.sync, table.schema, seed="seed", partitions=1)
        staged = extract_split(
            TableSource(table),  # type: ignore[arg-type]
            Split(index=0, token=b""),
            schema=table.schema,
            mapping=mapping,
            partitions=1,
            folder=stage,
            scratch=self.folder,
            attempt="a",
            budget=BUDGET,
            on_batch=lambda rows: None,
        )
        assert staged.read_rows == table.num_rows
        log = self.folder / f"log-{self.count}.parquet"
        key = tuple(KeyColumn(name=n, type=t) for n, t in zip(mapping.key, mapping.key_types, strict=True))
        manifest = Manifest(version=1, partitions=1, files=(None,), algorithm=ALGORITHM, seed="seed", key=key)
        task = DiffInput(
            partition=0,
            stage=staged.files[0],
            snapshot=self.snapshot,
            manifest=manifest,
            key=key,
            fields=tuple(mapping.schema.names),
            mode=self.sync.mode,
            duplicates=self.sync.duplicates,
            offer_before_us=now_us,
            log=log,
        )
        counts = diff_partition(task, SEALER, withhold_deletes=staged.unreadable_keys > 0, scratch=self.folder, budget=BUDGET)
        changes = pq.read_table(log).to_pylist()
        given = [(0, len(changes) - 1, "accepted")] if verdicts is None and changes else verdicts or []
        acked = [(RowRange(first, last), verdict) for first, last, verdict in given if verdict != "sent"]
        sent = [RowRange(first, last) for first, last, _ in given]
        target = self.folder / f"snapshot-{self.count}.parquet"
        fold_partition(
            task, Verdicts(acked=acked, sent=sent), Target(snapshot=target), SEALER, now_us=now_us, scratch=self.folder, budget=BUDGET
        )
        self.snapshot = target
        return counts, changes


def operations(changes: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(change["wsync_op"], change["id"]) for change in changes]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, spec())


def test_a_second_run_sends_only_what_changed(world: World) -> None:
    world.run(rows((1, "a", "x"), (2, "b", None), (3, "c", "z")))

    counts, changes = world.run(rows((1, "a", "x"), (2, "B", None), (4, "d", "w")))

    assert operations(changes) == [("upsert", 2), ("delete", 3), ("upsert", 4)]
    assert (counts.unchanged, counts.upserts, counts.deletes, counts.snapshot_rows) == (1, 2, 1, 3)


def test_upsert_mode_never_deletes(tmp_path: Path) -> None:
    world = World(tmp_path, spec(mode=Mode.UPSERT))
    world.run(rows((1, "a", "x"), (2, "b", None)))

    assert operations(world.run(rows((1, "a", "x")))[1]) == []
    assert operations(world.run(rows((1, "a", "x"), (2, "b", None)))[1]) == []


def test_null_and_empty_text_are_different_payloads(world: World) -> None:
    world.run(rows((1, "", None)))

    assert operations(world.run(rows((1, None, "")))[1]) == [("upsert", 1)]


def test_a_value_can_not_move_between_fields_unseen(world: World) -> None:
    world.run(rows((1, "ab", "c")))

    assert operations(world.run(rows((1, "a", "bc")))[1]) == [("upsert", 1)]


def test_what_was_sent_without_a_verdict_is_offered_again(world: World) -> None:
    world.run(rows((1, "a", "x"), (2, "b", "y")), [(0, 0, "accepted"), (1, 1, "sent")])

    assert operations(world.run(rows((1, "a", "x"), (2, "b", "y")))[1]) == [("upsert", 2)]


def test_what_may_have_been_sent_is_deleted_when_it_leaves(world: World) -> None:
    world.run(rows((1, "a", "x"), (2, "b", "y")), [(0, 0, "accepted"), (1, 1, "sent")])

    assert operations(world.run(rows((1, "a", "x")))[1]) == [("delete", 2)]


def test_what_was_not_sent_is_not_in_the_snapshot(world: World) -> None:
    world.run(rows((1, "a", "x"), (2, "b", "y")), [(0, 0, "accepted")])

    counts, changes = world.run(rows((1, "a", "x")))

    assert (operations(changes), counts.snapshot_rows) == ([], 1)


def test_a_rejected_change_is_held_back_until_its_time_or_its_change(world: World) -> None:
    hour = 3_600_000_000
    world.run(rows((1, "a", "x"), (2, "b", "y")), [(0, 0, "accepted"), (1, 1, "rejected")])

    counts, held = world.run(rows((1, "a", "x"), (2, "b", "y")), now_us=hour - 1)
    assert (operations(held), counts.held_back) == ([], 1)

    assert operations(world.run(rows((1, "a", "x"), (2, "b", "Y")), [(0, 0, "rejected")], now_us=hour - 1)[1]) == [("upsert", 2)]
    assert operations(world.run(rows((1, "a", "x"), (2, "b", "Y")), now_us=3 * hour)[1]) == [("upsert", 2)]


def test_a_rejected_row_that_leaves_is_not_deleted(world: World) -> None:
    world.run(rows((1, "a", "x")), [(0, 0, "rejected")])

    assert operations(world.run(rows((2, "b", "y")))[1]) == [("upsert", 2)]


def test_a_rejected_change_leaves_the_old_entry(world: World) -> None:
    world.run(rows((1, "a", "x")))
    world.run(rows((1, "A", "x")), [(0, 0, "rejected")])

    assert operations(world.run(rows((1, "a", "x")))[1]) == []
    assert operations(world.run(rows((2, "b", "y")))[1]) == [("delete", 1), ("upsert", 2)]


def test_an_accepted_delete_is_forgotten_and_a_rejected_one_is_not(world: World) -> None:
    world.run(rows((1, "a", "x"), (2, "b", "y")))
    world.run(rows(), [(0, 0, "accepted"), (1, 1, "rejected")])

    assert operations(world.run(rows(), now_us=10)[1]) == []
    assert operations(world.run(rows(), now_us=4_000_000_000)[1]) == [("delete", 2)]


def test_a_refused_row_is_present_and_never_deleted(tmp_path: Path) -> None:
    mapping = (MappingEntry(target="id", column="id"), MappingEntry(target="score", column="score", cast="integer"))
    world = World(tmp_path, spec(mapping=mapping))
    world.run(rows((1, "a", "7")))

    counts, changes = world.run(rows((1, "a", "seven")))

    assert (operations(changes), counts.refused, counts.deletes) == ([], 1, 0)


@pytest.mark.parametrize(("rule", "expected"), [("first", "a"), ("last", "c")])
def test_of_duplicates_the_named_one_is_sent(tmp_path: Path, rule: str, expected: str) -> None:
    world = World(tmp_path, spec(duplicates=Duplicates(rule=rule, by="score")))

    counts, changes = world.run(rows((1, "b", "2"), (1, "a", "1"), (1, "c", "3"), (2, "d", "1")))

    assert [(c["id"], c["email"]) for c in changes] == [(1, expected), (2, "d")]
    assert (counts.duplicates, counts.upserts, counts.refused_duplicates) == (2, 2, 0)


@pytest.mark.parametrize("duplicates", [Duplicates(), Duplicates(rule="first", by="score")])
def test_duplicates_without_a_winner_are_refused_and_their_key_kept(tmp_path: Path, duplicates: Duplicates) -> None:
    world = World(tmp_path, spec(duplicates=duplicates))
    world.run(rows((1, "a", "x")))

    counts, changes = world.run(rows((1, "b", "2"), (1, "c", "2")))

    assert (operations(changes), counts.duplicates, counts.refused_duplicates) == ([], 2, 1)


def test_a_null_key_is_refused_and_blocks_nothing(world: World) -> None:
    world.run(rows((1, "a", "x")))

    counts, changes = world.run(rows((None, "b", "y")))

    assert (operations(changes), counts.refused) == ([("delete", 1)], 1)


def test_a_key_that_can_not_be_read_withholds_the_deletes(tmp_path: Path) -> None:
    schema = pa.schema([*SCHEMA, (REFUSED_COLUMNS, pa.list_(pa.string()))])
    world = World(tmp_path, spec())
    world.run(rows((1, "a", "x", []), (2, "b", "y", None), schema=schema))

    counts, changes = world.run(rows((None, "a", "x", ["id"]), schema=schema))

    assert (operations(changes), counts.deletes, counts.withheld_deletes) == ([], 0, 2)


def test_an_unrepresentable_value_refuses_its_row_only(tmp_path: Path) -> None:
    schema = pa.schema([*SCHEMA, (REFUSED_COLUMNS, pa.list_(pa.string()))])
    world = World(tmp_path, spec())

    counts, changes = world.run(rows((1, None, "x", ["email"]), (2, "b", "y", None), schema=schema))

    assert (operations(changes), counts.refused) == ([("upsert", 2)], 1)


def test_dotted_targets_become_nested_fields(tmp_path: Path) -> None:
    mapping = (
        MappingEntry(target="id", column="id"),
        MappingEntry(target="channels.email", column="email"),
        MappingEntry(target="channels.kind", constant="personal"),
        MappingEntry(target="n", constant=7),
    )

    changes = World(tmp_path, spec(mapping=mapping)).run(rows((1, "it's", "x")))[1]

    assert changes[0]["channels"] == {"email": "it's", "kind": "personal"}
    assert changes[0]["n"] == 7


def test_several_columns_become_a_list_without_nulls(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64()), ("home", pa.string()), ("work", pa.string()), ("age", pa.int32())])
    mapping = (
        MappingEntry(target="id", column="id"),
        MappingEntry(target="channels.email", columns=("work", "home")),
        MappingEntry(target="numbers", columns=("age", "home"), cast="integer"),
    )
    world = World(tmp_path, spec(mapping=mapping))
    table = rows((1, "1", "w@x", 5), (2, "2", None, None), (3, None, None, 7), (4, "x", "w", 1), schema=schema)

    counts, changes = world.run(table)
    again, _ = world.run(table)

    assert [(change["channels"]["email"], change["numbers"]) for change in changes] == [
        (["w@x", "1"], [5, 1]),
        (["2"], [2]),
        ([], [7]),
    ]
    assert (counts.refused, again.unchanged) == (1, 3)  # `x` is no number


def test_a_required_list_needs_a_value_and_a_change_of_order_is_a_change(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64()), ("home", pa.string()), ("work", pa.string())])
    mapping = (MappingEntry(target="id", column="id"), MappingEntry(target="emails", columns=("work", "home"), required=True))
    world = World(tmp_path, spec(mapping=mapping))
    first, _ = world.run(rows((1, "a", "b"), (2, None, None), schema=schema))

    second, changes = world.run(rows((1, "b", "a"), (2, None, None), schema=schema))

    assert (first.refused, second.refused) == (1, 1)
    assert [change["emails"] for change in changes] == [["a", "b"]]


def test_an_unrepresentable_value_in_one_of_the_columns_refuses_the_row(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64()), ("home", pa.string()), ("work", pa.string()), (REFUSED_COLUMNS, pa.list_(pa.string()))])
    mapping = (MappingEntry(target="id", column="id"), MappingEntry(target="emails", columns=("work", "home")))

    counts, changes = World(tmp_path, spec(mapping=mapping)).run(rows((1, "a", None, ["work"]), (2, "b", None, None), schema=schema))

    assert (operations(changes), counts.refused) == ([("upsert", 2)], 1)


@pytest.mark.parametrize("texts", [["t"], ["t", "'b'"]])
def test_partitions_spread_keys_and_split_when_their_number_grows(texts: list[str]) -> None:
    import duckdb

    few, many = partition_of_key(texts, 4), partition_of_key(texts, 16)
    found = duckdb.sql(f"SELECT {few}, {many}, count(*) FROM (SELECT 'k' || n AS t FROM range(16000) r(n)) GROUP BY ALL").fetchall()

    assert len(found) == 16
    assert all(coarse == fine & 3 and 800 < rows < 1200 for coarse, fine, rows in found)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ((MappingEntry(target="id", column="idd"),), "no column `idd`"),
        ((MappingEntry(target="id", column="id"), MappingEntry(target="id", column="email")), "mapped twice"),
        ((MappingEntry(target="a", column="id"), MappingEntry(target="a.b", column="email")), "also holds fields"),
        ((MappingEntry(target="email", column="email"),), "key `id`"),
        ((MappingEntry(target="wsync_op", column="id"),), "kept for the engine"),
        ((MappingEntry(target="id", column="id"), MappingEntry(target="a", columns=("email", "emial"))), "no column `emial`"),
        (
            (MappingEntry(target="id", column="id"), MappingEntry(target="a", columns=("email", "id"))),
            "different types: `email` VARCHAR, `id` BIGINT",
        ),
        ((MappingEntry(target="id", columns=("id",)), MappingEntry(target="email", column="email")), "key `id` is a list"),
    ],
)
def test_a_wrong_mapping_is_one_clear_error(mapping: tuple[MappingEntry, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compile_mapping(spec(mapping=mapping), SCHEMA, seed="seed", partitions=1)


def test_the_hash_of_a_row_is_the_written_definition(tmp_path: Path) -> None:
    """Golden: a change of these values re-sends every row of every user."""
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("b", pa.bool_()),
            ("f", pa.float64()),
            ("d", pa.decimal128(10, 2)),
            ("day", pa.date32()),
            ("at", pa.timestamp("us", tz="UTC")),
            ("raw", pa.binary()),
            ("tags", pa.list_(pa.string())),
            ("times", pa.list_(pa.timestamp("us"))),
        ]
    )
    from datetime import UTC, date, datetime
    from decimal import Decimal

    table = rows(
        (
            1,
            True,
            0.1,
            Decimal("1.50"),
            date(2024, 2, 29),
            datetime(2024, 2, 29, 1, 2, 3, 4, UTC),
            b"\x00\xff",
            ["ü", "b"],
            [datetime(2024, 2, 29)],  # noqa: DTZ001 - a wall clock's time is meant
        ),
        (2, None, -0.0, None, None, None, None, None, None),
        schema=schema,
    )
    World(tmp_path, spec()).run(table)
    staged = pq.read_table(tmp_path / "stage-1" / "split-0-a" / "part-0.parquet", columns=["id", HASH, REFUSAL])

    import hashlib
    import uuid

    prefix = hashlib.md5(
        (b"seed2:at:instant;1:b:boolean;1:d:decimal;3:day:date;1:f:float;2:id:integer;3:raw:binary;4:tags:nested;5:times:nested;"),
        usedforsecurity=False,
    ).hexdigest()[:16]
    texts = [
        prefix + '1709168523000004;true;1.50;2024-02-29;0.1;1;00FF;10:["ü","b"]23:["2024-02-29 00:00:00"]',
        prefix + "~;~;~;~;0.0;2;~;-1:-1:",
    ]
    expected = [uuid.UUID(bytes=hashlib.md5(text.encode(), usedforsecurity=False).digest()[::-1]) for text in texts]
    found = {row["id"]: row[HASH] for row in staged.to_pylist()}
    assert [uuid.UUID(bytes=bytes(found[n])) if isinstance(found[n], bytes) else found[n] for n in (1, 2)] == expected


def test_a_long_query_draws_no_bar_into_the_log(tmp_path: Path) -> None:
    with opened(tmp_path, BUDGET) as connection:
        assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)
