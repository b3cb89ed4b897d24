"""What one run works with, and how it was left: shared by all phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from wsync_engine.model.sync import SyncSpec
from wsync_engine.pipeline.context import RunContext
from wsync_engine.pipeline.deliver import RetryPolicy
from wsync_engine.pipeline.local_database import Budget
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.pipeline.stream_check import write_mode_of
from wsync_engine.state.books import RunBooks
from wsync_engine.state.records import Cipher, RunRecord
from wsync_engine.storage import LocalStorage
from wsync_sdk import ParameterValue, ReadLimits, RunRef, Sink, Source, StateError, StreamSpec, Target

__all__ = ["Job", "Outcome", "log_of", "run_ref", "scratch_of", "stream_of", "target_of"]

MOST_SPLITS = 16
ROWS_PER_SPLIT = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that one run needs.

    :param sync_name: for messages. :param parameters: of the query, bound for this run. :param destination: the sink's connection and plugin, opaque. :param seed: the tenant's, for hashes.
    :param call_timeout_s: of one sink call: it must end before another worker may hold the run.
    """

    sync_id: UUID
    sync_name: str
    spec: SyncSpec
    parameters: Mapping[str, ParameterValue]
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
    read_limits: ReadLimits = ReadLimits(max_splits=MOST_SPLITS, rows_per_split=ROWS_PER_SPLIT)
    call_timeout_s: float = 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How `execute` left the run: `blocked`, or the terminal state it ended in, with the reason in words."""

    state: str
    reason: str
    counts: Mapping[str, int]


def scratch_of(job: Job) -> Path:
    """Where the run spills."""
    return job.storage.scratch_folder(str(job.books.run_id))


def log_of(record: RunRecord) -> LogRecord:
    """A run's change log.

    :raises StateError: it has none.
    """
    if record.change_log is None:
        raise StateError("the run has no change log", next_step="report this")
    return LogRecord.from_json(record.base_version or 0, record.change_log)


def run_ref(job: Job, run_id: UUID, record: RunRecord) -> RunRef:
    """How the sink knows a run of this sync.

    :raises StateError: it was not let deliver.
    """
    if record.delivery is None:
        raise StateError("the run has no delivery number", next_step="report this")
    log = log_of(record)
    base = log.base
    return RunRef(
        tenant_id=str(job.books.tenant_id),
        sync_id=str(job.sync_id),
        run_id=str(run_id),
        delivery=record.delivery,
        continues=0 if base.is_unsure else base.delivery,
        write_mode=write_mode_of(log.mode),
        stream=log.stream,
    )


def stream_of(job: Job, name: str) -> StreamSpec:
    """What the sink says of a stream; some ask the destination for it."""
    with job.context.destination.called():
        return job.sink.stream(name)


def target_of(log: LogRecord) -> Target:
    """Where a change log goes."""
    return Target(stream=log.stream, key=tuple(column.name for column in log.key), schema=log.schema)
