"""Syncs by name: make a run now."""

from __future__ import annotations

from typing import Any

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.model.ids import TenantId
from wsync_engine.model.run import Priority
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.scheduler.schedules import Triggered, announce, trigger_run
from wsync_engine.services.catalog import named, service_statements
from wsync_engine.state.database import tenant_transaction

__all__ = ["list_syncs", "trigger_sync"]

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
    priority: Priority = Priority.HIGH,
    idem_key: str | None = None,
    index: Index | None = None,
) -> Triggered:
    """Make a run of a sync now; `run` is None in the result where the sync's open run made it skip.

    :raises ConfigError: there is no such sync.
    """
    with tenant_transaction(conn, tenant_id):
        syncs = {row["name"]: row["sync_id"] for row in select(conn, _SQL["sync_list"], {"tenant_id": tenant_id})}
        sync_id = named(syncs, name, "sync")
        triggered = trigger_run(conn, tenant_id, sync_id=sync_id, actor=actor, dry_run=dry_run, priority=int(priority), idem_key=idem_key)
    if index is not None and triggered.run is not None:
        announce(index, runs=[triggered.run])
    return triggered
