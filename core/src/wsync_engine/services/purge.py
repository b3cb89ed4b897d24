"""Remove a tenant: its rows in every table, history and events too, its storage, its secrets.

In this order, so that whoever dies in the middle can begin again: no run is made any more, none is open, the files go, the long tables page by page, and with
the rest, in one transaction, the tenant's name at the very end. What stays is one event, that says who did it and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.due_index import Index
from wsync_engine.model.ids import TenantId
from wsync_engine.scheduler.rows import Event, select, write_events
from wsync_engine.scheduler.schedules import StoredSchedule, announce, delete_schedule
from wsync_engine.services.catalog import service_statements
from wsync_engine.services.runs import cancel_run
from wsync_engine.services.storage import known_storage_id
from wsync_engine.state.database import tenant_transaction
from wsync_engine.storage import LocalStorage, storage_id
from wsync_sdk.errors import ConfigError, RetryableError

__all__ = ["Purged", "RunsOpen", "end_tenant", "purge_tenant"]

PAGE = 5_000
_SQL = service_statements("purge")
_LONG = ("acks_purge", "chunks_purge", "rejections_purge", "runs_purge", "history_purge", "events_purge")
_REST = ("schedules_purge", "caps_purge", "snapshots_purge", "syncs_purge", "connections_purge", "tenant_purge")
_log = structlog.get_logger()


class RunsOpen(RetryableError):
    """Runs were asked to end, and have not yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What was removed, this time: a purge that is repeated counts what was left."""

    runs: int
    rejections: int
    events: int
    schedules: int
    syncs: int
    connections: int
    files: int


def end_tenant(conn: psycopg.Connection[Any], tenant_id: TenantId, *, actor: str, cancels: bool, index: Index | None = None) -> None:
    """See that nothing of the tenant runs, or is begun, any more: schedules and syncs end, secrets go, open runs are asked to end.

    :param conn: the api's login. :param cancels: False: refuse while a run is open, and change nothing.
    :raises ConfigError: a run is open. :raises RunsOpen: one is still executed; call again.
    """
    columns = {"tenant_id": tenant_id}
    with tenant_transaction(conn, tenant_id):
        found = select(conn, _SQL["runs_open"], columns)
        if found and not cancels:
            raise ConfigError(
                f"{len(found)} runs of the tenant are open, the first is {found[0]['run_id']}",
                next_step="wait for their end, or add `--cancel` to end them",
            )
        schedules = [row["schedule_id"] for row in select(conn, _SQL["schedules_left"], columns)]
        stored = [delete_schedule(conn, tenant_id, schedule_id, actor=actor) for schedule_id in schedules]
        conn.execute(_SQL["syncs_end"], columns)
        conn.execute(_SQL["secrets_end"], columns)
    _announce(index, stored)
    _end_runs(conn, tenant_id, [row["run_id"] for row in found if not row["is_helper"]], actor=actor, index=index)


def _announce(index: Index | None, stored: Sequence[StoredSchedule]) -> None:
    if index is not None and stored:
        announce(index, [one.entry for one in stored])


def _end_runs(conn: psycopg.Connection[Any], tenant_id: TenantId, run_ids: Sequence[UUID], *, actor: str, index: Index | None) -> None:
    for run_id in run_ids:
        try:
            cancel_run(conn, tenant_id, run_id, reason="the tenant is purged", actor=actor, index=index)
        except ConfigError:  # it has ended meanwhile
            continue
    with tenant_transaction(conn, tenant_id):
        left = select(conn, _SQL["runs_open"], {"tenant_id": tenant_id})
    if left:
        raise RunsOpen(f"{len(left)} runs of the tenant are still ending", next_step="run the command again", retry_after_s=1.0)


def purge_tenant(conn: psycopg.Connection[Any], tenant_id: TenantId, *, storage_url: str, actor: str) -> Purged:
    """Remove all of it, after `end_tenant`. May be repeated after a death anywhere.

    :param conn: the engine's login, which alone may delete history and events.
    :raises ConfigError: this host does not have the installation's storage; nothing was removed.
    :raises RunsOpen: a run was made meanwhile. :raises FatalError: files can't be removed.
    """
    known = known_storage_id(conn)
    if known is not None and known != storage_id(storage_url):
        raise ConfigError(
            "this host does not have the storage that the tenant's files are in",
            next_step="run it where a worker runs, with its WSYNC_STORAGE_URL",
        )
    _refuse_open(conn, tenant_id)
    storage = LocalStorage.of_url(storage_url, tenant_id=str(tenant_id))
    files = storage.drop_all()
    removed = {name: _delete_pages(conn, tenant_id, name) for name in _LONG}
    with conn.transaction():
        conn.execute(_SQL["tenant_hold"], {"tenant_id": tenant_id})
        _refuse_open(conn, tenant_id)
        for name in (*_LONG, *_REST):
            removed[name] = removed.get(name, 0) + _delete(conn, tenant_id, name, count=None)
        write_events(conn, [_event(tenant_id, actor, removed)])
    files += storage.drop_all()
    _log.warning("tenant.purged", tenant_id=str(tenant_id), actor=actor)
    return Purged(
        runs=removed["runs_purge"] + removed["history_purge"],
        rejections=removed["rejections_purge"],
        events=removed["events_purge"],
        schedules=removed["schedules_purge"],
        syncs=removed["syncs_purge"],
        connections=removed["connections_purge"],
        files=files,
    )


def _refuse_open(conn: psycopg.Connection[Any], tenant_id: TenantId) -> None:
    if select(conn, _SQL["runs_open"], {"tenant_id": tenant_id}):
        raise RunsOpen("a run of the tenant is open", next_step="run the command again, with `--cancel`", retry_after_s=1.0)


def _delete_pages(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str) -> int:
    total = 0
    while deleted := _delete(conn, tenant_id, name, count=PAGE):
        total += deleted
    return total


def _delete(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, *, count: int | None) -> int:
    """`count` None: all that are left."""
    return conn.execute(_SQL[name], {"tenant_id": tenant_id, "count": count}).rowcount


def _event(tenant_id: TenantId, actor: str, removed: dict[str, int]) -> Event:
    detail: dict[str, str | int | None] = {"actor": actor, **{name.removesuffix("_purge"): rows for name, rows in removed.items()}}
    return Event(kind="tenant.purged", tenant_id=tenant_id, detail=detail)
