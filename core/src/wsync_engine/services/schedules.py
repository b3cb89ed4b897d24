"""Schedules by name: list, show, pause, resume, trigger, fill up the past."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.model.ids import TenantId
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.model.sync import Scalar
from wsync_engine.scheduler import backfill, schedules
from wsync_engine.scheduler.backfill import StoredBackfill, create_backfill
from wsync_engine.scheduler.rows import Row, select, timing_of
from wsync_engine.scheduler.schedules import StoredSchedule, Triggered, announce, trigger_run
from wsync_engine.scheduler.timing import nominal_times
from wsync_engine.services.catalog import named, service_statements
from wsync_engine.services.syncs import announced
from wsync_engine.state.database import tenant_transaction
from wsync_sdk.errors import ConfigError

__all__ = [
    "backfill_schedule",
    "cancel_backfill",
    "list_backfills",
    "list_schedules",
    "next_times",
    "pause_schedule",
    "resume_schedule",
    "show_schedule",
    "trigger_schedule",
]

_SQL = service_statements("catalog")


def list_schedules(conn: psycopg.Connection[Any], tenant_id: TenantId) -> list[Row]:
    """The tenant's schedules by name, with their sync's name, their next due time and what they counted."""
    with tenant_transaction(conn, tenant_id):
        return _rows(conn, tenant_id)


def pause_schedule(
    conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, note: str | None, actor: str, index: Index | None = None
) -> Row:
    """No scheduled run is made from now on, until resume; pausing twice is once, and keeps the note unless a new one is given.

    :returns: the schedule as it was before.
    :raises ConfigError: there is no such schedule.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
        stored = schedules.pause_schedule(conn, tenant_id, row["schedule_id"], note=note, actor=actor)
    _announced(stored, index)
    return row


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


def trigger_schedule(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    name: str,
    *,
    actor: str,
    overlap: OverlapPolicy | None = None,
    params: Mapping[str, Scalar] | None = None,
    index: Index | None = None,
) -> Triggered:
    """Make a run now, with the schedule's priority, also while it is paused; other options as of `trigger_run`.

    :raises ConfigError: there is no such schedule, or its sync has no such parameter.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
        ids = {"sync_id": row["sync_id"], "schedule_id": row["schedule_id"]}
        triggered = trigger_run(conn, tenant_id, **ids, priority=row["priority"], actor=actor, overlap=overlap, params=params)
    return announced(triggered, index)


def next_times(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, count: int) -> list[datetime]:
    """The schedule's coming nominal times: none while it is paused or when it is exhausted.

    :raises ConfigError: there is no such schedule.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
    if row["next_nominal_at"] is None:
        return []
    left = count if row["max_runs"] is None else min(count, row["max_runs"] - row["fired"])
    first: datetime = row["next_nominal_at"]
    return [first, *nominal_times(timing_of(row), first, left - 1)] if left > 1 else [first][:left]


def show_schedule(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str) -> tuple[Row, list[Row]]:
    """The schedule as `list_schedules` has it, and its latest events, newest first.

    :raises ConfigError: there is no such schedule.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
        return row, select(conn, _SQL["schedule_events"], {"tenant_id": tenant_id, "schedule_id": row["schedule_id"]})


def backfill_schedule(
    conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, index: Index | None = None, **options: Any
) -> StoredBackfill:
    """Make runs for the times of a past range; options as of `create_backfill`.

    :raises ConfigError: there is no such schedule, or what `create_backfill` refuses.
    """
    with tenant_transaction(conn, tenant_id):
        row = _named(conn, tenant_id, name)
        made = create_backfill(conn, tenant_id, row["schedule_id"], **options)
    if index is not None:
        announce(index, [made.entry])
    return made


def list_backfills(conn: psycopg.Connection[Any], tenant_id: TenantId, *, count: int = 20) -> list[Row]:
    """The tenant's backfills, the newest first."""
    with tenant_transaction(conn, tenant_id):
        return backfill.list_backfills(conn, tenant_id, count=count)


def cancel_backfill(
    conn: psycopg.Connection[Any], tenant_id: TenantId, text: str, *, actor: str, with_open: bool = False, index: Index | None = None
) -> StoredBackfill:
    """Make no more runs of a backfill, whose id begins or ends with `text`.

    :raises ConfigError: there is no such backfill, or it has ended.
    """
    digits = text.replace("-", "").lower()
    with tenant_transaction(conn, tenant_id):
        found = [row["backfill_id"] for row in backfill.list_backfills(conn, tenant_id, count=1_000)]
        ids = [x for x in found if digits and (x.hex.startswith(digits) or x.hex.endswith(digits))]
        if len(ids) != 1:
            what = "more than one backfill begins or ends" if ids else "no backfill begins or ends"
            raise ConfigError(f"{what} with `{text}`", next_step="`wsync-engine schedules backfills` shows the ids")
        stored = backfill.cancel_backfill(conn, tenant_id, ids[0], actor=actor, with_open=with_open)
    if index is not None:
        announce(index, [stored.entry], stored.runs, stored.interrupted)
    return stored


def _rows(conn: psycopg.Connection[Any], tenant_id: TenantId) -> list[Row]:
    return select(conn, _SQL["schedule_list"], {"tenant_id": tenant_id})


def _named(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str) -> Row:
    found = {row["name"]: row for row in _rows(conn, tenant_id)}
    if name not in found and any(row["name"] == name for row in select(conn, _SQL["sync_list"], {"tenant_id": tenant_id})):
        raise ConfigError(
            f"sync `{name}` has no schedule", next_step=f"give it one in wsync.yaml, or run it now: `wsync-engine sync run {name}`"
        )
    row: Row = named(found, name, "schedule")
    return row


def _announced(stored: StoredSchedule, index: Index | None) -> StoredSchedule:
    if index is not None:
        announce(index, [stored.entry])
    return stored
