"""Made-up rows are the same ones wherever they are read, and what is counted adds up."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from wsync_generated import total
from wsync_generated.config import CountingConfig, GeneratedConfig
from wsync_generated.sink import CountingSink
from wsync_generated.source import SCHEMA, GeneratedSource
from wsync_sdk import OP, Chunk, ConfigError, Fence, PlanContext, Query, ReadLimits, ReadPlan, RowRange, RunRef, Target

RUN = RunRef(tenant_id="t", sync_id="s", run_id="r", delivery=1)
TARGET = Target(stream="subscribers", key=("id",), schema=SCHEMA)


class Context(PlanContext):
    tag = "test"
    handle = b""

    def started(self, handle: bytes) -> None:
        self.handle = handle

    def is_cancelled(self) -> bool:
        return False


def source(**config: object) -> GeneratedSource:
    return GeneratedSource(GeneratedConfig.model_validate({"rows": 1_000, **config}))


def plan(made: GeneratedSource, **limits: int) -> ReadPlan:
    return made.plan(Query(sql="SELECT"), ReadLimits(batch_rows=100, **limits), Context())


def read(made: GeneratedSource, planned: ReadPlan, offset: int = 0) -> pa.Table:
    stored = ReadPlan.from_bytes(planned.to_bytes())
    return pa.Table.from_batches([batch for split in stored.splits for batch in made.read(split, offset)], schema=SCHEMA)


def chunk(rows: pa.RecordBatch, key: str, op: str = "upsert") -> Chunk:
    changes = pa.record_batch([pa.array([op] * rows.num_rows), *rows.columns], names=[OP, *SCHEMA.names])
    fence = Fence(sync_id="s", delivery=1, partition=0, epoch=1)
    return Chunk(
        key=key, run=RUN, partition=0, range=RowRange(0, rows.num_rows - 1), target=TARGET, changes=changes, records=None, fence=fence
    )


def test_many_splits_hold_the_rows_of_one_each_once() -> None:
    one, many = plan(source()), plan(source(), max_splits=7)

    assert (len(one.splits), len(many.splits)) == (1, 7)
    assert read(source(), many).equals(read(source(), one))
    assert read(source(), one).column("id").to_pylist() == list(range(1_000))


def test_a_split_is_read_from_any_row_on() -> None:
    planned = plan(source())

    assert read(source(), planned, offset=950).equals(read(source(), planned).slice(950))


def test_splits_are_not_made_smaller_than_is_worth_it() -> None:
    assert len(plan(source(), max_splits=7, rows_per_split=400).splits) == 3
    assert len(plan(source(rows=0), max_splits=7).splits) == 1


def test_a_revision_changes_some_scores_and_nothing_else() -> None:
    before, after = (read(made, plan(made)) for made in (source(rows=100_000), source(rows=100_000, revision=1, changed_percent=2)))

    changed = pc.sum(pc.not_equal(before.column("score"), after.column("score"))).as_py()
    assert 1_500 < changed < 2_500
    assert after.select(["id", "tier"]).equals(before.select(["id", "tier"]))


def test_parameters_are_refused_since_no_query_is_executed() -> None:
    with pytest.raises(ConfigError, match="take no parameters"):
        source().estimate(Query(sql="SELECT :x", parameters={"x": 1}))


def test_what_is_sent_twice_under_one_key_counts_once_and_a_torn_line_not_at_all(tmp_path: Path) -> None:
    made = source()
    rows = made.preview(Query(sql="SELECT"), 10).rows
    sink = CountingSink(CountingConfig(folder=tmp_path / "counted"))
    assert sink.check().ok
    sink.begin(RUN, TARGET)

    for key, op in (("a", "upsert"), ("a", "upsert"), ("b", "delete")):
        assert sink.write(chunk(rows, key, op), b"").accepted_rows == 10
    (file,) = (tmp_path / "counted").glob("*.jsonl")
    file.write_bytes(file.read_bytes() + b'{"chunk": "c", "ro')

    found = total(tmp_path / "counted")
    assert (found.rows, found.ids, found.deletes, found.repeated, found.differing) == (20, 90, 10, 1, 0)


def test_other_rows_under_the_same_key_are_found(tmp_path: Path) -> None:
    sink = CountingSink(CountingConfig(folder=tmp_path))
    rows = source().preview(Query(sql="SELECT"), 10).rows

    sink.write(chunk(rows.slice(0, 5), "a"), b"")
    sink.write(chunk(rows.slice(5, 5), "a"), b"")

    assert total(tmp_path).differing == 1


def test_a_stream_without_whole_numbers_is_refused(tmp_path: Path) -> None:
    target = Target(stream="s", key=("id",), schema=pa.schema([("id", pa.string())]))

    with pytest.raises(ConfigError, match="whole numbers"):
        CountingSink(CountingConfig(folder=tmp_path)).begin(RUN, target)


def test_a_folder_that_depends_on_where_the_worker_was_started_is_refused() -> None:
    with pytest.raises(ValidationError, match="whole path"):
        CountingConfig(folder=Path("here"))


def test_a_folder_that_cant_be_written_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    report = CountingSink(CountingConfig(folder=tmp_path / "file" / "folder")).check()

    assert not report.ok
    assert report.findings[0].next_step
