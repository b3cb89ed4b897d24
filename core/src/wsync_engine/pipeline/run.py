"""A run from its claim to its end: plan → extract → diff → guards → deliver → finish.

`execute` may be called again for the same run, by another process with a higher epoch, after a death at any point: each phase begins by asking Postgres
how far the run came. Until a chunk may have been sent, a run can start over; after that it only finishes its change log.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from wsync_engine.model.ids import uuid7
from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.context import RunContext
from wsync_engine.pipeline.deliver import Delivery, RetryPolicy, deliver_partition
from wsync_engine.pipeline.diff import DiffCounts, DiffInput, diff_partition
from wsync_engine.pipeline.extract import StagedSplit, extract_split
from wsync_engine.pipeline.fold import Verdicts, fold_partition
from wsync_engine.pipeline.guards import tripped
from wsync_engine.pipeline.local_database import Budget
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.pipeline.manifest import KeyColumn, Manifest, partitions_for
from wsync_engine.pipeline.mapping import CompiledMapping, compile_mapping
from wsync_engine.pipeline.refusals import refusals_of
from wsync_engine.pipeline.snapshot import current_manifest, is_resync_wanted
from wsync_engine.state.books import Ack, Cipher, NewRejection, PublishedSplit, RunBooks, RunRecord
from wsync_engine.storage import LocalStorage
from wsync_sdk import (
    ConfigError,
    FatalError,
    Operation,
    PlanExpired,
    Query,
    ReadLimits,
    ReadPlan,
    RowRange,
    RunRef,
    Sink,
    Source,
    StateError,
    Target,
    WsyncError,
)

__all__ = ["Job", "Outcome", "conclude", "execute"]

MOST_PLANS = 3
_NEVER_LATER_US = 2**62
"""No backoff ends after it."""
MOST_LISTED = 10_000
"""Refused rows that a run lists one by one; its counts have all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that one run needs.

    :param sync_name: for messages. :param destination: the sink's connection and plugin, opaque. :param seed: the tenant's, for hashes. :param parameters: bound to the query.
    """

    sync_id: UUID
    sync_name: str
    spec: SyncSpec
    source: Source
    sink: Sink
    destination: str
    books: RunBooks
    storage: LocalStorage
    cipher: Cipher
    context: RunContext
    seed: str
    budget: Budget = Budget()
    retry: RetryPolicy = RetryPolicy()
    read_limits: ReadLimits = ReadLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How `execute` left the run: `blocked`, or the terminal state it ended in, with the reason in words."""

    state: str
    reason: str
    counts: Mapping[str, int]


def execute(job: Job) -> Outcome:
    """Bring the run to its end, or to a guard.

    :raises WsyncError: what stopped it; the caller either calls it again later (RetryableError) or ends the run with `conclude`.
    """
    _fold_predecessors(job)
    record = job.books.load()
    if record.delivery is None:
        if record.change_log is None:
            _check_mode(job)
            _prepare(job, adopt=record.adopt)
            record = job.books.load()
        reasons = _stops(job, record)
        if reasons:
            job.books.block(reasons)
            return Outcome(state="blocked", reason="; ".join(reasons), counts=record.counts)
        job.books.start_delivery(job.sync_id)
        job.context.faults("after_start_delivery")
        record = job.books.load()
    if record.adopt:
        _adopt(job, record)
    else:
        _deliver(job, record)
    return conclude(job, None)


def conclude(job: Job, error: WsyncError | None, *, outcome: str = "failed") -> Outcome:
    """End the run: fold its acks into the snapshot and store the outcome, in one transaction.

    :param error: what stopped the run; None: it went through. :param outcome: with an error, `failed` or `cancelled`.
    """
    record = job.books.load()
    counts = dict(record.counts)
    fold: tuple[int, dict[str, Any]] | None = None
    if record.delivery is not None:
        counts |= _delivered_counts(job, job.books.run_id, record)
        fold = _fold(job, job.books.run_id, record)
    state, reason = _judge(counts, error, outcome)
    if record.adopt and error is None:
        reason = f"{counts['accepted']} rows taken as acknowledged, nothing was sent" + (f"; {reason}" if state != "succeeded" else "")
    job.context.faults("before_finish")
    job.books.finish(outcome=state, reason=reason, counts=counts, error=error, fold=fold, sync_id=job.sync_id)
    job.context.faults("after_finish")
    _tidy(job, job.books.run_id, record, fold)
    return Outcome(state=state, reason=reason, counts=counts)


def _judge(counts: Mapping[str, int], error: WsyncError | None, outcome: str) -> tuple[str, str]:
    if error is not None:
        return outcome, error.message
    changes = counts.get("upserts", 0) + counts.get("deletes", 0)
    settled = counts.get("accepted", 0) + counts.get("rejected", 0) + counts.get("unsure", 0) + counts.get("not_sent", 0)
    if changes != settled or counts.get("not_sent", 0):
        return "failed", f"the books do not balance: {changes} changes, {settled} settled, {counts.get('not_sent', 0)} not sent"
    left = [f"{counts[name]} {words}" for name, words in _SHORTFALLS.items() if counts.get(name)]
    return ("partial", ", ".join(left)) if left else ("succeeded", f"{changes} changes delivered")


_SHORTFALLS = {
    "refused": "rows refused by the mapping",
    "refused_duplicates": "keys refused because they are in the result more than once",
    "rejected": "changes rejected by the sink",
    "unsure": "changes without a verdict",
    "withheld_deletes": "deletes withheld because keys could not be read",
}


# -- plan and extract


def _prepare(job: Job, *, adopt: bool) -> None:
    """Everything before the first write: plan, extract, diff; leaves the change log stored."""
    for attempt in range(1, MOST_PLANS + 1):
        try:
            manifest = _current_manifest(job, adopt=adopt)
            job.context.check()
            generation = job.books.begin_plan()
            job.context.faults("plan")
            plan = _plan(job, manifest)
            try:
                partitions = partitions_for(plan.estimated_rows, manifest)
                mapping = compile_mapping(job.spec, plan.schema, seed=manifest.seed, partitions=partitions)
                _extract(job, plan, mapping, partitions, generation)
            finally:
                job.source.release(plan)
            _diff(job, manifest.grown(partitions), mapping, generation, adopt=adopt)
            return
        except PlanExpired:
            job.storage.drop_stage(str(job.books.run_id), generation)
            if attempt == MOST_PLANS:
                raise
            job.books.event("plan.expired", {"attempt": attempt})


def _check_mode(job: Job) -> None:
    """A stream that can't delete can't be mirrored: said before the query costs anything."""
    if job.spec.mode is Mode.MIRROR and Operation.DELETE not in job.sink.stream(job.spec.stream).operations:
        raise ConfigError(
            f"mode `mirror` deletes what left the result, and the stream `{job.spec.stream}` takes no deletes",
            next_step="tell the sink how to delete, or use `mode: upsert`",
        )


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


def _plan(job: Job, manifest: Manifest) -> ReadPlan:
    query = Query(sql=job.spec.query, table=job.spec.table, parameters=job.spec.parameters, split_by=job.spec.split_by)
    plan = job.source.plan(query, job.read_limits, _PlanContext(job))
    job.books.store_plan(job.cipher.encrypt(plan.to_bytes()), manifest.version)
    return plan


def _extract(job: Job, plan: ReadPlan, mapping: CompiledMapping, partitions: int, generation: int) -> None:
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
    )


def _current_manifest(job: Job, *, adopt: bool) -> Manifest:
    manifest, lost_files = current_manifest(
        job.books.snapshot(job.sync_id), job.storage, seed=job.seed, is_adopting=adopt, scratch=_scratch(job), budget=job.budget
    )
    if lost_files:
        job.books.event("snapshot.restarted", {"lost_files": lost_files})
    return manifest


# -- diff


def _diff(job: Job, manifest: Manifest, mapping: CompiledMapping, generation: int, *, adopt: bool) -> None:
    splits = job.books.splits(generation)
    unreadable = sum(split.unreadable_keys for split in splits)
    folder = job.storage.log_folder(str(job.books.run_id))
    key = tuple(KeyColumn(name=name, type=kind) for name, kind in zip(mapping.key, mapping.key_types, strict=True))
    totals = DiffCounts()
    files: list[str] = []
    rejections: list[NewRejection] = []
    stage: dict[str, list[str]] = {}
    for partition in range(manifest.partitions):
        job.context.check()
        job.context.faults("diff")
        stage[str(partition)] = [path for split in splits for path in split.files.get(partition, [])]
        log = folder / f"changes-{generation}-{job.books.epoch}-{partition}.parquet"
        task = DiffInput(
            partition=partition,
            stage=[job.storage.absolute(path) for path in stage[str(partition)]],
            snapshot=_snapshot_path(job, manifest, partition),
            manifest=manifest,
            key=key,
            fields=tuple(mapping.schema.names),
            mode=job.spec.mode,
            duplicates=job.spec.duplicates,
            offer_before_us=_NEVER_LATER_US if adopt else int(time.time() * 1_000_000),
            log=log,
        )
        withhold = (unreadable > 0 or adopt) and job.spec.mode is Mode.MIRROR
        counts = diff_partition(task, withhold_deletes=withhold, scratch=_scratch(job), budget=job.budget)
        if adopt:  # what left the result stays in the snapshot, for the next run to delete
            counts = replace(counts, withheld_deletes=0)
        totals += counts
        if counts.refused or counts.refused_duplicates:
            rejections += refusals_of(task, job.cipher, _scratch(job), job.budget, limit=MOST_LISTED - len(rejections))
        files.append(job.storage.relative(log))
    read_rows = sum(split.read_rows for split in splits)
    _check_books(read_rows, totals)
    record = LogRecord(
        partitions=manifest.partitions,
        files=tuple(files),
        stage=stage,
        base=manifest,
        key=key,
        schema=mapping.schema,
        mode=job.spec.mode,
        destination=job.destination,
        stream=job.spec.stream,
    )
    job.books.store_change_log(record.to_json(), {"read": read_rows, **totals.to_counts()}, rejections)
    job.context.faults("after_change_log")


def _check_books(read_rows: int, counts: DiffCounts) -> None:
    parts = counts.unchanged + counts.upserts + counts.duplicates + counts.refused + counts.held_back
    if read_rows != counts.staged or counts.staged != parts:
        raise FatalError(
            f"the books do not balance: {read_rows} rows read, {counts.staged} staged, {parts} accounted for",
            next_step="report this; nothing was sent",
        )


def _snapshot_path(job: Job, manifest: Manifest, partition: int) -> Path | None:
    name = manifest.files[partition]
    return None if name is None else job.storage.absolute(name)


def _scratch(job: Job) -> Path:
    return job.storage.scratch_folder(str(job.books.run_id))


def _stops(job: Job, record: RunRecord) -> list[str]:
    """Why the run may not deliver now; an approval answers all of it."""
    if record.approved_by is not None or record.adopt:
        return []
    counts = DiffCounts.from_counts(record.counts)
    reasons = tripped(job.spec.guards, counts, read_rows=record.counts["read"])
    if record.dry_run:
        reasons.insert(0, f"dry run: {counts.upserts} upserts and {counts.deletes} deletes would be sent")
    return reasons


# -- deliver


def _deliver(job: Job, record: RunRecord) -> None:
    log = _log_of(record)
    if log.destination != job.destination:
        raise FatalError("the sync was moved to another sink since the change log was made", next_step="run the sync again")
    run = _run_ref(job, job.books.run_id, record)
    stream = job.sink.stream(log.stream)
    target = Target(stream=log.stream, key=tuple(column.name for column in log.key), schema=log.schema)
    token = record.sink_token
    if token is None:
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
    )
    for partition, name in enumerate(log.files):
        reader = ChangeLogReader(job.storage.absolute(name), log.schema)
        try:
            deliver_partition(delivery, reader, partition)
        finally:
            reader.close()
    job.sink.commit(token, dict(record.counts))


def _adopt(job: Job, record: RunRecord) -> None:
    """Take every row of the log as acknowledged: the sink has it already."""
    for partition, name in enumerate(_log_of(record).files):
        reader = ChangeLogReader(job.storage.absolute(name), _log_of(record).schema)
        reader.close()
        if reader.rows:
            job.books.record_acks([Ack(partition=partition, range=RowRange(0, reader.rows - 1), verdict="accepted")], [])


def _run_ref(job: Job, run_id: UUID, record: RunRecord) -> RunRef:
    if record.delivery is None:
        raise StateError("the run has no delivery number", next_step="report this")
    return RunRef(tenant_id=str(job.books.tenant_id), sync_id=str(job.sync_id), run_id=str(run_id), delivery=record.delivery)


def _log_of(record: RunRecord) -> LogRecord:
    if record.change_log is None:
        raise StateError("the run has no change log", next_step="report this")
    return LogRecord.from_json(record.base_version or 0, record.change_log)


# -- finish


def _fold_predecessors(job: Job) -> None:
    for run_id in job.books.unfolded(job.sync_id):
        record = job.books.record_of(run_id)
        fold = _fold_or_give_up(job, run_id, record)
        # Another run of the sync (a dry one runs beside) may fold it too: only who swapped the manifest may remove what it replaced.
        if job.books.fold_other(run_id, job.sync_id, fold):
            _tidy(job, run_id, record, fold)


def _fold_or_give_up(job: Job, run_id: UUID, record: RunRecord) -> tuple[int, dict[str, Any]] | None:
    """The fold of an ended run; where its files are lost a resync makes up for it, since all is offered again then."""
    try:
        return _fold(job, run_id, record)
    except FatalError:
        if not is_resync_wanted(job.books.snapshot(job.sync_id)):
            raise
        job.books.event("fold.given_up", {"run": str(run_id)})
        return None


def _verdicts(job: Job, run_id: UUID, partition: int) -> Verdicts:
    acked = [(ack.range, ack.verdict) for ack in job.books.acks(run_id, partition)]
    return Verdicts(acked=acked, sent=job.books.chunks(run_id, partition))


def _delivered_counts(job: Job, run_id: UUID, record: RunRecord) -> dict[str, int]:
    """What became of the log's rows, from its acks and chunks."""
    totals = {"accepted": 0, "rejected": 0, "unsure": 0}
    log = _log_of(record)
    for partition in range(log.partitions):
        for first, last, verdict in _verdicts(job, run_id, partition).ranges():
            totals[verdict] += last - first + 1
    changes = record.counts["upserts"] + record.counts["deletes"]
    return {**totals, "not_sent": changes - sum(totals.values())}


def _fold(job: Job, run_id: UUID, record: RunRecord) -> tuple[int, dict[str, Any]] | None:
    """Write the snapshot's next files; None where nothing was sent."""
    log = _log_of(record)
    folder = job.storage.snapshot_folder(str(job.sync_id))
    files: list[str | None] = list(log.base.files)
    verdicts = [_verdicts(job, run_id, partition) for partition in range(log.partitions)]
    if all(verdict.is_empty for verdict in verdicts):
        return None
    rows = 0
    for partition, verdict in enumerate(verdicts):
        target = folder / f"{run_id}-{uuid7()}.parquet"  # a holder that sleeps in mid-write must not share our file
        rows += fold_partition(
            log.diff_input(partition, job.storage),
            verdict,
            target,
            now_us=int(time.time() * 1_000_000),
            scratch=_scratch(job),
            budget=job.budget,
        )
        files[partition] = job.storage.relative(target)
        job.context.faults("fold")
    manifest = replace(log.base, files=tuple(files), key=log.key, rows=rows, is_unsure=False)
    return log.base.version, manifest.to_json()


def _tidy(job: Job, run_id: UUID, record: RunRecord, fold: tuple[int, dict[str, Any]] | None) -> None:
    """Drop files that nobody names any more; a failure here costs disk only."""
    try:
        job.storage.drop_run_leftovers(str(run_id))
        if fold is not None:
            base = _log_of(record).base.files
            job.storage.drop_superseded(str(job.sync_id), str(run_id), before=base, after=fold[1]["files"])
    except OSError:
        pass
