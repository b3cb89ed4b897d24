"""Deliver a run's change log, partition by partition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.deliver import Delivery, deliver_partition
from wsync_engine.pipeline.delivered import delivered_counts
from wsync_engine.pipeline.job import Job, log_of, run_ref, stream_of, target_of
from wsync_engine.pipeline.tasks import Result, Work, spread
from wsync_engine.pipeline.versions import check_version, is_switched
from wsync_engine.state.records import RunRecord
from wsync_sdk import FatalError, StateError, TransactionalSink

__all__ = ["DeliverWork", "Share", "send"]

TRANSACTION_S = 300.0


Share = Callable[[Job, Sequence[int], Work], object]
"""Has each partition delivered once."""


def _among_helpers(job: Job, parts: Sequence[int], work: Work) -> None:
    spread(job, "deliver", parts, work)


def send(job: Job, record: RunRecord, *, share: Share = _among_helpers) -> None:
    """Send what has no verdict yet, and make it visible.

    :param share: who delivers the partitions.
    :raises WsyncError: what ended the delivery.
    """
    try:
        _send(job, record, share)
    except StateError as exc:
        job.books.load()  # raises if it is we who are too late
        raise FatalError(
            "the destination has seen a later delivery of this sync than the state store knows of",
            next_step="the state store was restored, or two installations write there: `wsync-engine sync resync NAME` goes beyond it",
        ) from exc


def _send(job: Job, record: RunRecord, share: Share) -> None:
    log = log_of(record)
    if log.destination != job.destination:
        raise FatalError("the sync was moved to another sink since the change log was made", next_step="run the sync again")
    if log.is_current:
        return
    token = record.sink_token
    if token is not None and log.mode is Mode.REPLACE:
        if is_switched(job, token):
            return
    elif token is None:
        run, target = run_ref(job, job.books.run_id, record), target_of(log)
        with job.context.destination.called():
            for forgotten in job.sink.find_open(run):
                job.sink.abort(forgotten)
            token = job.sink.begin(run, target)
        job.books.store_token(token)
    share(job, range(log.partitions), DeliverWork(job, record, token))
    totals = dict(record.counts)
    if log.mode is Mode.REPLACE:
        totals |= delivered_counts(job, job.books.run_id, record)
        check_version(job.spec.guards, totals)
        job.books.start_commit()
    job.context.faults("before_commit")
    with job.context.destination.called():
        job.sink.commit(token, totals)
    job.context.faults("after_commit")


class DeliverWork:
    """Sends a partition of a change log."""

    def __init__(self, job: Job, record: RunRecord, token: bytes) -> None:
        self._job = job
        self._log = log_of(record)
        self._delivery = Delivery(
            sink=job.sink,
            token=token,
            run=run_ref(job, job.books.run_id, record),
            target=target_of(self._log),
            limits=stream_of(job, self._log.stream).limits,
            books=job.books,
            cipher=job.cipher,
            context=job.context,
            retry=job.retry,
            # Fenced in its own transaction, such a sink may take longer than our lease.
            call_timeout_s=TRANSACTION_S if isinstance(job.sink, TransactionalSink) else job.call_timeout_s,
        )

    def execute(self, part: int, epoch: int) -> Result:
        """What has no verdict yet; each verdict is stored as it comes."""
        reader = ChangeLogReader(self._job.storage.absolute(self._log.files[part]), self._log.schema, self._log.before_fields)
        try:
            deliver_partition(self._delivery, reader, part, epoch=epoch)
        finally:
            reader.close()
        return Result()

    def clean_up(self, part: int) -> None:
        """The log stays: the fold needs it."""
