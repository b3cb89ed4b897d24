"""What a tenant has: its connections, syncs and schedules as they are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.scheduler.rows import Row, instant, select, statements
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.secrets.keyring import TenantCipher
from wsync_engine.state.statements import load_statements
from wsync_sdk.errors import ConfigError

__all__ = [
    "Catalog",
    "StoredConnection",
    "StoredSync",
    "empty_catalog",
    "named",
    "read_catalog",
    "read_queues",
    "schedule_spec_of",
    "service_statements",
]

_FOLDER = Path(__file__).with_name("sql")


def service_statements(name: str) -> Mapping[str, bytes]:
    """The services' statements of one file."""
    return load_statements(name, _FOLDER)


_SQL = service_statements("catalog")
_SCHEDULE = statements("schedule")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConnection:
    """A connection; `secrets` maps each `env:` reference to its value, decrypted, and is never printed."""

    connection_id: UUID
    plugin: str
    config: dict[str, Any]
    secrets: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSync:
    """A sync; `spec` is the JSON of its declaration, `queue` the name of its workers' queue."""

    sync_id: UUID
    source_id: UUID
    sink_id: UUID
    spec: dict[str, Any]
    queue: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Everything of one tenant that is not deleted, by name. Schedules are rows of `wsync.schedule` with `sync_name`.

    :param queues: number of each queue of the installation. :param now: when this was read, by the store's clock.
    """

    now: datetime

    connections: Mapping[str, StoredConnection] = field(default_factory=dict)
    syncs: Mapping[str, StoredSync] = field(default_factory=dict)
    schedules: Mapping[str, Row] = field(default_factory=dict)
    queues: Mapping[str, int] = field(default_factory=dict)


def read_catalog(conn: psycopg.Connection[Any], tenant_id: UUID, cipher: TenantCipher) -> Catalog:
    """Read it, inside the tenant's transaction.

    :raises ConfigError: stored secrets were encrypted with a key that this process does not have.
    """
    tenant = {"tenant_id": tenant_id}
    connections = {
        row["name"]: StoredConnection(
            connection_id=row["connection_id"], plugin=row["plugin"], config=row["config"], secrets=_decrypted(row["secrets"], cipher)
        )
        for row in select(conn, _SQL["connection_list"], tenant)
    }
    syncs = {
        row["name"]: StoredSync(
            sync_id=row["sync_id"],
            source_id=row["source_connection_id"],
            sink_id=row["sink_connection_id"],
            spec=row["spec"],
            queue=row["queue_name"],
        )
        for row in select(conn, _SQL["sync_list"], tenant)
    }
    schedules = {row["name"]: row for row in select(conn, _SQL["schedule_list"], tenant)}
    return replace(empty_catalog(conn), connections=connections, syncs=syncs, schedules=schedules)


def empty_catalog(conn: psycopg.Connection[Any] | None) -> Catalog:
    """Of a tenant that is not there yet; any login, in a transaction or not. None: there is no store yet, so this machine's clock counts."""
    if conn is None:
        return Catalog(now=datetime.now(UTC), queues={"default": 0})
    return Catalog(now=instant(select(conn, _SCHEDULE["time_now"], {})[0], "now"), queues=read_queues(conn))


def read_queues(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """Number of each queue of the installation by name; any login, in a transaction or not."""
    return {row["name"]: row["queue"] for row in select(conn, _SQL["queue_list"], {})}


def schedule_spec_of(row: Row) -> ScheduleSpec:
    """The declaration that a row of `wsync.schedule` was made from."""
    return ScheduleSpec(**{item.name: row[item.name] for item in fields(ScheduleSpec)})


def named(found: Mapping[str, Any], name: str, noun: str) -> Any:
    """The entry of that name.

    :raises ConfigError: there is none; lists those there are.
    """
    if name in found:
        return found[name]
    known = ", ".join(sorted(found)) or "none"
    raise ConfigError(f"there is no {noun} `{name}`", next_step=f"there are: {known}")


def _decrypted(stored: bytes | None, cipher: TenantCipher) -> dict[str, str]:
    return {} if stored is None else {str(name): str(value) for name, value in json.loads(cipher.decrypt(bytes(stored))).items()}
