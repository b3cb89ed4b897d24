"""Caps by name: how many runs of a tenant, a sync or a connection are executed at once, and a tenant's weight among tenants."""

from __future__ import annotations

from typing import Any

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.index.entries import Cap, CappedKind
from wsync_engine.model.ids import TenantId
from wsync_engine.scheduler.caps import announce_caps
from wsync_engine.scheduler.caps import set_cap as store_cap
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.services.catalog import named, service_statements
from wsync_sdk.errors import ConfigError

__all__ = ["UNLIMITED", "list_caps", "set_cap"]

UNLIMITED = 2**31 - 1
_SQL = service_statements("caps")


def list_caps(conn: psycopg.Connection[Any], tenant_id: TenantId) -> list[Row]:
    """The tenant's caps with the names of what they are of, and how many runs hold each now. The engine's login."""
    return select(conn, _SQL["cap_list"], {"tenant_id": tenant_id})


def set_cap(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    kind: CappedKind,
    name: str | None,
    *,
    max_running: int,
    weight: int | None,
    actor: str,
    index: Index | None = None,
) -> Cap:
    """Set the cap of the tenant (`T`), of a connection as source (`N`), of a sync (`S`), or of a connection as sink (`K`). The engine's login.

    :param name: of the connection or sync. :param weight: None: as it was. :raises ConfigError: there is none of this name, or a number is out of range.
    """
    if weight is not None and kind != "T":
        raise ConfigError("only a tenant has a weight", next_step="leave out --weight, or --connection, --sync and --sink")
    with conn.transaction():
        resource_id = tenant_id
        if name is not None:
            rows = select(conn, _SQL["cap_resources"], {"tenant_id": tenant_id, "kind": kind})
            resource_id = named({row["name"]: row["resource_id"] for row in rows}, name, "sync" if kind == "S" else "connection")
        known = {(row["kind"], row["resource_id"]): row["weight"] for row in list_caps(conn, tenant_id)}
        kept = known.get((kind, resource_id), 1)
        cap = store_cap(conn, tenant_id, kind, resource_id, max_running=max_running, weight=weight or kept, actor=actor)
    if index is not None:
        announce_caps(index, [cap])
    return cap
