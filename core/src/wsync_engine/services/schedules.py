"""Schedules by name: list, pause, resume, trigger."""

from __future__ import annotations

from typing import Any

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.model.ids import TenantId
from wsync_engine.scheduler import schedules
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.scheduler.schedules import StoredSchedule, Triggered, announce, trigger_run
from wsync_engine.services.catalog import named, service_statements
from wsync_engine.state.database import tenant_transaction

__all__ = ["list_schedules", "pause_schedule", "resume_schedule", "trigger_schedule"]

_SQL = service_statements("catalog")


def list_schedules(conn: psycopg.Connection[Any], tenant_id: TenantId) -> list[Row]:
    """The tenant's schedules by name, with their sync's name, their next due time and what they counted."""
    with tenant_transaction(conn, tenant_id):
        return _rows(conn, tenant_id)


def pause_schedule(
    conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, note: str | None, actor: str, index: Index | None = None
) -> StoredSchedule:
    """No scheduled run is made from now on, until resume; pausing twice is once.

    :raises ConfigError: there is no such schedule.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
        stored = schedules.pause_schedule(conn, tenant_id, row["schedule_id"], note=note, actor=actor)
    return _announced(stored, index)


def resume_schedule(
    conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, actor: str, index: Index | None = None
) -> StoredSchedule:
    """Go on with the first nominal time after now.

    :raises ConfigError: there is no such schedule.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
        stored = schedules.resume_schedule(conn, tenant_id, row["schedule_id"], actor=actor)
    return _announced(stored, index)


def trigger_schedule(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, actor: str, index: Index | None = None) -> Triggered:
    """Make a run now, with the schedule's priority, also while it is paused.

    :raises ConfigError: there is no such schedule.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
        triggered = trigger_run(
            conn, tenant_id, sync_id=row["sync_id"], schedule_id=row["schedule_id"], priority=row["priority"], actor=actor
        )
    if index is not None and triggered.run is not None:
        announce(index, runs=[triggered.run])
    return triggered


def _rows(conn: psycopg.Connection[Any], tenant_id: TenantId) -> list[Row]:
    return select(conn, _SQL["schedule_list"], {"tenant_id": tenant_id})


def _named(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str) -> Row:
    row: Row = named({row["name"]: row for row in _rows(conn, tenant_id)}, name, "schedule")
    return row


def _announced(stored: StoredSchedule, index: Index | None) -> StoredSchedule:
    if index is not None:
        announce(index, [stored.entry])
    return stored
