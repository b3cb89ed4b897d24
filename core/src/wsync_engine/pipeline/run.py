"""A run from its claim to its end: plan → extract → diff → guards → deliver → finish.

`execute` may be called again for the same run, by another process with a higher epoch, after a death at any point: each phase begins by asking Postgres
how far the run came. Until a chunk may have been sent, a run can start over; after that it only finishes its change log.
"""

from __future__ import annotations

from dataclasses import replace

from wsync_engine.model.reading import check_reading
from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.diff import DiffCounts
from wsync_engine.pipeline.finish import conclude, fold_predecessors
from wsync_engine.pipeline.guards import tripped
from wsync_engine.pipeline.job import Job, Outcome, log_of, stream_of
from wsync_engine.pipeline.prepare import MOST_PLANS, prepare
from wsync_engine.pipeline.replay import prepare_replay
from wsync_engine.pipeline.send import send
from wsync_engine.pipeline.stream_check import check_stream
from wsync_engine.pipeline.versions import version_stops
from wsync_engine.state.records import Ack, RunRecord
from wsync_sdk import PlanExpired, RetryableError, RowRange

__all__ = ["execute"]


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
        send(job, record)
    return conclude(job, None)


def _begin_delivery(job: Job, record: RunRecord) -> Outcome | None:
    """Up to where the first write may come; returns that it must not, where a guard or the run itself says so."""
    attempt = 1
    while True:
        if record.change_log is None:
            _check_sync(job)
            if not record.dry_run:
                job.books.await_turn(job.sync_id)
            _prepare(job, record)
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


def _prepare(job: Job, record: RunRecord) -> None:
    if record.replay is None:
        prepare(job, record)
    else:
        prepare_replay(job, record)


def _without_plan(job: Job, record: RunRecord, attempt: int) -> RunRecord:
    """A run that was executed beside this one has delivered since: what is left to do is found out anew."""
    job.books.event("plan.stale", {"attempt": attempt - 1})
    fold_predecessors(job)
    return replace(record, change_log=None, plan=None)


def _check_sync(job: Job) -> None:
    """What the stream can't take, and a part of a result can't be: said before the query costs anything."""
    check_reading(job.spec)
    check_stream(job.spec, stream_of(job, job.spec.stream))


def _stops(job: Job, record: RunRecord) -> list[str]:
    """Why the run may not deliver now; an approval answers all of it."""
    if record.approved_by is not None or record.adopt:
        return []
    counts = DiffCounts.from_counts(record.counts)
    log = log_of(record)
    reasons = tripped(job.spec.guards, counts, read_rows=record.counts["read"], is_part=log.is_part, schema_changes=log.schema_changes)
    reasons += version_stops(job.spec.guards, log, counts, read_rows=record.counts["read"])
    if record.dry_run:
        reasons.insert(0, f"dry run: {counts.upserts} upserts and {counts.deletes} deletes would be sent")
    return reasons


def _adopt(job: Job, record: RunRecord) -> None:
    """Take every row of the log as acknowledged: the sink has it already."""
    for partition, name in enumerate(log_of(record).files):
        reader = ChangeLogReader(job.storage.absolute(name), log_of(record).schema)
        reader.close()
        if reader.rows:
            job.books.record_acks([Ack(partition=partition, range=RowRange(0, reader.rows - 1), verdict="accepted")], [])
