"""Change logs that a run of an `append` sync left before each of their rows had its verdict.

A row that is sent once, and never again, can't be offered anew where nobody knows whether the destination has it. So the log stays open when its run
ends, and the next run of the sync finishes it first, under the chunk keys of the run that left it: a destination that knows them has each row once, and a
transactional one says what it recorded. Only then that log is folded, and the run goes on with a plan of its own.

A person who wants it otherwise gives the log up, by a `resync` or an `adopt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.job import Job, log_of
from wsync_engine.pipeline.local_database import LOST_NEXT_STEP
from wsync_engine.pipeline.send import send
from wsync_engine.pipeline.snapshot import is_resync_wanted
from wsync_engine.pipeline.tasks import Work
from wsync_engine.state.former_books import FormerBooks
from wsync_engine.state.records import RunRecord
from wsync_sdk import FatalError

__all__ = ["finish_log", "is_unfinished"]


def is_unfinished(job: Job, run_id: UUID, record: RunRecord) -> bool:
    """Whether an `append` run has sent chunks of its log, and rows of it have no verdict."""
    log = log_of(record)
    if log.mode is not Mode.APPEND or record.adopt:
        return False
    partitions = range(log.partitions)
    judged = sum(ack.range.rows for partition in partitions for ack in job.books.acks(run_id, partition))
    return judged < record.counts["upserts"] and any(job.books.chunks(run_id, partition) for partition in partitions)


def finish_log(job: Job, run_id: UUID, record: RunRecord) -> RunRecord | None:
    """Send what an ended run left of its change log, so that it can be folded.

    :returns: the ended run as it is then; None: it must not be folded here, as it is another run's to finish it, or is folded.
    :raises WsyncError: what ended the delivery. The log stays open.
    """
    if not is_unfinished(job, run_id, record) or _is_given_up(job, record):
        return record
    if job.books.load().dry_run:
        job.books.event("log.left", {"run": str(run_id)})
        return None
    job.books.await_turn(job.sync_id)
    books = FormerBooks(job.books, run_id)
    taken = books.take(job.sync_id)
    if taken is None:
        return None
    job.context.faults("after_log_taken")
    former = replace(job, books=books)
    _check_files(former, taken)
    send(former, taken, share=_execute_here)
    job.context.faults("after_log_finished")
    return taken


def _is_given_up(job: Job, record: RunRecord) -> bool:
    """Whether a person chose, since the run ended, what becomes of rows in doubt."""
    is_moved = log_of(record).destination != job.destination
    return is_moved or job.books.load().adopt or is_resync_wanted(job.books.snapshot(job.sync_id))


def _check_files(job: Job, record: RunRecord) -> None:
    log = log_of(record)
    for name in log.files:
        try:
            ChangeLogReader(job.storage.absolute(name), log.schema, log.before_fields).close()
        except FatalError as exc:
            raise FatalError(
                f"run {job.books.run_id} ended while rows were on their way, and its change log, which says which, is missing or damaged",
                next_step=LOST_NEXT_STEP,
            ) from exc


def _execute_here(job: Job, parts: Sequence[int], work: Work) -> None:
    """One part after the other: an ended run has no helpers."""
    for part in parts:
        work.execute(part, job.books.claim.epoch)
