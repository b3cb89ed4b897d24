"""Which change logs can be replayed, and together: those that were delivered, are still there, and have the same fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from wsync_engine.model.run import RunState
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.state.delivered import FormerRun
from wsync_engine.storage import LocalStorage
from wsync_sdk import ConfigError

__all__ = ["FormerLog", "check_destination", "replayable"]

_ENDED = (RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerLog:
    """A former run's change log."""

    run_id: UUID
    log: LogRecord


def replayable(runs: Sequence[FormerRun], run_ids: Sequence[UUID], storage: LocalStorage) -> list[FormerLog]:
    """The logs of `run_ids`, in the order in which they were delivered.

    :raises ConfigError: one of the runs is not the sync's, was never delivered, or its log is gone; or two have other fields.
    """
    found = {run.run_id for run in runs}
    for run_id in run_ids:
        if run_id not in found:
            raise ConfigError(f"run {run_id} is none of the sync's", next_step="`wsync-engine runs list --sync NAME` shows those there are")
    logs = [FormerLog(run_id=run.run_id, log=_log(run, storage)) for run in runs]
    for one in logs[1:]:
        _check_same(logs[0], one)
    return logs


def _log(run: FormerRun, storage: LocalStorage) -> LogRecord:
    if run.state not in _ENDED:
        raise ConfigError(f"run {run.run_id} has not ended", next_step=f"wait for its end: `wsync-engine runs watch {run.run_id}`")
    if run.delivery is None or run.change_log is None or run.adopt:
        raise ConfigError(
            f"run {run.run_id} was never delivered: it sent nothing that could be sent again",
            next_step="leave it out; `wsync-engine sync run` sends what has changed since",
        )
    log = LogRecord.from_json(run.base_version or 0, run.change_log)
    if not all(storage.absolute(name).is_file() for name in log.files):
        raise ConfigError(
            f"the change log of run {run.run_id} is not in the storage folder any more: ended runs keep theirs for WSYNC_KEEP_CHANGE_LOGS_DAYS",
            next_step="leave it out; `wsync-engine sync resync` offers everything again",
        )
    return log


def _check_same(first: FormerLog, other: FormerLog) -> None:
    one, two = first.log, other.log
    if not (one.schema.equals(two.schema) and one.key == two.key):
        raise ConfigError(
            f"runs {first.run_id} and {other.run_id} have other fields: the mapping, or the result, changed between them",
            next_step="replay one after the other, the older one first",
        )
    if (one.destination, one.stream) != (two.destination, two.stream):
        raise ConfigError(
            f"runs {first.run_id} and {other.run_id} went to different destinations", next_step="replay one of them, or name one with --to"
        )


def check_destination(logs: Sequence[FormerLog], *, destination: str, stream: str) -> None:
    """See that a replay to the sync's own sink goes where the logs went.

    :raises ConfigError: the sync was moved since.
    """
    for one in logs:
        if (one.log.destination, one.log.stream) != (destination, stream):
            raise ConfigError(
                f"run {one.run_id} went to another destination than the sync's present one",
                next_step="name the destination with --to, or `wsync-engine sync resync` to offer everything to the present one",
            )
