"""Versions: in mode `replace` a run's rows take the place of all that a stream holds, in one step at its end.

    begin ── an empty version ── write: every row of the result ── all accepted? ── commit: it is what there is
                                                                    └─ else abort: what there was stays

If the result is what was switched to last, nothing is sent. A switch that nobody answered is looked up before it is repeated. Of a run that ended it
counts only if the destination says that it was done; where that can't be said, the next run sends everything again, which is never wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wsync_engine.model.sync import Guards, Mode
from wsync_engine.pipeline.diff import DiffCounts
from wsync_engine.pipeline.job import Job, log_of
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.state.records import NewSnapshot, RunRecord
from wsync_sdk import FatalError, Inspection, WsyncError

__all__ = ["check_version", "has_version", "is_switched", "unswitched", "version_of", "version_stops", "was_switched"]


def version_of(log: LogRecord, counts: DiffCounts, *, is_adopted: bool) -> tuple[bool, DiffCounts]:
    """(whether the destination holds just this result, what is to be sent): of `replace` either every row or none.

    :param counts: of all partitions.
    """
    if log.mode is not Mode.REPLACE:
        return False, counts
    is_same = counts.upserts == counts.unchanged + counts.held_back and not counts.departed
    if is_same and log.base.is_version and not log.base.is_unsure and not is_adopted:
        return True, replace(counts, upserts=0)
    return False, replace(counts, unchanged=0, held_back=0)


def version_stops(guards: Guards, log: LogRecord, counts: DiffCounts, *, read_rows: int) -> list[str]:
    """In words, what else stops a new version: unlike a change, it takes away what it does not hold."""
    if log.mode is not Mode.REPLACE or log.is_current:
        return []
    reasons = []
    if not counts.upserts and not guards.allow_empty and not (read_rows == 0 and counts.snapshot_rows):  # that one has its words
        reasons.append("the new version would be empty (guard `allow_empty`)")
    left_out = counts.refused + counts.refused_duplicates
    if left_out and guards.max_rejection_percent is None:
        reasons.append(
            f"{left_out} rows or keys of the result are refused, and would not be in the new version (guard `max_rejection_percent`)"
        )
    return reasons


def check_version(guards: Guards, totals: Mapping[str, int]) -> None:
    """See that the version may be switched to.

    :raises FatalError: it lacks rows.
    """
    rows, rejected, limit = totals["upserts"], totals["rejected"], guards.max_rejection_percent or 0.0
    in_doubt = totals["unsure"] + totals["not_sent"]
    if in_doubt:
        raise FatalError(
            f"not switched to the new version: of {in_doubt} of {rows} rows nobody knows whether they are in it",
            next_step="run the sync again",
        )
    if rejected and 100 * rejected / rows > limit:
        raise FatalError(
            f"not switched to the new version: {rejected} of {rows} rows were rejected ({100 * rejected / rows:.1f} %, guard at {limit:g} %)",
            next_step="see `wsync-engine runs rejections`, correct the rows, or raise the guard `max_rejection_percent`",
        )


def is_switched(job: Job, token: bytes) -> bool:
    """Whether a run that is taken up again has switched already.

    :raises FatalError: its version is gone.
    """
    with job.context.destination.called():
        standing = job.sink.inspect(token)
    if standing is Inspection.GONE:
        raise FatalError("the new version was dropped at the destination before it was whole", next_step="run the sync again")
    return standing is Inspection.COMMITTED


def has_version(record: RunRecord) -> bool:
    """Whether the run delivered, or was to deliver, a version."""
    log = log_of(record)
    return log.mode is Mode.REPLACE and not log.is_current and not record.adopt


def was_switched(job: Job, record: RunRecord) -> bool:
    """Whether a run that ended before its end was stored has switched; if not, its version is dropped.

    :raises WsyncError: the destination can't be asked.
    """
    token = record.sink_token
    if token is None or log_of(record).destination != job.destination:
        return False
    if record.has_commit_started:
        with job.context.destination.asked():
            if job.sink.inspect(token) is Inspection.COMMITTED:
                return True
    try:
        with job.context.destination.called():
            job.sink.abort(token)
    except WsyncError as exc:  # nobody sees it, and the next version's `find_open` does
        job.books.event("version.left", {"error": type(exc).__name__})
    return False


def unswitched(record: RunRecord) -> NewSnapshot | None:
    """What a version that does not count leaves of the snapshot: the same. Where the switch may have been made, it is not believed to be all there is."""
    base = log_of(record).base
    if not record.has_commit_started or not base.is_version:
        return None
    return NewSnapshot(base=base.version, manifest=replace(base, is_version=False).to_json())
