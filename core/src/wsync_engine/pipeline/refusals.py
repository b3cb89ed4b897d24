"""The rows of one partition that never reach the sink, as rejections to be listed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from wsync_engine.model.ids import uuid7
from wsync_engine.pipeline.diff import DiffInput, load_snapshot, load_stage, refused_duplicates, settle_duplicates
from wsync_engine.pipeline.local_database import Budget, arrow_table, opened
from wsync_engine.pipeline.mapping import REFUSAL
from wsync_engine.pipeline.refusal_text import RefusalText
from wsync_engine.pipeline.rejected_row import MOST_PAYLOAD_BYTES, payload_of
from wsync_engine.pipeline.sql import identifier, text
from wsync_engine.state.records import Cipher, NewRejection

__all__ = ["refusals_of"]


def refusals_of(task: DiffInput, cipher: Cipher, scratch: Path, budget: Budget, *, limit: int) -> list[NewRejection]:
    """At most `limit` refused rows; the books count all of them."""
    if limit <= 0:
        return []
    repeated_key = RefusalText(code="duplicate_key", field=", ".join(column.name for column in task.key)).to_text()
    with opened(scratch, budget) as connection:
        load_stage(connection, task)
        load_snapshot(connection, task)
        settle_duplicates(connection, task)
        refused = arrow_table(connection, f"SELECT {REFUSAL}, {_kept_fields(task)} FROM stage WHERE {REFUSAL} IS NOT NULL LIMIT {limit}")
        repeated = connection.sql(
            f"SELECT {text(repeated_key)} AS {REFUSAL}, * FROM ({refused_duplicates(task)}) LIMIT {limit}"
        ).to_arrow_table()
    found = [*_rejections(refused, task, cipher, "extract"), *_rejections(repeated, task, cipher, "diff")]
    return found[:limit]


def _kept_fields(task: DiffInput) -> str:
    """The row's fields; of a large row its key only, or ten thousand of them would be in memory, and in the state store."""
    packed = ", ".join(f"{identifier(name)} := {identifier(name)}" for name in task.fields)
    is_large = f"strlen(CAST(to_json(struct_pack({packed})) AS VARCHAR)) > {MOST_PAYLOAD_BYTES}"
    keys = {column.name for column in task.key}
    return ", ".join(
        identifier(name) if name in keys else f"CASE WHEN NOT {is_large} THEN {identifier(name)} END AS {identifier(name)}"
        for name in task.fields
    )


def _rejections(rows: pa.Table, task: DiffInput, cipher: Cipher, phase: str) -> list[NewRejection]:
    codes = rows.column(REFUSAL).to_pylist()
    payload = rows.drop_columns([REFUSAL]).combine_chunks()
    return [_rejection(str(code), payload.slice(place, 1), task, cipher, phase) for place, code in enumerate(codes)]


def _rejection(code: str, row: pa.Table, task: DiffInput, cipher: Cipher, phase: str) -> NewRejection:
    refusal = RefusalText.from_text(code)
    return NewRejection(
        rejection_id=uuid7(),
        partition=task.partition,
        row=None,
        phase=phase,
        code=refusal.code,
        message=refusal.message,
        retryable=False,
        payload=cipher.encrypt(payload_of(row, [column.name for column in task.key])),
    )
