"""Rows of the store as values, and the events that go with each write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from wsync_engine.index.entries import ReadyRun
from wsync_engine.index.layout import shard_of
from wsync_engine.scheduler.timing import Timing
from wsync_engine.state.statements import load_statements

__all__ = ["Event", "Row", "ready_run", "select", "shard_of", "statements", "timing_of", "write_events"]

Row = dict[str, Any]
_FOLDER = Path(__file__).with_name("sql")
_TIMING_FIELDS = tuple(Timing.__slots__)
_RUN_FIELDS = tuple(ReadyRun.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened, for lists and audits; written in the transaction that made it so."""

    kind: str
    tenant_id: UUID
    schedule_id: UUID | None = None
    run_id: UUID | None = None
    epoch: int | None = None
    detail: Mapping[str, str | int | None] | None = None


def statements(name: str) -> Mapping[str, bytes]:
    """The scheduler's statements of one file."""
    return load_statements(name, _FOLDER)


_EVENT = statements("event")


def select(conn: psycopg.Connection[Any], statement: bytes, parameters: Mapping[str, Any]) -> list[Row]:
    """All rows of a statement, by column name; none for a statement that returns nothing."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def write_events(conn: psycopg.Connection[Any], events: Sequence[Event]) -> None:
    """Store the events of this transaction."""
    if not events:
        return
    parameters = {
        "tenant_ids": [event.tenant_id for event in events],
        "schedule_ids": [event.schedule_id for event in events],
        "run_ids": [event.run_id for event in events],
        "epochs": [event.epoch for event in events],
        "kinds": [event.kind for event in events],
        "details": [None if event.detail is None else json.dumps(dict(event.detail)) for event in events],
    }
    conn.execute(_EVENT["event_insert"], parameters)


def timing_of(schedule: Row) -> Timing:
    """The timing of a row of `wsync.schedule`."""
    return Timing(**{name: schedule[name] for name in _TIMING_FIELDS})


def ready_run(row: Row) -> ReadyRun:
    """The index's entry of a queued run."""
    return ReadyRun(**{name: row[name] for name in _RUN_FIELDS})


def instant(row: Row, name: str) -> datetime:
    """A column that is never NULL."""
    value = row[name]
    assert isinstance(value, datetime)
    return value
