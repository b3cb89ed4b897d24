"""What became of a change log's rows, by the acks and chunks that are stored."""

from __future__ import annotations

from uuid import UUID

from wsync_engine.pipeline.fold import Verdicts
from wsync_engine.pipeline.job import Job, log_of
from wsync_engine.state.records import RunRecord

__all__ = ["delivered_counts", "verdicts_of"]


def verdicts_of(job: Job, run_id: UUID, partition: int) -> Verdicts:
    """What is known of a partition's rows."""
    acked = [(ack.range, ack.verdict) for ack in job.books.acks(run_id, partition)]
    return Verdicts(acked=acked, sent=job.books.chunks(run_id, partition))


def delivered_counts(job: Job, run_id: UUID, record: RunRecord) -> dict[str, int]:
    """What became of the log's rows, from its acks and chunks."""
    totals = {"accepted": 0, "rejected": 0, "unsure": 0}
    log = log_of(record)
    for partition in range(log.partitions):
        for first, last, verdict in verdicts_of(job, run_id, partition).ranges():
            totals[verdict] += last - first + 1
    changes = record.counts["upserts"] + record.counts["deletes"]
    return {**totals, "not_sent": changes - sum(totals.values())}
