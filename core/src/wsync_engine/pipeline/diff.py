"""Diff: compare one partition of the stage with the snapshot and write its change log.

    stage  ──┐  same key, same hash ── unchanged
             ├─ new, changed or unsure ── upsert          only if sendable: not refused, not a lost duplicate, not held back
    snapshot ┘  key not in the stage ── delete (mirror)

All of it is DuckDB over Parquet, out of core. The log is Parquet in key order; a row's place in it is its number for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from wsync_engine.model.sync import Duplicates, Mode
from wsync_engine.pipeline.before import SEALED, BeforeField, before_struct, sealing
from wsync_engine.pipeline.canonical import canonical_value, partition_of_key
from wsync_engine.pipeline.local_database import Budget, opened
from wsync_engine.pipeline.manifest import KeyColumn, Manifest
from wsync_engine.pipeline.mapping import HASH, PARTITION, REFUSAL
from wsync_engine.pipeline.shape import key_casts
from wsync_engine.pipeline.sql import PARQUET, ROW_GROUP_BYTES, identifier, path_list, text
from wsync_engine.pipeline.wide_log import WIDE_ROW_BYTES, widest_row_bytes, write_wide_log
from wsync_engine.state.books import Sealer
from wsync_sdk import BEFORE, OP, Operation

__all__ = [
    "DiffCounts",
    "DiffInput",
    "diff_partition",
    "load_snapshot",
    "load_stage",
    "refused_duplicates",
    "settle_duplicates",
    "snapshot_columns",
]

LOG_ROW_GROUP = 20_480


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffInput:
    """What one partition's diff reads and where it writes.

    :param stage: its staged files, maybe none. :param fields: the stream's top-level fields. :param offer_before_us: rejected changes whose
        backoff ends later (microseconds since 1970) are held back. :param before: fields whose values the snapshot keeps.
    :param carried: rows that were rejected before, staged beside what was read, maybe none.
    :param is_part: the stage holds a part of the result: who is not in it may not have left.
    """

    partition: int
    stage: Sequence[Path]
    snapshot: Path | None
    manifest: Manifest
    key: tuple[KeyColumn, ...]
    fields: tuple[str, ...]
    mode: Mode
    duplicates: Duplicates
    offer_before_us: int
    log: Path
    before: tuple[BeforeField, ...] = ()
    is_part: bool = False
    carried: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffCounts:
    """The books of one partition: read + carried = staged = unchanged + upserts + duplicates + refused + held_back, counted apart from one another."""

    staged: int = 0
    unchanged: int = 0
    upserts: int = 0
    duplicates: int = 0
    refused: int = 0
    held_back: int = 0
    deletes: int = 0
    snapshot_rows: int = 0
    refused_duplicates: int = 0
    withheld_deletes: int = 0
    held_deletes: int = 0
    carried: int = 0

    def __add__(self, other: DiffCounts) -> DiffCounts:
        return DiffCounts(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    def to_counts(self) -> dict[str, int]:
        """By name, as they are stored with the run."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_counts(cls, counts: Mapping[str, int]) -> DiffCounts:
        """What `to_counts` gave, also of an engine that counted less; other names are passed over."""
        return cls(**{name: counts.get(name, 0) for name in cls.__dataclass_fields__})


def snapshot_columns(key: Sequence[KeyColumn], *, has_before: bool = False) -> str:
    """Columns of a snapshot file as a DDL list, for an empty one."""
    keys = ", ".join(f"{identifier(column.name)} {column.type}" for column in key)
    return f"{keys}, {HASH} UUID, wsync_unsure BOOLEAN, wsync_rejected_hash UUID, wsync_rejections INTEGER, wsync_offer_at BIGINT{f', {SEALED} BLOB' if has_before else ''}"


def diff_partition(task: DiffInput, sealer: Sealer, *, withhold_deletes: bool, scratch: Path, budget: Budget) -> DiffCounts:
    """Write the partition's change log and say what it holds.

    :param withhold_deletes: some rows' keys could not be read, so nobody knows who left the result: count deletes, but log none.
    """
    with opened(scratch, budget) as connection, sealing(connection, task.before, sealer):
        load_stage(connection, task)
        load_snapshot(connection, task)
        has_repeated = settle_duplicates(connection, task)
        counts = _count(connection, task, has_repeated=has_repeated)
        if withhold_deletes:
            counts = replace(counts, deletes=0, withheld_deletes=counts.deletes)
        _write_log(connection, task, with_deletes=task.mode is Mode.MIRROR and not withhold_deletes)
        return counts


def load_stage(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> None:
    """View `stage`: the partition's rows, those that were read and, of other keys, those that were carried (view `carried`)."""
    if task.stage:
        connection.execute(f"CREATE TEMP VIEW was_read AS SELECT * FROM read_parquet({path_list(task.stage)}, hive_partitioning = false)")
    else:
        keys = ", ".join(f"CAST(NULL AS {column.type}) AS {identifier(column.name)}" for column in task.key)
        others = "".join(f", NULL AS {identifier(name)}" for name in task.fields if name not in {column.name for column in task.key})
        connection.execute(
            f"CREATE TEMP VIEW was_read AS SELECT {keys}{others}, CAST(NULL AS UUID) AS {HASH}, 0 AS {PARTITION}, "
            f"CAST(NULL AS VARCHAR) AS {REFUSAL} WHERE false"
        )
    if task.carried is None:
        connection.execute("CREATE TEMP VIEW carried AS SELECT * FROM was_read WHERE false")
        connection.execute("CREATE TEMP VIEW stage AS SELECT * FROM was_read")
        return
    connection.execute(
        f"CREATE TEMP VIEW carried AS SELECT * FROM read_parquet({path_list([task.carried])}, hive_partitioning = false) c"
        f" WHERE {_is_here(task)} AND NOT EXISTS (FROM was_read s WHERE {_on(task, 's', 'c')})"
    )
    was_read = "SELECT * FROM was_read UNION ALL BY NAME " if task.stage else ""
    connection.execute(f"CREATE TEMP VIEW stage AS {was_read}SELECT * FROM carried")


def _is_here(task: DiffInput) -> str:
    """Whether a row of a file that was written with fewer partitions belongs to this one."""
    texts = [f"coalesce({canonical_value(identifier(column.name), column.type)}, '')" for column in task.key]
    return f"{partition_of_key(texts, task.manifest.partitions)} = {task.partition}"


def load_snapshot(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> None:
    """View `snapshot`: the partition's entries; from the file of a coarser partition only those that belong here."""
    if task.snapshot is None:
        connection.execute(f"CREATE TEMP TABLE snapshot ({snapshot_columns(task.key, has_before=bool(task.before))})")
        return
    manifest = task.manifest
    casts = key_casts(manifest.key or task.key, task.key)
    replaced = [f"CAST({identifier(name)} AS {kind}) AS {identifier(name)}" for name, kind in casts.items()]
    if manifest.is_unsure:  # what was never acknowledged is not at the sink, whatever else is in doubt
        replaced += [f"({HASH} IS NOT NULL OR wsync_unsure) AS wsync_unsure", "CAST(0 AS BIGINT) AS wsync_offer_at"]
    doubt = f"REPLACE ({', '.join(replaced)})" if replaced else ""
    file = f"read_parquet({path_list([task.snapshot])}, hive_partitioning = false)"
    without, before = _before_column(connection, file, is_needed=bool(task.before))
    connection.execute(f"CREATE TEMP VIEW snapshot AS SELECT * {without} {doubt}{before} FROM {file} WHERE {_is_here(task)}")


def _before_column(connection: duckdb.DuckDBPyConnection, file: str, *, is_needed: bool) -> tuple[str, str]:
    """(what leaves out the before-values, what adds them): the file was written for another stream, or before this one asked for them."""
    is_there = SEALED in {name for name, *_ in connection.execute(f"DESCRIBE SELECT * FROM {file}").fetchall()}
    if is_there == is_needed:
        return "", ""
    return (f"EXCLUDE ({SEALED})", "") if is_there else ("", f", CAST(NULL AS BLOB) AS {SEALED}")


def _keys(task: DiffInput, table: str = "") -> str:
    prefix = f"{table}." if table else ""
    return ", ".join(prefix + identifier(column.name) for column in task.key)


def _on(task: DiffInput, left: str, right: str) -> str:
    return " AND ".join(f"{left}.{identifier(column.name)} = {right}.{identifier(column.name)}" for column in task.key)


def settle_duplicates(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> bool:
    """Views `offered` (rows that may be sent) and `present` (keys that are in the result, also of rows that may not); are there duplicates?"""
    readable = " AND ".join(f"{identifier(column.name)} IS NOT NULL" for column in task.key)
    connection.execute(f"CREATE TEMP VIEW readable AS SELECT * FROM stage WHERE {readable}")
    connection.execute(f"CREATE TEMP VIEW present AS SELECT {_keys(task)} FROM readable")
    connection.execute(f"CREATE TEMP TABLE repeated AS SELECT {_keys(task)} FROM readable GROUP BY ALL HAVING count(*) > 1")
    has_repeated = connection.execute("SELECT 1 FROM repeated LIMIT 1").fetchone() is not None
    # Without duplicates each join with them would cost a pass over all keys, and find nothing.
    unrepeated = f" AND NOT EXISTS (FROM repeated r WHERE {_on(task, 's', 'r')})" if has_repeated else ""
    connection.execute(f"CREATE TEMP VIEW single AS SELECT * FROM readable s WHERE {REFUSAL} IS NULL{unrepeated}")
    winners = _winners(connection, task) if has_repeated else ""
    connection.execute(f"CREATE TEMP VIEW offered AS SELECT * FROM single {winners}")
    return has_repeated


def _winners(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> str:
    """Of each repeated key the row that the rule names; a tie names none, and all of that key are refused."""
    if task.duplicates.rule == "refuse":
        return ""
    by = identifier(str(task.duplicates.by))
    order = f"{by} ASC NULLS LAST" if task.duplicates.rule == "first" else f"{by} DESC NULLS LAST"
    connection.execute(
        f"CREATE TEMP TABLE winner AS SELECT * EXCLUDE (wsync_rank, wsync_ties) FROM ("
        f"SELECT s.*, rank() OVER (PARTITION BY {_keys(task, 's')} ORDER BY {order}) AS wsync_rank,"
        f" count(*) OVER (PARTITION BY {_keys(task, 's')}, {by}) AS wsync_ties"
        f" FROM readable s WHERE {REFUSAL} IS NULL AND EXISTS (FROM repeated r WHERE {_on(task, 's', 'r')}))"
        " WHERE wsync_rank = 1 AND wsync_ties = 1"
    )
    return "UNION ALL SELECT * FROM winner"


def _held_back(task: DiffInput) -> str:
    return f"(o.wsync_rejections > 0 AND o.wsync_rejected_hash = s.{HASH} AND o.wsync_offer_at > {task.offer_before_us})"


_SAME = f"(o.{HASH} = s.{HASH} AND NOT o.wsync_unsure)"


def _departed(task: DiffInput, *, is_held: bool = False) -> str:
    """Entries whose keys left the result; those to be deleted now, or those whose delete was rejected before and is held back."""
    held = f"coalesce(wsync_rejections > 0 AND wsync_rejected_hash IS NULL AND wsync_offer_at > {task.offer_before_us}, false)"
    return (
        f"SELECT o.* FROM snapshot o WHERE (o.{HASH} IS NOT NULL OR o.wsync_unsure) AND {'' if is_held else 'NOT '}{held}"
        f" AND NOT EXISTS (FROM present s WHERE {_on(task, 's', 'o')})"
    )


def _count(connection: duckdb.DuckDBPyConnection, task: DiffInput, *, has_repeated: bool) -> DiffCounts:
    """Each number by its own count, so that the books can disagree."""
    staged, refused = _row(connection, f"SELECT count(*), count(*) FILTER (WHERE {REFUSAL} IS NOT NULL) FROM stage")
    unchanged, held_back, upserts = _row(
        connection,
        f"SELECT count(*) FILTER (WHERE coalesce({_SAME}, false)),"
        f" count(*) FILTER (WHERE NOT coalesce({_SAME}, false) AND coalesce({_held_back(task)}, false)),"
        f" count(*) FILTER (WHERE NOT coalesce({_SAME}, false) AND NOT coalesce({_held_back(task)}, false))"
        f" FROM (SELECT {_keys(task)}, {HASH} FROM offered) s LEFT JOIN snapshot o ON {_on(task, 's', 'o')}",
    )
    duplicates, refused_keys = _count_duplicates(connection, task) if has_repeated else (0, 0)
    return DiffCounts(
        staged=staged,
        unchanged=unchanged,
        upserts=upserts,
        duplicates=duplicates,
        refused=refused,
        held_back=held_back,
        deletes=_departed_rows(connection, task, is_held=False),
        held_deletes=_departed_rows(connection, task, is_held=True),
        snapshot_rows=_row(connection, f"SELECT count(*) FROM snapshot WHERE {HASH} IS NOT NULL OR wsync_unsure")[0],
        refused_duplicates=refused_keys,
        carried=_row(connection, "SELECT count(*) FROM carried")[0],
    )


def _departed_rows(connection: duckdb.DuckDBPyConnection, task: DiffInput, *, is_held: bool) -> int:
    if task.mode is not Mode.MIRROR:
        return 0
    return _row(connection, f"SELECT count(*) FROM ({_departed(task, is_held=is_held)})")[0]


def _count_duplicates(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> tuple[int, int]:
    """(rows that lost to another of their key, or that all were refused; keys of which none was offered)."""
    refused, rows = _row(
        connection,
        f"SELECT count(*) FILTER (WHERE {REFUSAL} IS NOT NULL), count(*) FROM readable s"
        f" WHERE EXISTS (FROM repeated r WHERE {_on(task, 's', 'r')})",
    )
    winners = _row(connection, "SELECT count(*) FROM offered")[0] - _row(connection, "SELECT count(*) FROM single")[0]
    return rows - refused - winners, _row(connection, f"SELECT count(*) FROM ({refused_duplicates(task)})")[0]


def refused_duplicates(task: DiffInput) -> str:
    """Keys of which no row was offered for being repeated: rejections, one per key."""
    return (
        f"SELECT {_keys(task, 'r')} FROM repeated r WHERE NOT EXISTS (FROM offered s WHERE {_on(task, 's', 'r')})"
        f" AND EXISTS (FROM readable s WHERE {REFUSAL} IS NULL AND {_on(task, 's', 'r')})"
    )


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[int, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(int(value) for value in row)


def _write_log(connection: duckdb.DuckDBPyConnection, task: DiffInput, *, with_deletes: bool) -> None:
    widest = widest_row_bytes([*task.stage, *([] if task.carried is None else [task.carried])])
    if widest >= WIDE_ROW_BYTES:
        narrow = _changes(task, f"{_keys(task, 's')}, s.{HASH}", with_deletes=with_deletes)
        keys = [column.name for column in task.key]
        write_wide_log(connection, narrow, key=keys, fields=task.fields, hashed=HASH, row_bytes=widest, log=task.log)
        return
    fields = ", ".join(f"s.{identifier(name)}" for name in task.fields)
    connection.execute(
        f"COPY (SELECT * FROM ({_changes(task, f'{fields}, s.{HASH}', with_deletes=with_deletes)}) ORDER BY {_keys(task)})"
        f" TO {text(str(task.log))} ({PARQUET}, ROW_GROUP_SIZE {LOG_ROW_GROUP}, ROW_GROUP_SIZE_BYTES {ROW_GROUP_BYTES})"
    )


def _changes(task: DiffInput, columns: str, *, with_deletes: bool) -> str:
    """SQL of the changes, in any order; `columns` of the rows `s` to upsert."""
    before = f", {before_struct(task.before, f'o.{SEALED}')} AS {BEFORE}" if task.before else ""
    upserts = (
        f"SELECT {text(Operation.UPSERT)} AS {OP}, {columns}{before} FROM offered s LEFT JOIN snapshot o ON {_on(task, 's', 'o')}"
        f" WHERE NOT coalesce({_SAME}, false) AND NOT coalesce({_held_back(task)}, false)"
    )
    if not with_deletes:
        return upserts
    deletes = f"SELECT {text(Operation.DELETE)} AS {OP}, {_keys(task)}, CAST(NULL AS UUID) AS {HASH}{before} FROM ({_departed(task)}) o"
    return f"{upserts} UNION ALL BY NAME {deletes}"
