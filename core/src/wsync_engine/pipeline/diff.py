"""Diff: compare one partition of the stage with the snapshot and write its change log.

    stage  ──┐  same key, same hash ── unchanged
             ├─ new, changed or unsure ── upsert          only if sendable: not refused, not a lost duplicate, not held back
    snapshot ┘  key not in the stage ── delete (mirror)

In `append` a key that was acknowledged is unchanged, whatever its row holds now. In `replace` the log holds every row that may be sent: whether any of them
differs is told by the counts, and what is sent is decided when all partitions are known (`versions.py`).

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
from wsync_engine.pipeline.subscriber_keys import KeyText, create_key_table, has_key
from wsync_engine.pipeline.wide_log import WIDE_ROW_BYTES, widest_row_bytes, write_wide_log
from wsync_engine.state.records import Sealer
from wsync_sdk import BEFORE, OP, Operation

__all__ = [
    "DiffCounts",
    "DiffInput",
    "diff_partition",
    "gone_keys",
    "held_rows",
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
    :param gone: file of the keys that the fold forgets, because they left the result and were never acknowledged, or are unsure outside `mirror`.
    :param keeps_rejected: rows that are rejected are kept, as the next run may not read them. :param held: file of those that are held back. :param has_stage: the fold finds both in the stage.
    :param unsure: keys whose entries are unsure, whatever the snapshot's file says.
    :param is_shared: the snapshot's file was written with fewer partitions, and has keys of others.
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
    gone: Path | None = None
    held: Path | None = None
    keeps_rejected: bool = False
    has_stage: bool = True
    unsure: tuple[KeyText, ...] = ()
    is_shared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffCounts:
    """The books of one partition: read + carried = staged = unchanged + upserts + duplicates + refused + held_back, counted apart from one another.

    In `replace` the upserts are all rows, those that are unchanged or were rejected before among them, and `departed` are the entries that leave with the
    former version.
    """

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
    departed: int = 0

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
        sides = _Sides(has_repeated=settle_duplicates(connection, task), **_set_aside(connection, task))
        _write_log(connection, task, sides, with_deletes=task.mode is Mode.MIRROR and not withhold_deletes)
        counts = _count(connection, task, sides)
        if withhold_deletes:
            counts = replace(counts, withheld_deletes=_row(connection, f"SELECT count(*) FROM ({_departed(task, is_held=False)})")[0])
        if _has_rows(connection, _forgettable(task)):
            _write_if_any(connection, gone_keys(task), task.gone)
        if sides.has_rejected:
            _write_if_any(connection, held_rows(task), task.held)
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """Which of the tables beside the big ones have rows; joins with those that have none are left out.

    :param has_repeated: keys come more than once. :param has_unoffered: keys are in the result that may not be sent.
    :param has_rejected: entries of the snapshot say that their last change was rejected.
    """

    has_repeated: bool
    has_unoffered: bool
    has_rejected: bool


def _set_aside(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> dict[str, bool]:
    """Tables `unoffered` and `rejected`: few rows as a rule."""
    connection.execute(
        f"CREATE TEMP TABLE unoffered AS SELECT {_keys(task)} FROM readable WHERE {REFUSAL} IS NOT NULL"
        f" UNION SELECT {_keys(task)} FROM repeated"
    )
    connection.execute(
        f"CREATE TEMP TABLE rejected AS SELECT {_keys(task)}, {HASH}, wsync_unsure, wsync_rejections, wsync_rejected_hash, wsync_offer_at"
        " FROM snapshot WHERE wsync_rejections > 0"
    )
    return {f"has_{table}": _has_rows(connection, f"FROM {table}") for table in ("unoffered", "rejected")}


def gone_keys(task: DiffInput) -> str:
    """Forgettable entries that left the result. Of a part of a result nobody knows who left."""
    return (
        f"SELECT {_keys(task, 'o')} FROM ({_forgettable(task)}) o"
        f" WHERE {not task.is_part} AND NOT EXISTS (FROM stage s WHERE {_on(task, 's', 'o')})"
    )


def _forgettable(task: DiffInput) -> str:
    """Entries of rows that were only ever rejected, and, where nothing is deleted, of those that are unsure."""
    rejected = f"SELECT {_keys(task)} FROM snapshot WHERE wsync_rejections > 0 AND {HASH} IS NULL AND NOT wsync_unsure"
    return rejected if task.mode is Mode.MIRROR else f"{rejected} UNION ALL SELECT {_keys(task)} FROM snapshot WHERE wsync_unsure"


def held_rows(task: DiffInput) -> str:
    """Rows that are held back, as they are staged."""
    return (
        f"SELECT s.* FROM offered s JOIN snapshot o ON {_on(task, 's', 'o')}"
        f" WHERE {task.keeps_rejected} AND NOT coalesce({_same(task)}, false) AND coalesce({_held_back(task)}, false)"
    )


def _write_if_any(connection: duckdb.DuckDBPyConnection, query: str, file: Path | None) -> None:
    if file is not None and _has_rows(connection, query):
        connection.execute(f"COPY ({query}) TO {text(str(file))} ({PARQUET})")


def _has_rows(connection: duckdb.DuckDBPyConnection, query: str) -> bool:
    return connection.execute(f"SELECT 1 FROM ({query}) LIMIT 1").fetchone() is not None


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
    elif task.unsure:
        create_key_table(connection, "doubted", task.key, task.unsure)
        is_doubted = has_key(task.key, "doubted", "f")
        replaced += [
            f"(wsync_unsure OR ({HASH} IS NOT NULL AND {is_doubted})) AS wsync_unsure",
            f"CASE WHEN NOT {is_doubted} THEN wsync_offer_at ELSE 0 END AS wsync_offer_at",
        ]
    doubt = f"REPLACE ({', '.join(replaced)})" if replaced else ""
    file = f"read_parquet({path_list([task.snapshot])}, hive_partitioning = false)"
    without, before = _before_column(connection, file, is_needed=bool(task.before))
    # A key's partition is computed for files that have others' keys, too: it would be half the cost of a comparison.
    here = f"WHERE {_is_here(task)}" if task.is_shared else ""
    connection.execute(f"CREATE TEMP VIEW snapshot AS SELECT * {without} {doubt}{before} FROM {file} f {here}")


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
    has_repeated = _has_repeated(connection, task)
    condition = "GROUP BY ALL HAVING count(*) > 1" if has_repeated else "WHERE false"
    connection.execute(f"CREATE TEMP TABLE repeated AS SELECT {_keys(task)} FROM readable {condition}")
    # Without duplicates each join with them would cost a pass over all keys, and find nothing.
    unrepeated = f" AND NOT EXISTS (FROM repeated r WHERE {_on(task, 's', 'r')})" if has_repeated else ""
    connection.execute(f"CREATE TEMP VIEW single AS SELECT * FROM readable s WHERE {REFUSAL} IS NULL{unrepeated}")
    winners = _winners(connection, task) if has_repeated else ""
    connection.execute(f"CREATE TEMP VIEW offered AS SELECT * FROM single {winners}")
    return has_repeated


def _has_repeated(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> bool:
    """Counting keys costs less than finding those that come twice."""
    rows, different = _row(
        connection, f"SELECT (SELECT count(*) FROM readable), (SELECT count(*) FROM (SELECT DISTINCT {_keys(task)} FROM readable))"
    )
    return rows != different


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


def _same(task: DiffInput) -> str:
    """Whether nothing is to be sent of a row `s` for what was acknowledged of its key, `o`."""
    known = f"o.{HASH} IS NOT NULL" if task.mode is Mode.APPEND else f"o.{HASH} = s.{HASH}"
    return f"({known} AND NOT o.wsync_unsure)"


def _is_delete_held(task: DiffInput) -> str:
    return f"coalesce(wsync_rejections > 0 AND wsync_rejected_hash IS NULL AND wsync_offer_at > {task.offer_before_us}, false)"


def _departed(task: DiffInput, *, is_held: bool, table: str = "snapshot") -> str:
    """Entries whose keys left the result; those to be deleted now, or those whose delete was rejected before and is held back."""
    return (
        f"SELECT o.* FROM {table} o WHERE (o.{HASH} IS NOT NULL OR o.wsync_unsure) AND {'' if is_held else 'NOT '}{_is_delete_held(task)}"
        f" AND NOT EXISTS (FROM present s WHERE {_on(task, 's', 'o')})"
    )


def _count(connection: duckdb.DuckDBPyConnection, task: DiffInput, sides: _Sides) -> DiffCounts:
    """Each number by its own count, so that the books can disagree: changes from the log as it was written."""
    staged, refused = _row(connection, f"SELECT count(*), count(*) FILTER (WHERE {REFUSAL} IS NOT NULL) FROM stage")
    upserts, deletes = _row(
        connection,
        f"SELECT count(*) FILTER (WHERE {OP} = {text(Operation.UPSERT)}), count(*) FILTER (WHERE {OP} = {text(Operation.DELETE)})"
        f" FROM read_parquet({text(str(task.log))}, hive_partitioning = false)",
    )
    duplicates, refused_keys = _count_duplicates(connection, task) if sides.has_repeated else (0, 0)
    return DiffCounts(
        staged=staged,
        unchanged=_count_unchanged(connection, task),
        upserts=upserts,
        duplicates=duplicates,
        departed=_count_departed(connection, task, sides),
        refused=refused,
        held_back=_count_held_back(connection, task) if sides.has_rejected else 0,
        deletes=deletes,
        held_deletes=_count_held_deletes(connection, task) if sides.has_rejected else 0,
        snapshot_rows=_count_known(connection),
        refused_duplicates=refused_keys,
        carried=_row(connection, "SELECT count(*) FROM carried")[0],
    )


def _count_known(connection: duckdb.DuckDBPyConnection) -> int:
    """Entries of what may be at the destination: all but those whose only changes were rejected."""
    never = f"SELECT count(*) FROM rejected WHERE {HASH} IS NULL AND NOT wsync_unsure"
    return _row(connection, f"SELECT (SELECT count(*) FROM snapshot) - ({never})")[0]


def _count_departed(connection: duckdb.DuckDBPyConnection, task: DiffInput, sides: _Sides) -> int:
    if task.mode is not Mode.REPLACE:
        return 0
    keys = [column.name for column in task.key]
    deletes = _changes(replace(task, mode=Mode.MIRROR), replace(sides, has_unoffered=False), keys, with_deletes=True)
    return _row(connection, f"SELECT count(*) FROM ({deletes}) WHERE {OP} = {text(Operation.DELETE)}")[0]


def _count_unchanged(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> int:
    return _row(
        connection,
        f"SELECT count(*) FROM (SELECT {_keys(task)}, {HASH} FROM offered) s"
        f" JOIN (SELECT {_keys(task)}, {HASH}, wsync_unsure FROM snapshot) o ON {_on(task, 's', 'o')} WHERE {_same(task)}",
    )[0]


def _count_held_back(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> int:
    return _row(
        connection,
        f"SELECT count(*) FROM (SELECT {_keys(task)}, {HASH} FROM offered) s JOIN rejected o ON {_on(task, 's', 'o')}"
        f" WHERE NOT coalesce({_same(task)}, false) AND coalesce({_held_back(task)}, false)",
    )[0]


def _count_held_deletes(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> int:
    if task.mode is not Mode.MIRROR:
        return 0
    return _row(connection, f"SELECT count(*) FROM ({_departed(task, is_held=True, table='rejected')})")[0]


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


def _write_log(connection: duckdb.DuckDBPyConnection, task: DiffInput, sides: _Sides, *, with_deletes: bool) -> None:
    """One pass over stage and snapshot: what of them is not the same, in key order."""
    keys = [column.name for column in task.key]
    widest = widest_row_bytes([*task.stage, *([] if task.carried is None else [task.carried])])
    if widest >= WIDE_ROW_BYTES:
        narrow = _changes(task, sides, keys, with_deletes=with_deletes)
        write_wide_log(connection, narrow, key=keys, fields=task.fields, hashed=HASH, row_bytes=widest, log=task.log)
        return
    connection.execute(
        f"COPY ({_changes(task, sides, task.fields, with_deletes=with_deletes)} ORDER BY {_keys(task)})"
        f" TO {text(str(task.log))} ({PARQUET}, ROW_GROUP_SIZE {LOG_ROW_GROUP}, ROW_GROUP_SIZE_BYTES {ROW_GROUP_BYTES})"
    )


def _changes(task: DiffInput, sides: _Sides, names: Sequence[str], *, with_deletes: bool) -> str:
    """SQL of the changes, in any order, with these of the fields."""
    keys = {column.name for column in task.key}
    fields = ", ".join(
        f"coalesce(s.{identifier(name)}, o.{identifier(name)}) AS {identifier(name)}" if name in keys else f"s.{identifier(name)}"
        for name in names
    )
    condition = "true" if task.mode is Mode.REPLACE else f"NOT coalesce({_same(task)}, false) AND {_is_sent(task, sides)}"
    sealed, before = (f", {SEALED}", f", {before_struct(task.before, f'o.{SEALED}')} AS {BEFORE}") if task.before else ("", "")
    return (
        f"SELECT CASE WHEN s.{HASH} IS NULL THEN {text(Operation.DELETE)} ELSE {text(Operation.UPSERT)} END AS {OP},"
        f" {fields}, s.{HASH}{before}"
        f" FROM offered s {'FULL' if with_deletes else 'LEFT'} JOIN (SELECT {_keys(task)}, {HASH}, wsync_unsure{sealed} FROM snapshot) o"
        f" ON {_on(task, 's', 'o')} WHERE {condition}"
    )


def _is_sent(task: DiffInput, sides: _Sides) -> str:
    """Of rows that are not the same: an upsert that is not held back; a delete of what may be there, is not in the result, and is not held back."""
    upsert, delete = f"s.{HASH} IS NOT NULL", f"s.{HASH} IS NULL AND (o.{HASH} IS NOT NULL OR o.wsync_unsure)"
    if sides.has_rejected:
        held = f"SELECT {_keys(task)}, wsync_rejected_hash FROM rejected WHERE wsync_offer_at > {task.offer_before_us}"
        upsert += f" AND NOT EXISTS (FROM ({held}) h WHERE {_on(task, 'h', 's')} AND h.wsync_rejected_hash = s.{HASH})"
        delete += f" AND NOT EXISTS (FROM ({held}) h WHERE {_on(task, 'h', 'o')} AND h.wsync_rejected_hash IS NULL)"
    if sides.has_unoffered:
        delete += f" AND NOT EXISTS (FROM unoffered u WHERE {_on(task, 'u', 'o')})"
    return f"(({upsert}) OR ({delete}))"
