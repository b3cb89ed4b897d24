"""A run whose change log is made of the kept logs of former runs: of each key the last change, in the order in which they were delivered.

It is read like a part of a result: who is not in it has not left. After it the snapshot says what the destination has, older rows as well, and no cursor is
kept, so that the next ordinary run brings newer rows again. Sent elsewhere, it leaves the snapshot alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import duckdb

from wsync_engine.model.ids import uuid7
from wsync_engine.model.replay import ReplayOrder
from wsync_engine.pipeline.before import SEALED, before_fields, before_struct, sealing
from wsync_engine.pipeline.canonical import canonical_value, partition_of_key
from wsync_engine.pipeline.diff import LOG_ROW_GROUP, DiffCounts, DiffInput, load_snapshot
from wsync_engine.pipeline.former_logs import FormerLog, check_destination, replayable
from wsync_engine.pipeline.job import Job, scratch_of, stream_of
from wsync_engine.pipeline.local_database import opened
from wsync_engine.pipeline.log_record import Aside, LogRecord, PartRead
from wsync_engine.pipeline.mapping import HASH
from wsync_engine.pipeline.prepare import base_manifest, check_books
from wsync_engine.pipeline.shape import key_casts
from wsync_engine.pipeline.sql import PARQUET, ROW_GROUP_BYTES, identifier, path_list, text
from wsync_engine.pipeline.unsure_keys import unsure_keys_of
from wsync_engine.pipeline.wide_log import WIDE_ROW_BYTES, widest_row_bytes, write_wide_log
from wsync_engine.state.delivered import former_runs
from wsync_engine.state.records import RunRecord
from wsync_sdk import BEFORE, OP, Operation, StateError

__all__ = ["prepare_replay"]

_ORDER = "wsync_order"


def prepare_replay(job: Job, record: RunRecord) -> None:
    """Leave the change log stored.

    :raises ConfigError: a log is gone, or fits no more; nothing was sent.
    """
    if record.replay is None:
        raise StateError("the run replays nothing", next_step="report this")
    order = ReplayOrder.from_json(record.replay)
    job.context.check()
    generation = job.books.begin_plan()
    logs = _logs(job, order)
    log = _log_record(job, order, logs)
    job.books.store_plan(job.cipher.encrypt(b"replay"), log.base.version)
    job.context.faults("after_plan")
    counts, files = [], []
    for partition in range(log.partitions):
        job.context.check()
        job.context.faults("diff")
        file = job.storage.log_folder(str(job.books.run_id)) / f"changes-{generation}-{partition}-{uuid7()}.parquet"
        counts.append(_write_partition(job, log, logs, partition, file))
        files.append(job.storage.relative(file))
        job.context.count("partitions_compared", 1)
    total = reduce(add, counts)
    read_rows = _upserts_read(job, logs)
    check_books(read_rows, total)
    log = replace(log, files=tuple(files))
    job.books.store_change_log(log.to_json(), {"read": read_rows, **total.to_counts()})
    job.context.faults("after_change_log")


def _logs(job: Job, order: ReplayOrder) -> list[FormerLog]:
    with job.books.fenced() as cursor:
        runs = former_runs(cursor.connection, job.books.tenant_id, job.sync_id, order.run_ids)
    logs = replayable(runs, order.run_ids, job.storage)
    if order.sink_id is None:
        check_destination(logs, destination=job.destination, stream=job.spec.stream)
    return logs


def _log_record(job: Job, order: ReplayOrder, logs: Sequence[FormerLog]) -> LogRecord:
    """What the change log will be: its files are still to be written."""
    row = job.books.snapshot(job.sync_id)
    last = logs[-1].log
    base = base_manifest(job, row, adopt=False)
    if order.sink_id is None:
        key_casts(base.key or last.key, last.key)
    else:
        base = replace(base, files=(None,) * base.partitions, rows=0, key=(), delivery=0, carried=(), unsure_keys=None)
    base = base.grown(max(base.partitions, *(one.log.partitions for one in logs)))
    needed = stream_of(job, job.spec.stream).needs_before
    return replace(
        last,
        partitions=base.partitions,
        files=(),
        stage={str(partition): [] for partition in range(base.partitions)},
        aside=(Aside(gone=None, held=None),) * base.partitions,
        base=base,
        mode=job.spec.mode,
        destination=job.destination,
        stream=job.spec.stream,
        before=tuple(field.path for field in before_fields(needed, last.schema)),
        planned_after=row.delivery,
        part=PartRead(former=None, settled=None, is_whole=False),
        is_elsewhere=order.sink_id is not None,
    )


# -- a partition


def _write_partition(job: Job, log: LogRecord, logs: Sequence[FormerLog], partition: int, file: Path) -> DiffCounts:
    task = replace(log.diff_input(partition, job.storage, log=file), unsure=unsure_keys_of(log.base, job.cipher))
    paths = [job.storage.absolute(one.log.files[partition & (one.log.partitions - 1)]) for one in logs]
    shared = [one.log.partitions < log.partitions for one in logs]
    with opened(scratch_of(job), job.budget) as connection, sealing(connection, task.before, job.cipher.sealer()):
        load_snapshot(connection, task)
        changes = " UNION ALL BY NAME ".join(
            _changes_of(task, path, place, is_shared=is_shared) for place, (path, is_shared) in enumerate(zip(paths, shared, strict=True))
        )
        connection.execute(f"CREATE TEMP VIEW change AS {changes}")
        keys = ", ".join(identifier(column.name) for column in task.key)
        # Keys first: only the fields of the changes that are sent are read.
        connection.execute(
            f"CREATE TEMP TABLE last AS SELECT {keys}, max({_ORDER}) AS {_ORDER} FROM (SELECT {keys}, {_ORDER} FROM change) GROUP BY ALL"
        )
        connection.execute(
            f"CREATE TEMP VIEW offered AS SELECT c.* FROM change c JOIN last l ON {_on(task, 'c', 'l')} AND c.{_ORDER} = l.{_ORDER}"
        )
        _write(connection, task, paths)
        return _count(connection, task)


def _changes_of(task: DiffInput, path: Path, place: int, *, is_shared: bool) -> str:
    """A log's rows that belong to the partition; from one that was written with fewer, only those."""
    texts = [f"coalesce({canonical_value(identifier(column.name), column.type)}, '')" for column in task.key]
    here = f" WHERE {partition_of_key(texts, task.manifest.partitions)} = {task.partition}" if is_shared else ""
    fields = ", ".join(identifier(name) for name in (OP, *task.fields, HASH))
    return f"SELECT {fields}, {place} AS {_ORDER} FROM read_parquet({text(str(path))}, hive_partitioning = false){here}"


def _on(task: DiffInput, left: str, right: str) -> str:
    return " AND ".join(f"{left}.{identifier(column.name)} = {right}.{identifier(column.name)}" for column in task.key)


def _write(connection: duckdb.DuckDBPyConnection, task: DiffInput, paths: Sequence[Path]) -> None:
    widest = widest_row_bytes(paths)
    keys = [column.name for column in task.key]
    names = keys if widest >= WIDE_ROW_BYTES else task.fields
    fields = ", ".join(f"c.{identifier(name)}" for name in names)
    before = f", {before_struct(task.before, f'o.{SEALED}')} AS {BEFORE}" if task.before else ""
    known = f" LEFT JOIN snapshot o ON {_on(task, 'c', 'o')}" if task.before else ""
    changes = f"SELECT c.{OP}, {fields}, c.{HASH}{before} FROM offered c{known}"
    if widest >= WIDE_ROW_BYTES:
        write_wide_log(connection, changes, key=keys, fields=task.fields, hashed=HASH, row_bytes=widest, log=task.log)
        return
    ordered = ", ".join(identifier(name) for name in keys)
    connection.execute(
        f"COPY ({changes} ORDER BY {ordered}) TO {text(str(task.log))}"
        f" ({PARQUET}, ROW_GROUP_SIZE {LOG_ROW_GROUP}, ROW_GROUP_SIZE_BYTES {ROW_GROUP_BYTES})"
    )


# -- the books


def _count(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> DiffCounts:
    """Upserts of the logs as staged rows, those that a later change made void as duplicates; changes from the log as it was written."""
    staged, _ = _upserts_and_deletes(connection, "change")
    upserts, deletes = _upserts_and_deletes(connection, f"read_parquet({text(str(task.log))}, hive_partitioning = false)")
    (void, _) = _upserts_and_deletes(connection, f"change c JOIN last l ON {_on(task, 'c', 'l')} AND c.{_ORDER} < l.{_ORDER}")
    known = connection.execute("SELECT count(*) FROM snapshot").fetchone()
    assert known is not None
    return DiffCounts(staged=staged, upserts=upserts, deletes=deletes, duplicates=void, snapshot_rows=int(known[0]))


def _upserts_and_deletes(connection: duckdb.DuckDBPyConnection, table: str) -> tuple[int, int]:
    counted = ", ".join(f"count(*) FILTER (WHERE {OP} = {text(op)})" for op in (Operation.UPSERT, Operation.DELETE))
    row = connection.execute(f"SELECT {counted} FROM {table}").fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _upserts_read(job: Job, logs: Sequence[FormerLog]) -> int:
    """Of all logs, whatever partition they belong to."""
    paths = path_list(job.storage.absolute(name) for one in logs for name in one.log.files)
    with opened(scratch_of(job), job.budget) as connection:
        return _upserts_and_deletes(connection, f"read_parquet({paths}, hive_partitioning = false, union_by_name = true)")[0]
