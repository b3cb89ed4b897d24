"""The rows of one partition that never reach the sink, as rejections to be listed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from wsync_engine.model.ids import uuid7
from wsync_engine.pipeline.diff import DiffInput, load_snapshot, load_stage, refused_duplicates, settle_duplicates
from wsync_engine.pipeline.local_database import Budget, arrow_table, opened
from wsync_engine.pipeline.mapping import REFUSAL
from wsync_engine.pipeline.refusal_text import RefusalText
from wsync_engine.pipeline.sql import identifier
from wsync_engine.state.books import Cipher, NewRejection

__all__ = ["refusals_of"]

def refusals_of(task: DiffInput, cipher: Cipher, scratch: Path, budget: Budget, *, limit: int) -> list[NewRejection]:
    """At most `limit` refused rows; the books count all of them."""
    if limit <= 0:
        return []
    fields = ", ".join(identifier(name) for name in task.fields)
    with opened(scratch, budget) as connection:
        load_stage(connection, task)
        load_snapshot(connection, task)
        settle_duplicates(connection, task)
        refused = arrow_table(connection, f"SELECT {REFUSAL}, {fields} FROM stage WHERE {REFUSAL} IS NOT NULL LIMIT {limit}")
        repeated = connection.sql(
            f"SELECT 'duplicate_key:' AS {REFUSAL}, * FROM ({refused_duplicates(task)}) LIMIT {limit}"
        ).to_arrow_table()
    found = [*_rejections(refused, task, cipher, "extract"), *_rejections(repeated, task, cipher, "diff")]
    return found[:limit]


def _rejections(rows: pa.Table, task: DiffInput, cipher: Cipher, phase: str) -> list[NewRejection]:
    codes = rows.column(REFUSAL).to_pylist()
    payload = rows.drop_columns([REFUSAL]).combine_chunks()
    return [_rejection(str(code), payload.slice(place, 1), task, cipher, phase) for place, code in enumerate(codes)]


def _rejection(code: str, row: pa.Table, task: DiffInput, cipher: Cipher, phase: str) -> NewRejection:
    refusal = RefusalText.from_text(code)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, row.schema) as writer:
        writer.write_table(row)
    return NewRejection(
        rejection_id=uuid7(),
        partition=task.partition,
        row=None,
        phase=phase,
        code=refusal.code,
        message=refusal.message,
        retryable=False,
        payload=cipher.encrypt(bytes(stream.getvalue())),
    )
