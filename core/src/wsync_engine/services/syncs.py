"""Syncs by name: make a run now, offer everything again, or take what the sink already has as delivered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.model.ids import TenantId
from wsync_engine.model.run import OverlapPolicy, Priority
from wsync_engine.model.sync import Mode, Scalar
from wsync_engine.scheduler.rows import Event, Row, select, write_events
from wsync_engine.scheduler.schedules import Triggered, announce, trigger_run
from wsync_engine.services.catalog import named, service_statements
from wsync_engine.state.database import tenant_transaction
from wsync_sdk.errors import ConfigError

__all__ = ["Resync", "adopt_sync", "announced", "list_syncs", "resync_sync", "shown_cursor", "sync_id_named", "trigger_sync"]

_SQL = service_statements("catalog")


def list_syncs(conn: psycopg.Connection[Any], tenant_id: TenantId) -> list[Row]:
    """The tenant's syncs, by name."""
    with tenant_transaction(conn, tenant_id):
        return select(conn, _SQL["sync_list"], {"tenant_id": tenant_id})


def trigger_sync(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    name: str,
    *,
    actor: str,
    dry_run: bool = False,
    offer_rejected: bool = False,
    priority: Priority = Priority.HIGH,
    idem_key: str | None = None,
    overlap: OverlapPolicy | None = None,
    params: Mapping[str, Scalar] | None = None,
    index: Index | None = None,
) -> Triggered:
    """Make a run of a sync now; other options as of `trigger_run`.

    :raises ConfigError: there is no such sync, or it has no such parameter.
    """
    with tenant_transaction(conn, tenant_id):
        sync_id = sync_id_named(conn, tenant_id, name)
        options: dict[str, Any] = {"idem_key": idem_key, "overlap": overlap, "params": params, "offer_rejected": offer_rejected}
        triggered = trigger_run(conn, tenant_id, sync_id=sync_id, actor=actor, dry_run=dry_run, priority=int(priority), **options)
    return announced(triggered, index)


def announced(triggered: Triggered, index: Index | None) -> Triggered:
    """Tell the index what a trigger led to, best effort."""
    if index is not None:
        runs = [] if triggered.run is None else [triggered.run]
        announce(index, runs=runs, interrupted=[] if triggered.interrupted is None else [triggered.interrupted])
    return triggered


def adopt_sync(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, actor: str, index: Index | None = None) -> Triggered:
    """Make a run that takes the query's result as acknowledged and sends nothing: for a sink that has it already.

    :raises ConfigError: there is no such sync, or a run of it is open.
    """
    with tenant_transaction(conn, tenant_id):
        sync_id = sync_id_named(conn, tenant_id, name)
        triggered = trigger_run(conn, tenant_id, sync_id=sync_id, actor=actor, adopt=True, priority=int(Priority.HIGH))
    if not triggered.is_new:
        raise ConfigError(
            f"run {triggered.run_id} of the sync is open", next_step="wait for its end, or `wsync-engine runs cancel` it, then adopt again"
        )
    return announced(triggered, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """What a resync will do. `entries`: subscribers in the snapshot; `deletes`: those that left the result are deleted."""

    sync: str
    entries: int
    deletes: bool


def resync_sync(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, actor: str) -> Resync:
    """Let the next run offer everything again, whatever was acknowledged.

    :raises ConfigError: there is no such sync.
    """
    with tenant_transaction(conn, tenant_id):
        sync_id = sync_id_named(conn, tenant_id, name)
        row = select(conn, _SQL["sync_resync"], {"tenant_id": tenant_id, "sync_id": sync_id})[0]
        detail = {"sync": name, "sync_id": str(sync_id), "actor": actor}
        write_events(conn, [Event(kind="sync.resync_requested", tenant_id=tenant_id, detail=detail)])
    return Resync(sync=name, entries=(row["manifest"] or {}).get("rows", 0), deletes=row["spec"]["mode"] in (Mode.MIRROR, Mode.REPLACE))


def shown_cursor(stored: Mapping[str, Any] | None) -> str:
    """How far a sync has read, as people see it: the cursor's value, or when the last settled run began, or `start`. A text may be anything of a
    row, and is not shown.
    """
    if stored is None:
        return "start"
    cursor = stored.get("cursor")
    return str(stored["last_sync_at"] if cursor is None else cursor.get("value", "a text, encrypted"))


def sync_id_named(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str) -> UUID:
    """The sync's id, inside the tenant's transaction.

    :raises ConfigError: there is no such sync.
    """
    found: UUID = named({row["name"]: row["sync_id"] for row in select(conn, _SQL["sync_list"], {"tenant_id": tenant_id})}, name, "sync")
    return found
