"""A run from its claim to its end: plan → extract → diff → guards → deliver → finish.

`execute` may be called again for the same run, by another process with a higher epoch, after a death at any point: each phase begins by asking Postgres
how far the run came. Until a chunk may have been sent, a run can start over; after that it only finishes its change log.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from wsync_engine.model.ids import uuid7
from wsync_engine.model.reading import check_reading
from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.before import before_fields
from wsync_engine.pipeline.carried import carried_rows
from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.cursor import CursorColumn
from wsync_engine.pipeline.deliver import Delivery, deliver_partition
from wsync_engine.pipeline.diff import DiffCounts, diff_partition
from wsync_engine.pipeline.extract import StagedSplit, extract_split
from wsync_engine.pipeline.finish import conclude, fold_predecessors
from wsync_engine.pipeline.guards import tripped
from wsync_engine.pipeline.job import Job, Outcome, log_of, run_ref, scratch_of, target_of
from wsync_engine.pipeline.local_database import SnapshotLost
from wsync_engine.pipeline.log_record import LogRecord, PartRead
from wsync_engine.pipeline.manifest import Manifest, partitions_for
from wsync_engine.pipeline.mapping import CompiledMapping, compile_mapping
from wsync_engine.pipeline.reading import FieldsChanged, ReadFrom, begin_reading, explain_refusal, query_of
from wsync_engine.pipeline.refusals import refusals_of
from wsync_engine.pipeline.shape import key_casts
from wsync_engine.pipeline.snapshot import current_manifest
from wsync_engine.pipeline.stream_check import cast_by_field, check_fields, check_stream
from wsync_engine.state.books import Ack, NewRejection, PublishedSplit, RunRecord, SnapshotRow
from wsync_sdk import (
    ConfigError,
    FatalError,
    PlanExpired,
    ReadPlan,
    RetryableError,
    RowRange,
    StateError,
    StreamSpec,
    TransactionalSink,
)

__all__ = ["execute"]

MOST_PLANS = 3
TRANSACTION_S = 300.0
_NEVER_LATER_US = 2**62
"""No backoff ends after it."""
MOST_LISTED = 10_000
"""Refused rows that a run lists one by one; its counts have all of them."""


def execute(job: Job) -> Outcome:
    """Bring the run to its end, or to a guard.

    :raises WsyncError: what stopped it; the caller either calls it again later (RetryableError) or ends the run with `conclude`.
    """
    fold_predecessors(job)
    record = job.books.load()
    if record.delivery is None:
        blocked = _begin_delivery(job, record)
        if blocked is not None:
            return blocked
        record = job.books.load()
    if record.adopt:
        _adopt(job, record)
    else:
        _deliver(job, record)
    return conclude(job, None)


def _begin_delivery(job: Job, record: RunRecord) -> Outcome | None:
    """Up to where the first write may come; returns that it must not, where a guard or the run itself says so."""
    attempt = 1
    while True:
        if record.change_log is None:
            _check_sync(job)
            if not record.dry_run:
                job.books.await_turn(job.sync_id)
            _prepare(job, adopt=record.adopt)
            record = job.books.load()
        planned_after = log_of(record).planned_after
        if not record.dry_run and attempt < MOST_PLANS and job.books.is_stale(job.sync_id, planned_after):  # no guard need judge it
            attempt += 1
            record = _without_plan(job, record, attempt)
            continue
        reasons = _stops(job, record)
        if reasons:
            job.books.block(reasons)
            return Outcome(state="blocked", reason="; ".join(reasons), counts=record.counts)
        job.context.border()
        try:
            job.books.start_delivery(job.sync_id, planned_after)
        except PlanExpired as exc:
            if attempt == MOST_PLANS:  # this uses an attempt: else it would ask the source for as long as others deliver
                raise RetryableError(exc.message, next_step="nothing: it is planned again") from exc
            attempt += 1
            record = _without_plan(job, record, attempt)
        else:
            job.context.faults("after_start_delivery")
            return None


def _without_plan(job: Job, record: RunRecord, attempt: int) -> RunRecord:
    """A run that was executed beside this one has delivered since: what is left to do is found out anew."""
    job.books.event("plan.stale", {"attempt": attempt - 1})
    fold_predecessors(job)
    return replace(record, change_log=None)


# -- plan and extract


def _prepare(job: Job, *, adopt: bool) -> None:
    """Everything before the first write: plan, extract, diff; leaves the change log stored."""
    from_start = adopt  # the sink has everything, so everything is read
    for attempt in range(1, MOST_PLANS + 1):
        base = job.books.snapshot(job.sync_id).version
        try:
            _prepare_once(job, adopt=adopt, from_start=from_start)
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


def _prepare_once(job: Job, *, adopt: bool, from_start: bool) -> None:
    row = job.books.snapshot(job.sync_id)
    manifest = _current_manifest(job, row, adopt=adopt)
    job.context.check()
    generation = job.books.begin_plan()
    job.context.faults("plan")
    reading = begin_reading(job, row, from_start=from_start)
    plan = _plan(job, manifest, reading)
    try:
        partitions = partitions_for(plan.estimated_rows, manifest)
        column = None if reading is None else reading.column(job, plan.schema)
        stream = _stream(job, job.spec.stream)
        mapping = compile_mapping(job.spec, plan.schema, seed=manifest.seed, partitions=partitions, casts=cast_by_field(stream))
        check_fields(job.spec, stream, mapping.schema)
        key_casts(manifest.key or mapping.key_columns, mapping.key_columns)  # before the query costs anything more
        if reading is not None:
            reading.check_fields(mapping.schema)
        _extract(job, plan, mapping, partitions, generation=generation, cursor=column)
    except PlanExpired:
        job.storage.drop_stage(str(job.books.run_id), generation)
        raise
    finally:
        job.source.release(plan)
    _diff(job, manifest.grown(partitions), mapping, generation, reading, adopt=adopt, planned_after=row.delivery)


def _stream(job: Job, name: str) -> StreamSpec:
    """What the sink says of a stream; some ask the destination for it."""
    with job.context.destination.called():
        return job.sink.stream(name)


def _check_sync(job: Job) -> None:
    """What the stream can't take, and a part of a result can't be: said before the query costs anything."""
    check_reading(job.spec)
    check_stream(job.spec, _stream(job, job.spec.stream))


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


def _plan(job: Job, manifest: Manifest, reading: ReadFrom | None) -> ReadPlan:
    query = query_of(job.spec, job.parameters if reading is None else reading.parameters)
    try:
        plan = job.source.plan(query, job.read_limits, _PlanContext(job))
    except ConfigError:
        explain_refusal(job, reading)
        raise
    job.books.store_plan(job.cipher.encrypt(plan.to_bytes()), manifest.version)
    return plan


def _extract(job: Job, plan: ReadPlan, mapping: CompiledMapping, partitions: int, *, generation: int, cursor: CursorColumn | None) -> None:
    folder = job.storage.stage_folder(str(job.books.run_id), generation)
    workers = min(job.budget.threads, len(plan.splits))
    budget = replace(job.budget, memory_bytes=job.budget.memory_bytes // workers, threads=max(1, job.budget.threads // workers))

    def on_batch(rows: int) -> None:
        job.context.check()
        job.context.faults("extract")
        job.context.count("read", rows)

    def one(index: int) -> StagedSplit:
        return extract_split(
            job.source,
            plan.splits[index],
            schema=plan.schema,
            mapping=mapping,
            partitions=partitions,
            folder=folder,
            scratch=job.storage.scratch_folder(str(job.books.run_id)),
            attempt=str(uuid7()),
            budget=budget,
            on_batch=on_batch,
            cursor=cursor,
        )

    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="extract") as pool:
        for staged in pool.map(one, range(len(plan.splits))):
            job.books.publish_split(generation, _published(job, staged))
            job.context.faults("after_publish")


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


def _current_manifest(job: Job, row: SnapshotRow, *, adopt: bool) -> Manifest:
    manifest, lost_files = current_manifest(row, job.storage, seed=job.seed, is_adopting=adopt, scratch=scratch_of(job), budget=job.budget)
    if lost_files:
        job.books.event("snapshot.restarted", {"lost_files": lost_files})
    return manifest


# -- diff


def _diff(
    job: Job,
    manifest: Manifest,
    mapping: CompiledMapping,
    generation: int,
    reading: ReadFrom | None,
    *,
    adopt: bool,
    planned_after: int,
) -> None:
    splits = job.books.splits(generation)
    record = replace(
        _log_record(job, manifest, mapping, generation, splits, planned_after=planned_after),
        part=None if reading is None else PartRead(former=reading.former, settled=None, is_whole=reading.is_whole),
    )
    unreadable = sum(split.unreadable_keys for split in splits)
    withhold = (unreadable > 0 or adopt) and job.spec.mode is Mode.MIRROR
    totals = DiffCounts()
    rejections: list[NewRejection] = []
    for partition in range(manifest.partitions):
        job.context.check()
        job.context.faults("diff")
        with carried_rows(job, record, partition) as carried:
            task = replace(
                record.diff_input(partition, job.storage),
                duplicates=job.spec.duplicates,
                offer_before_us=_NEVER_LATER_US if adopt else int(time.time() * 1_000_000),
                carried=carried,
            )
            counts = diff_partition(task, job.cipher.sealer(), withhold_deletes=withhold, scratch=scratch_of(job), budget=job.budget)
            job.context.count("partitions_compared", 1)
            if adopt:  # what left the result stays in the snapshot, for the next run to delete
                counts = replace(counts, withheld_deletes=0)
            totals += counts
            if counts.refused or counts.refused_duplicates:
                rejections += refusals_of(task, job.cipher, scratch_of(job), job.budget, limit=MOST_LISTED - len(rejections))
    read_rows = sum(split.read_rows for split in splits)
    _check_books(read_rows, totals)
    counted = {"read": read_rows, **totals.to_counts()}
    if reading is not None:
        settled = reading.ended(job.cipher, splits, mapping.schema, is_clear=totals.refused_duplicates == 0)
        record = replace(record, part=PartRead(former=reading.former, settled=settled, is_whole=reading.is_whole))
        counted["null_cursors"] = sum(split.null_cursors for split in splits)
    job.books.store_change_log(record.to_json(), counted, rejections)
    job.context.faults("after_change_log")


def _log_record(
    job: Job, manifest: Manifest, mapping: CompiledMapping, generation: int, splits: Sequence[PublishedSplit], *, planned_after: int
) -> LogRecord:
    """What the change log will be: its files are still to be written."""
    folder, partitions = job.storage.log_folder(str(job.books.run_id)), range(manifest.partitions)
    names = [f"changes-{generation}-{job.books.epoch}-{partition}.parquet" for partition in partitions]
    needed = _stream(job, job.spec.stream).needs_before
    return LogRecord(
        partitions=manifest.partitions,
        files=tuple(job.storage.relative(folder / name) for name in names),
        stage={str(partition): [path for split in splits for path in split.files.get(partition, [])] for partition in partitions},
        base=manifest,
        key=mapping.key_columns,
        shape=mapping.shape,
        schema=mapping.schema,
        mode=job.spec.mode,
        destination=job.destination,
        stream=job.spec.stream,
        before=tuple(field.path for field in before_fields(needed, mapping.schema)),
        planned_after=planned_after,
    )


def _check_books(read_rows: int, counts: DiffCounts) -> None:
    parts = counts.unchanged + counts.upserts + counts.duplicates + counts.refused + counts.held_back
    if read_rows + counts.carried != counts.staged or counts.staged != parts:
        raise FatalError(
            f"the books do not balance: {read_rows} rows read, {counts.carried} carried, {counts.staged} staged, {parts} accounted for",
            next_step="report this; nothing was sent",
        )


def _stops(job: Job, record: RunRecord) -> list[str]:
    """Why the run may not deliver now; an approval answers all of it."""
    if record.approved_by is not None or record.adopt:
        return []
    counts = DiffCounts.from_counts(record.counts)
    log = log_of(record)
    reasons = tripped(job.spec.guards, counts, read_rows=record.counts["read"], is_part=log.is_part, schema_changes=log.schema_changes)
    if record.dry_run:
        reasons.insert(0, f"dry run: {counts.upserts} upserts and {counts.deletes} deletes would be sent")
    return reasons


# -- deliver


def _deliver(job: Job, record: RunRecord) -> None:
    try:
        _send(job, record)
    except StateError as exc:
        job.books.load()  # raises if it is we who are too late
        raise FatalError(
            "the destination has seen a later delivery of this sync than the state store knows of",
            next_step="the state store was restored, or two installations write there: `wsync-engine sync resync NAME` goes beyond it",
        ) from exc


def _send(job: Job, record: RunRecord) -> None:
    log = log_of(record)
    if log.destination != job.destination:
        raise FatalError("the sync was moved to another sink since the change log was made", next_step="run the sync again")
    run = run_ref(job, job.books.run_id, record)
    stream = _stream(job, log.stream)
    target = target_of(log)
    token = record.sink_token
    if token is None:
        with job.context.destination.called():
            for forgotten in job.sink.find_open(run):
                job.sink.abort(forgotten)
            token = job.sink.begin(run, target)
        job.books.store_token(token)
    delivery = Delivery(
        sink=job.sink,
        token=token,
        run=run,
        target=target,
        limits=stream.limits,
        books=job.books,
        cipher=job.cipher,
        context=job.context,
        retry=job.retry,
        # Fenced in its own transaction, such a sink may take longer than our lease.
        call_timeout_s=TRANSACTION_S if isinstance(job.sink, TransactionalSink) else job.call_timeout_s,
    )
    for partition, name in enumerate(log.files):
        reader = ChangeLogReader(job.storage.absolute(name), log.schema, log.before_fields)
        try:
            deliver_partition(delivery, reader, partition)
        finally:
            reader.close()
    with job.context.destination.called():
        job.sink.commit(token, dict(record.counts))


def _adopt(job: Job, record: RunRecord) -> None:
    """Take every row of the log as acknowledged: the sink has it already."""
    for partition, name in enumerate(log_of(record).files):
        reader = ChangeLogReader(job.storage.absolute(name), log_of(record).schema)
        reader.close()
        if reader.rows:
            job.books.record_acks([Ack(partition=partition, range=RowRange(0, reader.rows - 1), verdict="accepted")], [])
