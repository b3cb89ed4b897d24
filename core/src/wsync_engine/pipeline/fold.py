"""Fold: turn a delivered change log and its acks into the next version of the snapshot, exactly those.

    accepted upsert → the new hash          accepted delete → the entry goes
    rejected        → the old entry, and what was refused, with the time before which it is not offered again unchanged
    sent, no verdict, or unknown → unsure   not sent → the old entry

A version that was switched to is all that there is: entries that its log does not have go, and a rejected row has none but its rejection.

Where the read was of a part of the result, rejected rows are kept as well: nobody will read them again (`carried.py`).

New files are written beside the old ones; they count once the manifest that names them is swapped in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.before import SEALED, known_after_send, known_when_accepted, sealing
from wsync_engine.pipeline.chunking import leaves, remaining
from wsync_engine.pipeline.diff import DiffInput, gone_keys, load_snapshot, load_stage, settle_duplicates
from wsync_engine.pipeline.local_database import Budget, opened
from wsync_engine.pipeline.mapping import HASH, REFUSAL
from wsync_engine.pipeline.sql import PARQUET, identifier, text
from wsync_engine.state.records import Sealer
from wsync_sdk import OP, RowRange

__all__ = ["Folded", "Target", "Verdicts", "fold_partition"]

FIRST_BACKOFF_US = 3_600 * 1_000_000
MOST_BACKOFF_US = 7 * 86_400 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What is known of a partition's rows: acknowledged ranges with their verdict, and the ranges that may have been sent."""

    acked: Sequence[tuple[RowRange, str]]
    sent: Sequence[RowRange]

    def ranges(self) -> list[tuple[int, int, str]]:
        """Disjoint ranges in order with `accepted`, `rejected` or `unsure`; rows in none were not sent."""
        known = [(span.first, span.last, "unsure" if verdict == "unknown" else verdict) for span, verdict in self.acked]
        spans = [span for span, _ in self.acked]
        for chunk in leaves(self.sent):
            inside = [
                RowRange(s.first - chunk.first, s.last - chunk.first) for s in spans if s.last >= chunk.first and s.first <= chunk.last
            ]
            clipped = [RowRange(max(0, s.first), min(chunk.rows - 1, s.last)) for s in inside]
            known += [(chunk.first + gap.first, chunk.first + gap.last, "unsure") for gap in remaining(chunk.rows, clipped)]
        return sorted(known)

    @property
    def is_empty(self) -> bool:
        """True where nothing of the partition was sent or judged."""
        return not self.acked and not self.sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a partition's fold writes. `carried`: rejected rows, to be offered again without being read again; None: they are not kept."""

    snapshot: Path
    carried: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Rows of the files that a fold wrote; without carried rows there is no file of them."""

    rows: int
    carried_rows: int = 0


def fold_partition(
    task: DiffInput, verdicts: Verdicts, target: Target, sealer: Sealer, *, now_us: int, scratch: Path, budget: Budget
) -> Folded:
    """Write the partition's next snapshot file, and its carried rows.

    :raises FatalError: the stage, log or old snapshot file is missing or damaged.
    """
    with opened(scratch, budget) as connection, sealing(connection, task.before, sealer):
        load_snapshot(connection, task)
        _load_judged(connection, task, verdicts)
        _load_aside(connection, task)
        entries = f"{_kept(task)} UNION ALL BY NAME {_judged_entries(task, now_us)}"
        connection.execute(f"COPY ({entries}) TO {text(str(target.snapshot))} ({PARQUET})")
        rows = _rows_of(connection, target.snapshot)
        if target.carried is None:
            return Folded(rows=rows)
        connection.execute(f"COPY ({_open_rejections(task, target.snapshot)}) TO {text(str(target.carried))} ({PARQUET})")
        carried_rows = _rows_of(connection, target.carried)
        if not carried_rows:
            target.carried.unlink()
        return Folded(rows=rows, carried_rows=carried_rows)


def _rows_of(connection: duckdb.DuckDBPyConnection, file: Path) -> int:
    row = connection.execute(f"SELECT count(*) FROM read_parquet({text(str(file))})").fetchone()
    assert row is not None
    return int(row[0])


def _open_rejections(task: DiffInput, snapshot: Path) -> str:
    """Rows whose newest entry says that just they were rejected: of those that were sent, and of those that were held back."""
    keys = ", ".join(f"s.{identifier(column.name)}" for column in task.key)
    columns = ", ".join([*(identifier(name) for name in task.fields), HASH])
    sent = f"SELECT {columns}, CAST(NULL AS VARCHAR) AS {REFUSAL} FROM {_log_file(task)} WHERE {OP} = 'upsert'"
    return (
        f"SELECT s.* FROM ({sent} UNION ALL BY NAME SELECT * FROM held) s JOIN read_parquet({text(str(snapshot))}) n ON {_match(task, 's', 'n')}"
        f" WHERE n.wsync_rejections > 0 AND n.wsync_rejected_hash = s.{HASH} AND s.{REFUSAL} IS NULL"
        f" QUALIFY row_number() OVER (PARTITION BY {keys}) = 1"
    )


def _load_aside(connection: duckdb.DuckDBPyConnection, task: DiffInput) -> None:
    """Views `gone` and `held`."""
    if task.has_stage:  # an older engine made the log
        load_stage(connection, task)
        settle_duplicates(connection, task)
        gone, held = gone_keys(task), f"SELECT * FROM stage WHERE {REFUSAL} IS NULL"
    else:
        gone = f"SELECT {_keys(task)} FROM snapshot WHERE false" if task.gone is None else f"FROM read_parquet({text(str(task.gone))})"
        held = f"SELECT {HASH} FROM snapshot WHERE false" if task.held is None else f"FROM read_parquet({text(str(task.held))})"
    connection.execute(f"CREATE TEMP VIEW gone AS {gone}")
    connection.execute(f"CREATE TEMP VIEW held AS {held}")


def _keys(task: DiffInput) -> str:
    return ", ".join(identifier(column.name) for column in task.key)


def _log_file(task: DiffInput) -> str:
    return f"read_parquet({text(str(task.log))}, file_row_number = true, hive_partitioning = false)"


def _load_judged(connection: duckdb.DuckDBPyConnection, task: DiffInput, verdicts: Verdicts) -> None:
    ranges = verdicts.ranges()
    table = pa.table(
        {
            "first_row": pa.array([first for first, _, _ in ranges], pa.int64()),
            "last_row": pa.array([last for _, last, _ in ranges], pa.int64()),
            "verdict": pa.array([verdict for _, _, verdict in ranges], pa.string()),
        }
    )
    connection.register("verdict_range", table)
    names = dict.fromkeys([column.name for column in task.key] + [field.path.split(".")[0] for field in task.before])
    columns = ", ".join(f"l.{identifier(name)}" for name in names)
    connection.execute(
        f"CREATE TEMP VIEW judged AS SELECT {columns}, l.{OP}, l.{HASH}, v.verdict"
        f" FROM {_log_file(task)} l"
        " ASOF JOIN verdict_range v ON l.file_row_number >= v.first_row WHERE l.file_row_number <= v.last_row"
    )


def _match(task: DiffInput, left: str, right: str) -> str:
    return " AND ".join(f"{left}.{identifier(column.name)} = {right}.{identifier(column.name)}" for column in task.key)


def _kept(task: DiffInput) -> str:
    """Entries the log says nothing of. What was never acknowledged, or is unsure outside `mirror`, is forgotten once it left the result."""
    if task.mode is Mode.REPLACE:
        return "SELECT o.* FROM snapshot o WHERE false"
    unjudged = f"SELECT o.* FROM snapshot o WHERE NOT EXISTS (FROM judged j WHERE {_match(task, 'j', 'o')})"
    return f"{unjudged} AND NOT EXISTS (FROM gone g WHERE {_match(task, 'g', 'o')})"


def _judged_entries(task: DiffInput, now_us: int) -> str:
    keys = ", ".join(f"j.{identifier(column.name)}" for column in task.key)
    again = f"CASE WHEN o.wsync_rejections > 0 AND o.wsync_rejected_hash IS NOT DISTINCT FROM j.{HASH} THEN o.wsync_rejections ELSE 0 END"
    former, was_unsure = f"o.{HASH}", "coalesce(o.wsync_unsure, false)"
    if task.mode is Mode.REPLACE:
        former, was_unsure = "CAST(NULL AS UUID)", "false"
    backoff = f"least({MOST_BACKOFF_US}, {FIRST_BACKOFF_US} * (1::BIGINT << least(20, {again})))"
    return (
        f"SELECT {keys},"
        f" CASE j.verdict WHEN 'accepted' THEN j.{HASH} ELSE {former} END AS {HASH},"
        f" CASE j.verdict WHEN 'accepted' THEN false WHEN 'unsure' THEN true ELSE {was_unsure} END AS wsync_unsure,"
        f" CASE j.verdict WHEN 'rejected' THEN j.{HASH} WHEN 'unsure' THEN o.wsync_rejected_hash END AS wsync_rejected_hash,"
        f" CAST(CASE j.verdict WHEN 'rejected' THEN {again} + 1 WHEN 'unsure' THEN coalesce(o.wsync_rejections, 0) ELSE 0 END AS INTEGER)"
        " AS wsync_rejections,"
        f" CASE j.verdict WHEN 'rejected' THEN {now_us} + {backoff} WHEN 'unsure' THEN o.wsync_offer_at END AS wsync_offer_at"
        f"{_known_before(task)}"
        f" FROM judged j LEFT JOIN snapshot o ON {_match(task, 'j', 'o')}"
        f" WHERE NOT (j.verdict = 'accepted' AND j.{OP} = 'delete')"
    )


def _known_before(task: DiffInput) -> str:
    if not task.before:
        return ""
    accepted, unsure = known_when_accepted(task.before, "j"), known_after_send(task.before, "j", f"o.{SEALED}")
    return (
        f", CASE WHEN j.{OP} = 'upsert' AND j.verdict = 'accepted' THEN {accepted}"
        f" WHEN j.{OP} = 'upsert' AND j.verdict = 'unsure' THEN {unsure} ELSE o.{SEALED} END AS {SEALED}"
    )
