"""Finish: end a run, on whatever outcome, and fold what was acknowledged into the snapshot; exactly that.

Before a fold a sink that keeps acks of its own is asked for those that we never got to store: else its rows would be applied a second time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from wsync_engine.model.ids import uuid7
from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.carried import carried_rows, seal
from wsync_engine.pipeline.chunking import leaves
from wsync_engine.pipeline.deliver import is_covered, missing_recorded
from wsync_engine.pipeline.delivered import delivered_counts, verdicts_of
from wsync_engine.pipeline.fold import Folded, Target, Verdicts, fold_partition
from wsync_engine.pipeline.job import Job, Outcome, log_of, run_ref, scratch_of, target_of
from wsync_engine.pipeline.local_database import SnapshotLost
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.pipeline.manifest import Manifest
from wsync_engine.pipeline.snapshot import is_resync_wanted
from wsync_engine.pipeline.tasks import Result, spread
from wsync_engine.pipeline.unfinished import finish_log, is_unfinished
from wsync_engine.pipeline.unsure_keys import unsure_keys_of
from wsync_engine.pipeline.versions import has_version, unswitched, was_switched
from wsync_engine.state.former_books import FormerBooks
from wsync_engine.state.records import Ack, NewSnapshot, RunRecord
from wsync_engine.state.tasks import TaskBoard
from wsync_sdk import StateError, TransactionalSink, WsyncError

__all__ = ["FoldWork", "conclude", "fold_predecessors"]

HELPERS_S = 0.2
"""How often is looked whether helpers have ended."""


def conclude(job: Job, error: WsyncError | None, *, outcome: str = "failed") -> Outcome:
    """End the run: fold its acks into the snapshot and store the outcome, in one transaction.

    :param error: what stopped the run; None: it went through. :param outcome: with an error, `failed` or `cancelled`.
    """
    record = job.books.load()
    if error is not None:
        _end_helpers(job, record)
    counts = dict(record.counts)
    fold: NewSnapshot | None = None
    is_folded, is_left = True, False
    if record.delivery is not None:
        is_known = _is_known(job, record, must=error is None)
        is_left = error is not None and is_unfinished(job, job.books.run_id, record)
        is_folded = is_known and not is_left
        counts |= delivered_counts(job, job.books.run_id, record)
        if error is None:
            fold = _fold(job, job.books.run_id, record, may_spread=True)
        elif is_folded:
            is_folded, fold = _fold_if_known(job, record)
    if error is None:
        _end_helpers(job, job.books.load())
    state, reason = _judge(counts, error, outcome)
    if record.adopt and error is None:
        reason = f"{counts['accepted']} rows taken as acknowledged, nothing was sent" + (f"; {reason}" if state != "succeeded" else "")
    if is_left:
        reason += "; the next run of the sync sends the rest of its change log first"
    job.context.faults("before_finish")
    job.books.finish(outcome=state, reason=reason, counts=counts, error=error, fold=fold, is_folded=is_folded, sync_id=job.sync_id)
    job.context.faults("after_finish")
    if is_folded:
        _tidy(job, job.books.run_id, record, fold)
    return Outcome(state=state, reason=reason, counts=counts)


def _end_helpers(job: Job, record: RunRecord) -> None:
    """Nobody but this process is at work for the run any more: what helpers have sent is acknowledged, or known to be unsure."""
    if record.fanned:
        board = TaskBoard(job.books)
        while board.dismiss():
            time.sleep(HELPERS_S)


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
    "held_back": "rows rejected before and not offered again yet",
    "held_deletes": "deletes rejected before and not offered again yet",
}


def fold_predecessors(job: Job) -> None:
    """Fold what ended runs of the sync left unfolded: a run that was killed, or whose sink was away, had nobody to do it.

    :raises WsyncError: the sink can't be asked, or files are lost; this run must not compare with a snapshot that is behind.
    """
    for run_id in job.books.unfolded(job.sync_id):
        record = job.books.record_of(run_id)
        _ask_sink(job, run_id, record)
        finished = finish_log(job, run_id, record)
        if finished is None:
            continue
        if finished is not record:
            FormerBooks(job.books, run_id).settle({**finished.counts, **delivered_counts(job, run_id, finished)})
            record = finished
        try:
            fold = _fold_or_give_up(job, run_id, record)
        except SnapshotLost:
            if job.books.is_folded(run_id):  # by another run, which removed what nobody names any more
                continue
            raise
        # Another run of the sync (a dry one runs beside) may fold it too: only who swapped the manifest may remove what it replaced.
        if job.books.fold_other(run_id, job.sync_id, fold):
            _tidy(job, run_id, record, fold)


def _fold_or_give_up(job: Job, run_id: UUID, record: RunRecord) -> NewSnapshot | None:
    """The fold of an ended run; where its files are lost a resync makes up for it, since all is offered again then, or an adoption."""
    try:
        return _fold_ended(job, run_id, record)
    except SnapshotLost:
        if not (is_resync_wanted(job.books.snapshot(job.sync_id)) or job.books.load().adopt):
            raise
        job.books.event("fold.given_up", {"run": str(run_id)})
        return None


def _fold_if_known(job: Job, record: RunRecord) -> tuple[bool, NewSnapshot | None]:
    """(whether it could be done, the fold) of this run, which was stopped; what the destination can't be asked now is left to the next one."""
    try:
        counts = not has_version(record) or was_switched(job, record)
    except StateError:
        raise
    except WsyncError as exc:
        job.books.event("fold.postponed", {"error": type(exc).__name__})
        return False, None
    return True, _fold(job, job.books.run_id, record) if counts else unswitched(record)


def _fold_ended(job: Job, run_id: UUID, record: RunRecord) -> NewSnapshot | None:
    """The fold of a run before this one: of a version that it did not switch to, nothing counts."""
    counts = not has_version(record) or was_switched(job, record)
    return _fold(job, run_id, record) if counts else unswitched(record)


def _is_known(job: Job, record: RunRecord, *, must: bool) -> bool:
    """Ask the sink for acks that we never stored. A run that failed because the sink is away leaves that, and its fold, to the next one.

    :param must: raise if it can't be asked.
    """
    try:
        _ask_sink(job, job.books.run_id, record)
    except StateError:
        raise
    except WsyncError as exc:
        if must:
            raise
        job.books.event("fold.postponed", {"error": type(exc).__name__})
        return False
    return True


def _ask_sink(job: Job, run_id: UUID, record: RunRecord) -> None:
    """Store the acks of a transactional sink for chunks of the run that were sent without a verdict."""
    log = log_of(record)
    if not isinstance(job.sink, TransactionalSink) or record.adopt or log.destination != job.destination:
        return
    for partition in range(log.partitions):
        acked = [ack.range for ack in job.books.acks(run_id, partition)]
        if all(is_covered(chunk, acked) for chunk in leaves(job.books.chunks(run_id, partition))):
            continue
        with job.context.destination.asked():
            missing = missing_recorded(job.sink, run_ref(job, run_id, record), target_of(log), partition, acked)
        if missing:
            acks = [Ack(partition=partition, range=span, verdict="accepted") for span in missing]
            job.books.record_acks(acks, [], of_run=run_id)


def _fold(job: Job, run_id: UUID, record: RunRecord, *, may_spread: bool = False) -> NewSnapshot | None:
    """Write the snapshot's next files; None where nothing was sent, and no cursor moves.

    :param may_spread: it is this run's own, and every change has its verdict: helpers may take part.
    """
    log = log_of(record)
    if log.is_elsewhere:
        return None
    cursor = _cursor(job, run_id, record)
    partitions = range(log.partitions)
    is_silent = all(verdicts_of(job, run_id, partition).is_empty for partition in partitions)
    if log.is_current or (is_silent and log.mode is not Mode.REPLACE and not _has_rejected(log, record) and log.base.unsure_keys is None):
        return _moved_cursor(log, cursor)
    work = FoldWork(job, run_id, log)
    folded = spread(job, "fold", partitions, work) if may_spread else {part: work.execute(part, 0).values for part in partitions}
    carried = tuple(folded[part]["carried"] for part in partitions)
    manifest = replace(
        log.base,
        files=tuple(folded[part]["file"] for part in partitions),
        key=log.key,
        shape=log.shape,
        rows=sum(folded[part]["rows"] for part in partitions),
        is_unsure=False,
        unsure_keys=None,
        is_version=log.mode is Mode.REPLACE,
        delivery=_last_delivery(log, record, is_silent=is_silent and log.mode is not Mode.REPLACE),
        carried=carried if any(carried) else (),
    )
    return NewSnapshot(base=log.base.version, manifest=manifest.to_json(), cursor=cursor)


class FoldWork:
    """Writes a partition's next snapshot file, out of the last one, the change log and its verdicts."""

    def __init__(self, job: Job, run_id: UUID, log: LogRecord) -> None:
        self._job = job
        self._run_id = run_id
        self._log = log

    def execute(self, part: int, epoch: int) -> Result:
        """Into a file of its own: a holder that sleeps in mid-write must not share it."""
        job = self._job
        target = job.storage.snapshot_folder(str(job.sync_id)) / f"{self._run_id}-{uuid7()}.parquet"
        folded, sealed = _fold_partition(job, self._log, part, verdicts_of(job, self._run_id, part), target)
        job.context.faults("fold")
        return Result(values={"file": job.storage.relative(target), "rows": folded.rows, "carried": sealed})

    def clean_up(self, part: int) -> None:
        """The last snapshot counts until the next one is complete."""


def _last_delivery(log: LogRecord, record: RunRecord, *, is_silent: bool) -> int:
    """What the sink knows of: where nothing was sent it has not heard of this run."""
    if is_silent:
        return log.base.delivery
    return 0 if record.adopt else record.delivery or 0


def _has_rejected(log: LogRecord, record: RunRecord) -> bool:
    """Whether rows that were rejected before are to be kept, or some that were kept have been replaced."""
    return log.part is not None and (record.counts["held_back"] > 0 or any(log.base.carried))


def _fold_partition(job: Job, log: LogRecord, partition: int, verdicts: Verdicts, target: Path) -> tuple[Folded, str | None]:
    """(its rows, the file of carried rows, sealed beside the snapshot)."""
    plain = None if log.part is None else scratch_of(job) / f"rejected-{uuid7()}.parquet"
    with carried_rows(job, log, partition) as former:
        folded = fold_partition(
            replace(log.diff_input(partition, job.storage), carried=former, unsure=unsure_keys_of(log.base, job.cipher)),
            verdicts,
            Target(snapshot=target, carried=plain),
            job.cipher.sealer(),
            now_us=int(time.time() * 1_000_000),
            scratch=scratch_of(job),
            budget=job.budget,
        )
    if plain is None or not folded.carried_rows:
        return folded, None
    sealed = target.with_suffix(".sealed")
    seal(plain, sealed, job.cipher.sealer())
    plain.unlink()
    return folded, job.storage.relative(sealed)


def _cursor(job: Job, run_id: UUID, record: RunRecord) -> Mapping[str, Any] | None:
    """How far the result was read, by this log: further than before only if each of its changes was accepted, or rejected and kept."""
    part = log_of(record).part
    if part is None:
        return None
    counts = delivered_counts(job, run_id, record)
    return part.former if counts["not_sent"] or counts["unsure"] else part.settled


def _moved_cursor(log: LogRecord, cursor: Mapping[str, Any] | None) -> NewSnapshot | None:
    """The same snapshot, read further. Not one that is in doubt as a whole: the next run has to read all of it."""
    if log.part is None or cursor is None or cursor == log.part.former or log.base.is_unsure:
        return None
    return NewSnapshot(base=log.base.version, manifest=log.base.to_json(), cursor=cursor)


def _tidy(job: Job, run_id: UUID, record: RunRecord, fold: NewSnapshot | None) -> None:
    """Drop files that nobody names any more; a failure here costs disk only."""
    try:
        job.storage.drop_run_leftovers(str(run_id))
        if fold is not None:
            after = Manifest.from_json(fold.base, dict(fold.manifest)).named
            job.storage.drop_superseded(str(job.sync_id), str(run_id), before=log_of(record).base.named, after=after)
    except OSError:
        pass
