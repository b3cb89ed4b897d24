"""All of a run that comes before its first write: plan → extract → diff. At its end the change log is stored.

What is stored on the way is gone on with: a plan that can still be read, and a stage whose every split is published. Anything else begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from wsync_engine.model.ids import uuid7
from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.before import before_fields
from wsync_engine.pipeline.carried import carried_rows
from wsync_engine.pipeline.diff import DiffCounts, DiffInput, diff_partition
from wsync_engine.pipeline.extract import StagedSplit, extract_split
from wsync_engine.pipeline.job import Job, scratch_of, stream_of
from wsync_engine.pipeline.local_database import SnapshotLost
from wsync_engine.pipeline.log_record import Aside, LogRecord, PartRead
from wsync_engine.pipeline.manifest import Manifest, partitions_for
from wsync_engine.pipeline.mapping import CompiledMapping
from wsync_engine.pipeline.orders import Comparison, ReadOrder
from wsync_engine.pipeline.reading import FieldsChanged, ReadFrom, begin_reading, explain_refusal, query_of
from wsync_engine.pipeline.refusals import refusals_of
from wsync_engine.pipeline.shape import key_casts
from wsync_engine.pipeline.snapshot import current_manifest
from wsync_engine.pipeline.stream_check import cast_by_field, check_fields
from wsync_engine.pipeline.tasks import Result, spread
from wsync_engine.pipeline.unsure_keys import is_more_wanted, unsure_keys_of, with_unsure_keys
from wsync_engine.pipeline.versions import version_of
from wsync_engine.state.records import PublishedSplit, RunRecord, SnapshotRow
from wsync_sdk import ConfigError, FatalError, PlanExpired, ReadPlan, StateError

__all__ = ["MOST_PLANS", "DiffWork", "ExtractWork", "base_manifest", "check_books", "prepare"]

MOST_PLANS = 3
_NEVER_LATER_US = 2**62
"""No backoff ends after it."""
MOST_LISTED = 10_000
"""Refused rows that a run lists one by one; its counts have all of them."""


def prepare(job: Job, record: RunRecord) -> None:
    """Leave the change log stored.

    :raises WsyncError: what stopped it; nothing was sent.
    """
    if _go_on(job, record):
        return
    from_start = record.adopt  # the sink has everything, so everything is read
    for attempt in range(1, MOST_PLANS + 1):
        base = job.books.snapshot(job.sync_id).version
        try:
            _begin(job, adopt=record.adopt, from_start=from_start)
            return
        except PlanExpired as exc:
            if attempt == MOST_PLANS:
                raise
            from_start = from_start or isinstance(exc, FieldsChanged)
            job.books.event("plan.expired", {"attempt": attempt})
        except SnapshotLost:
            # Beside a dry run a real one may end: the files it replaced are gone, and the plan would be stale.
            if attempt == MOST_PLANS or job.books.snapshot(job.sync_id).version == base:
                raise
            job.books.event("base.moved", {"attempt": attempt})


def _go_on(job: Job, record: RunRecord) -> bool:
    """Go on where the run was left, if that is worth something; False: it begins anew."""
    if record.plan is None:
        return False
    try:
        if record.comparison is not None:
            _compare(job, record)
            return True
        order = ReadOrder.from_bytes(record.plan, job.cipher)
        row = job.books.snapshot(job.sync_id)
        manifest = base_manifest(job, row, adopt=record.adopt)
        if not order.is_durable or manifest.version != record.base_version:
            job.source.release(order.plan)
            return False
        if order.reading is not None and not order.reading.is_whole and is_more_wanted(row):
            job.source.release(order.plan)  # what is to be offered again is not among what it reads
            return False
        _extract(job, record, order, manifest)
    except (PlanExpired, SnapshotLost) as exc:  # what was staged, or compared with, is gone
        job.books.event("preparation.lost", {"error": type(exc).__name__})
        return False
    return True


def _begin(job: Job, *, adopt: bool, from_start: bool) -> None:
    row = job.books.snapshot(job.sync_id)
    manifest = base_manifest(job, row, adopt=adopt)
    job.context.check()
    generation = job.books.begin_plan()
    job.context.faults("plan")
    reading = begin_reading(job, row, from_start=from_start)
    plan = _plan(job, reading)
    try:
        order = _order(job, plan, manifest, reading, planned_after=row.delivery)
        job.books.store_plan(order.to_bytes(job.cipher), manifest.version)
        job.context.faults("after_plan")
    except BaseException:
        job.source.release(plan)
        raise
    try:
        _extract(job, job.books.load(), order, manifest)
    except PlanExpired:
        job.storage.drop_stage(str(job.books.run_id), generation)
        raise


def _order(job: Job, plan: ReadPlan, manifest: Manifest, reading: ReadFrom | None, *, planned_after: int) -> ReadOrder:
    """How the plan is read.

    :raises ConfigError: the result does not fit the mapping, the stream or the snapshot: said before the query costs anything more.
    """
    stream = stream_of(job, job.spec.stream)
    order = ReadOrder(
        plan=plan,
        spec=job.spec,
        partitions=partitions_for(plan.estimated_rows, manifest, rows_per_partition=job.budget.rows_per_partition),
        seed=manifest.seed,
        reading=reading,
        planned_after=planned_after,
        casts=cast_by_field(stream),
    )
    mapping = order.mapping()
    check_fields(job.spec, stream, mapping.schema)
    key_casts(manifest.key or mapping.key_columns, mapping.key_columns)
    if reading is not None:
        reading.column(job, plan.schema)
        reading.check_fields(mapping.schema)
    return order


def _plan(job: Job, reading: ReadFrom | None) -> ReadPlan:
    query = query_of(job.spec, job.parameters if reading is None else reading.parameters)
    try:
        return job.source.plan(query, job.read_limits, _PlanContext(job))
    except ConfigError:
        explain_refusal(job, reading)
        raise


class _PlanContext:
    """What `Source.plan` may ask."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def tag(self) -> str:
        return self._job.context.tag

    def started(self, handle: bytes) -> None:
        self._job.books.store_handle(self._job.cipher.encrypt(handle))

    def is_cancelled(self) -> bool:
        return self._job.context.is_cancelled()


def base_manifest(job: Job, row: SnapshotRow, *, adopt: bool) -> Manifest:
    """The snapshot that the run starts from, with every resync that was asked for.

    :raises SnapshotLost: its files are missing or damaged.
    """
    manifest, lost_files = current_manifest(row, job.storage, seed=job.seed, is_adopting=adopt, scratch=scratch_of(job), budget=job.budget)
    if lost_files:
        job.books.event("snapshot.restarted", {"lost_files": lost_files})
    return with_unsure_keys(manifest, row, job.cipher)


# -- extract


def _extract(job: Job, record: RunRecord, order: ReadOrder, manifest: Manifest) -> None:
    """Stage all splits, let the plan go, and compare."""
    generation = record.plan_generation
    mapping = order.mapping()
    is_over = False
    try:
        published = {split.part for split in job.books.splits(generation)}
        left = [split.index for split in order.plan.splits if split.index not in published]
        if left:
            spread(job, "extract", left, ExtractWork(job, record, order, mapping), is_left=order.is_durable)
        is_over = True
    finally:
        if is_over or not order.is_durable or not job.context.goes_back():  # else another process goes on with it
            job.source.release(order.plan)
    _store_comparison(job, record, order, manifest.grown(order.partitions), mapping)
    job.context.faults("after_extract")
    _compare(job, job.books.load())


class ExtractWork:
    """Reads a split, maps and hashes its rows, stages them by partition."""

    def __init__(self, job: Job, record: RunRecord, order: ReadOrder, mapping: CompiledMapping | None = None) -> None:
        self._job = job
        self._generation = record.plan_generation
        self._order = order
        self._mapping = order.mapping() if mapping is None else mapping
        self._splits = {split.index: split for split in order.plan.splits}

    def execute(self, part: int, epoch: int) -> Result:
        """From its start; its files count once it is published."""
        job = self._job
        run_id = str(job.books.run_id)
        staged = extract_split(
            job.source,
            self._splits[part],
            schema=self._order.plan.schema,
            mapping=self._mapping,
            partitions=self._order.partitions,
            folder=job.storage.stage_folder(run_id, self._generation),
            scratch=job.storage.scratch_folder(run_id),
            attempt=str(uuid7()),
            budget=job.budget,
            on_batch=self._on_batch,
            cursor=self._order.cursor(),
        )
        job.books.publish_split(self._generation, _published(job, staged))
        job.context.faults("after_publish")
        return Result()

    def clean_up(self, part: int) -> None:
        """Nothing is left of a split that was read."""

    def _on_batch(self, rows: int) -> None:
        self._job.context.check()
        self._job.context.faults("extract")
        self._job.context.count("read", rows)


def _published(job: Job, staged: StagedSplit) -> PublishedSplit:
    files = {partition: [job.storage.relative(path) for path in paths] for partition, paths in staged.files.items()}
    return PublishedSplit(
        part=staged.part,
        files=files,
        read_rows=staged.read_rows,
        refused_rows=staged.refused_rows,
        unreadable_keys=staged.unreadable_keys,
        cursor=None if staged.cursor is None else staged.cursor.to_json(job.cipher),
        null_cursors=staged.null_cursors,
    )


# -- diff


def _store_comparison(job: Job, record: RunRecord, order: ReadOrder, manifest: Manifest, mapping: CompiledMapping) -> None:
    splits = job.books.splits(record.plan_generation)
    unreadable = sum(split.unreadable_keys for split in splits)
    comparison = Comparison(
        log=_log_record(job, manifest, mapping, order, splits),
        read_rows=sum(split.read_rows for split in splits),
        withhold_deletes=(unreadable > 0 or record.adopt) and order.spec.mode is Mode.MIRROR,
        offer_before_us=_NEVER_LATER_US if record.adopt or record.offer_rejected else int(time.time() * 1_000_000),
        duplicates=order.spec.duplicates,
    )
    job.books.store_comparison(comparison.to_json())


def _log_record(job: Job, manifest: Manifest, mapping: CompiledMapping, order: ReadOrder, splits: Sequence[PublishedSplit]) -> LogRecord:
    """What the change log will be: its files are still to be written."""
    partitions = range(manifest.partitions)
    needed = stream_of(job, order.spec.stream).needs_before
    reading = order.reading
    return LogRecord(
        partitions=manifest.partitions,
        files=(),
        stage={str(partition): [path for split in splits for path in split.files.get(partition, [])] for partition in partitions},
        base=manifest,
        key=mapping.key_columns,
        shape=mapping.shape,
        schema=mapping.schema,
        mode=order.spec.mode,
        destination=job.destination,
        stream=order.spec.stream,
        before=tuple(field.path for field in before_fields(needed, mapping.schema)),
        planned_after=order.planned_after,
        part=None if reading is None else PartRead(former=reading.former, settled=None, is_whole=reading.is_whole),
    )


def _compare(job: Job, record: RunRecord) -> None:
    """Compare all partitions, check the books, store the change log."""
    if record.comparison is None or record.plan is None:
        raise StateError("the run has nothing to compare", next_step="report this")
    comparison = Comparison.from_json(record.base_version or 0, record.comparison)
    partitions = range(comparison.log.partitions)
    results = spread(job, "diff", partitions, DiffWork(job, record, comparison))
    counts = reduce(add, (DiffCounts.from_counts(results[part]["counts"]) for part in partitions))
    if record.adopt:  # what left the result stays in the snapshot, for the next run to delete
        counts = replace(counts, withheld_deletes=0)
    is_current, counts = version_of(comparison.log, counts, is_adopted=record.adopt)
    check_books(comparison.read_rows, counts)
    log = replace(
        comparison.log,
        is_current=is_current,
        files=tuple(results[part]["log"] for part in partitions),
        stage={str(part): [] for part in partitions},
        aside=tuple(Aside(gone=results[part]["gone"], held=results[part]["held"]) for part in partitions),
    )
    counted = {"read": comparison.read_rows, **counts.to_counts()}
    log, counted = _with_reading(job, record, log, counted, counts)
    job.books.store_change_log(log.to_json(), counted)
    job.context.faults("after_change_log")
    job.storage.drop_stage(str(job.books.run_id), record.plan_generation)


def _with_reading(
    job: Job, record: RunRecord, log: LogRecord, counted: dict[str, int], counts: DiffCounts
) -> tuple[LogRecord, dict[str, int]]:
    """How far the result is read once every change is settled."""
    assert record.plan is not None
    reading = ReadOrder.from_bytes(record.plan, job.cipher).reading
    if reading is None:
        return log, counted
    splits = job.books.splits(record.plan_generation)
    settled = reading.ended(job.cipher, splits, log.schema, is_clear=counts.refused_duplicates == 0)
    part = PartRead(former=reading.former, settled=settled, is_whole=reading.is_whole)
    return replace(log, part=part), {**counted, "null_cursors": sum(split.null_cursors for split in splits)}


class DiffWork:
    """Compares a partition of the stage with the snapshot, and writes its part of the change log."""

    def __init__(self, job: Job, record: RunRecord, comparison: Comparison) -> None:
        self._job = job
        self._generation = record.plan_generation
        self._comparison = comparison

    def execute(self, part: int, epoch: int) -> Result:
        """Into files of its own; they count once the result is stored."""
        job = self._job
        job.context.check()
        job.context.faults("diff")
        name = f"{self._generation}-{part}-{uuid7()}.parquet"
        with carried_rows(job, self._comparison.log, part) as carried:
            task = self._input(part, name)
            task = replace(task, carried=carried)
            counts = diff_partition(
                task,
                job.cipher.sealer(),
                withhold_deletes=self._comparison.withhold_deletes,
                scratch=scratch_of(job),
                budget=job.budget,
            )
            rejections = []
            if counts.refused or counts.refused_duplicates:
                limit = -(-MOST_LISTED // self._comparison.log.partitions)
                rejections = refusals_of(task, job.cipher, scratch_of(job), job.budget, limit=limit)
        job.context.count("partitions_compared", 1)
        return Result(values={"counts": counts.to_counts(), **self._written(task)}, rejections=rejections)

    def clean_up(self, part: int) -> None:
        """Its part of the stage is not needed any more; a big result would else lie on the disk twice."""
        for name in self._comparison.log.stage[str(part)]:
            self._job.storage.absolute(name).unlink(missing_ok=True)

    def _input(self, part: int, name: str) -> DiffInput:
        job, comparison = self._job, self._comparison
        folder, beside = job.storage.log_folder(str(job.books.run_id)), job.storage.aside_folder(str(job.books.run_id))
        return replace(
            comparison.log.diff_input(part, job.storage, log=folder / f"changes-{name}"),
            duplicates=comparison.duplicates,
            offer_before_us=comparison.offer_before_us,
            gone=beside / f"gone-{name}",
            held=beside / f"held-{name}",
            unsure=unsure_keys_of(comparison.log.base, job.cipher),
        )

    def _written(self, task: DiffInput) -> dict[str, str | None]:
        """The stored names of the files that there are: where there are no rows, there is none but the log."""
        files = {"log": task.log, "gone": task.gone, "held": task.held}
        return {kind: self._job.storage.relative(path) if path is not None and path.is_file() else None for kind, path in files.items()}


def check_books(read_rows: int, counts: DiffCounts) -> None:
    """See that every row that was read has one place in the counts.

    :raises FatalError: one has none, or two.
    """
    parts = counts.unchanged + counts.upserts + counts.duplicates + counts.refused + counts.held_back
    if read_rows + counts.carried != counts.staged or counts.staged != parts:
        raise FatalError(
            f"the books do not balance: {read_rows} rows read, {counts.carried} carried, {counts.staged} staged, {parts} accounted for",
            next_step="report this; nothing was sent",
        )
