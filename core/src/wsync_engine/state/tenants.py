"""Tenants by name."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from wsync_engine.model.ids import TenantId, uuid7
from wsync_engine.state.database import tenant_transaction
from wsync_engine.state.statements import load_statements
from wsync_sdk.errors import ConfigError

__all__ = ["ensure_tenant", "find_tenant", "tenant_named"]

_SQL = load_statements("tenant")


def find_tenant(connection: psycopg.Connection[TupleRow], name: str) -> TenantId | None:
    """The id of the tenant with this name, by any login; None when there is none."""
    row = connection.execute(_SQL["tenant_find"], {"name": name}).fetchone()
    return TenantId(row[0]) if row and row[0] else None


def tenant_named(connection: psycopg.Connection[TupleRow], name: str) -> TenantId:
    """As `find_tenant`, for a name that a person typed.

    :raises ConfigError: there is no such tenant.
    """
    found = find_tenant(connection, name)
    if found is None:
        raise ConfigError(f"there is no tenant `{name}`", next_step="run `wsync-engine apply FILE` with that tenant first")
    return found


def ensure_tenant(connection: psycopg.Connection[TupleRow], name: str) -> TenantId:
    """The id of the tenant with this name, made if need be; from many processes at once, all get the same one."""
    found = find_tenant(connection, name)
    if found is None:
        tenant_id = TenantId(uuid7())
        with tenant_transaction(connection, tenant_id):
            connection.execute(_SQL["tenant_insert"], {"tenant_id": tenant_id, "name": name})
        found = tenant_named(connection, name)
    return found
