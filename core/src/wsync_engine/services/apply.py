"""Make what is stored equal to what is declared, in one transaction of the tenant; twice is once.

A file owns every connection and sync of its tenant, and the schedules that bear their sync's name; schedules that another producer
made for a sync under another name stay, until the sync goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from wsync_engine.index.entries import DueEntry
from wsync_engine.index.shards import Shards
from wsync_engine.model.declaration import Declaration, ScheduleDeclaration, SyncDeclaration, sync_spec_to_json
from wsync_engine.model.durations import duration_text
from wsync_engine.model.ids import TenantId, uuid7
from wsync_engine.model.reading import check_reading
from wsync_engine.model.run import Priority
from wsync_engine.plugins import PluginHost
from wsync_engine.scheduler.caps import announce_caps
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.scheduler.runs import request_cancel
from wsync_engine.scheduler.schedules import announce, change_schedule, create_schedule, delete_schedule
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.secrets.keyring import Keyring, TenantCipher
from wsync_engine.secrets.references import tenant_folders
from wsync_engine.services.catalog import (
    Catalog,
    StoredConnection,
    StoredSync,
    empty_catalog,
    named,
    read_catalog,
    schedule_spec_of,
    service_statements,
)
from wsync_engine.services.changes import Change, compared
from wsync_engine.services.connections import check_config, check_mode, declared_mistakes, forgive, resolved_secrets, roles_of
from wsync_engine.services.plan_notes import noted_deletion, noted_reading, noted_times
from wsync_engine.state.database import tenant_transaction
from wsync_engine.state.tenants import ensure_tenant, find_tenant
from wsync_sdk.errors import ConfigError

__all__ = ["apply", "plan_changes", "schedule_words"]

_SQL = service_statements("catalog")
_DECLARED = (
    "cron", "zone", "every_ms", "anchor_at", "once_at", "start_at", "end_at", "max_runs", "priority", "jitter_ms", "overlap", "max_buffer",
    "catchup_ms", "catchup_mode", "max_attempts", "attempt_timeout_ms", "total_timeout_ms", "stall_ms", "pause_after_failures", "params",
)  # fmt: skip
_WORDS = {
    "zone": "timezone", "every_ms": "every", "anchor_at": "anchor", "once_at": "at", "start_at": "start", "end_at": "end",
    "jitter_ms": "jitter", "catchup_ms": "catch_up_window", "catchup_mode": "catch_up", "attempt_timeout_ms": "attempt_timeout",
    "total_timeout_ms": "timeout", "stall_ms": "stall_timeout", "params": "parameters",
}  # fmt: skip
MOVED = "its next run offers everything to the new destination; what the former one holds stays there"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A declaration with its secrets resolved: connection → reference → value."""

    declaration: Declaration
    secrets: Mapping[str, Mapping[str, str]]

    @property
    def syncs(self) -> dict[str, SyncDeclaration]:
        return {sync.spec.name: sync for sync in self.declaration.syncs}


def plan_changes(
    conn: psycopg.Connection[Any] | None,
    declaration: Declaration,
    *,
    host: PluginHost,
    keyring: Keyring,
    secret_folders: Sequence[Path] = (),
) -> list[Change]:
    """What `apply` would do, object by object, also those that stay; nothing is written.

    :param conn: None: there is no state store yet. :param secret_folders: the installation's.
    :raises ConfigError: what `apply` would refuse of plugins, configs, secrets, and of what syncs read.
    """
    wanted = _wanted(declaration, host, secret_folders)
    tenant_id = None if conn is None else find_tenant(conn, declaration.tenant)
    if conn is None or tenant_id is None:
        return [Change(kind="create", object="tenant", name=declaration.tenant), *_changes(wanted, empty_catalog(conn))]
    with tenant_transaction(conn, tenant_id):
        return _changes(wanted, read_catalog(conn, tenant_id, keyring.tenant(tenant_id)))


def apply(
    conn: psycopg.Connection[Any],
    declaration: Declaration,
    *,
    host: PluginHost,
    keyring: Keyring,
    actor: str,
    secret_folders: Sequence[Path] = (),
    shards: Shards | None = None,
) -> list[Change]:
    """Make it so; returns what was done. Objects that are not declared any more are deleted, and open runs of deleted syncs cancelled.

    :param conn: autocommit, the api's login. :param secret_folders: the installation's.
    :param shards: the tenant's is told after the commit, best effort; None: the sweep tells it.
    :raises ConfigError: plugin, config, secret or schedule is wrong; nothing is changed then.
    """
    wanted = _wanted(declaration, host, secret_folders)
    is_new = find_tenant(conn, declaration.tenant) is None
    tenant_id = ensure_tenant(conn, declaration.tenant)
    cipher = keyring.tenant(tenant_id)
    with tenant_transaction(conn, tenant_id):
        select(conn, _SQL["tenant_lock"], {"tenant_id": tenant_id})
        catalog = read_catalog(conn, tenant_id, cipher)
        changes = _changes(wanted, catalog)
        writer = _Writer(conn, tenant_id, actor=actor, cipher=cipher, wanted=wanted, catalog=catalog)
        entries = writer.write(changes)
        caps = forgive(conn, tenant_id, writer.changed_connections)
    if shards is not None and entries:
        announce(shards.of(tenant_id), entries)
    if shards is not None and caps:
        announce_caps(shards.of(tenant_id), caps)
    return [Change(kind="create", object="tenant", name=declaration.tenant), *changes] if is_new else changes


def _wanted(declaration: Declaration, host: PluginHost, secret_folders: Sequence[Path]) -> _Wanted:
    folders = tenant_folders(secret_folders, declaration.tenant)
    connections = {connection.name: connection for connection in declaration.connections}
    for sync in declaration.syncs:
        named(connections, sync.spec.source, "connection")
        named(connections, sync.spec.sink, "connection")
    secrets = {}
    for name, spec in connections.items():
        roles = roles_of(declaration, name)
        check_config(host, spec.plugin, spec.config, roles)
        secrets[name] = resolved_secrets(host, spec.plugin, spec.config, roles, folders)
    for sync in declaration.syncs:
        check_reading(sync.spec)
        sink = connections[sync.spec.sink]
        check_mode(host, sink.plugin, sink.config, sync.spec.mode)
        for mistake in declared_mistakes(host, sink.plugin, sink.config, sync.spec):
            place = ".".join(("syncs", sync.spec.name, *mistake.path))
            raise ConfigError(f"{place}: {mistake.what}", next_step=mistake.next_step)
    return _Wanted(declaration=declaration, secrets=secrets)


def _changes(wanted: _Wanted, catalog: Catalog) -> list[Change]:
    return [*_connection_changes(wanted, catalog), *_sync_changes(wanted, catalog), *_schedule_changes(wanted, catalog)]


def _connection_changes(wanted: _Wanted, catalog: Catalog) -> Iterator[Change]:
    declared = {connection.name: connection for connection in wanted.declaration.connections}
    for name in [*declared, *(name for name in catalog.connections if name not in declared)]:
        stored, spec = catalog.connections.get(name), declared.get(name)
        old = None if stored is None else _stored_document(stored)
        new = None if spec is None else {"plugin": spec.plugin, "config": dict(spec.config)}
        if new is not None:
            new["secrets"] = _secret_marks(wanted.secrets[name], stored)
        yield noted_deletion(compared("connection", name, old, new))


def _stored_document(stored: StoredConnection) -> dict[str, Any]:
    return {"plugin": stored.plugin, "config": stored.config, "secrets": dict.fromkeys(stored.secrets, "stored")}


def _secret_marks(resolved: Mapping[str, str], stored: StoredConnection | None) -> dict[str, str]:
    known = {} if stored is None else stored.secrets
    return {name: "stored" if known.get(name, value) == value else "another value" for name, value in resolved.items()}


def _sync_changes(wanted: _Wanted, catalog: Catalog) -> Iterator[Change]:
    for name in [*wanted.syncs, *(name for name in catalog.syncs if name not in wanted.syncs)]:
        stored, declared = catalog.syncs.get(name), wanted.syncs.get(name)
        old = None if stored is None else {**stored.spec, "queue": stored.queue}
        if declared is not None and declared.queue not in catalog.queues:
            known = ", ".join(sorted(catalog.queues))
            raise ConfigError(
                f"sync `{name}`: there is no queue `{declared.queue}`",
                next_step=f"`wsync-engine queues add {declared.queue}` makes it; there are: {known}",
            )
        change = compared("sync", name, old, None if declared is None else {**sync_spec_to_json(declared.spec), "queue": declared.queue})
        is_moved = stored is not None and declared is not None and _is_moved(stored, declared, wanted, catalog)
        noted = noted_reading(noted_deletion(change), None if stored is None else stored.spec, None if declared is None else declared.spec)
        yield replace(noted, note=MOVED) if is_moved else noted


def _is_moved(stored: StoredSync, declared: SyncDeclaration, wanted: _Wanted, catalog: Catalog) -> bool:
    """Whether the sync goes to another destination than the one that acknowledged its snapshot."""
    sinks = {connection.name: connection for connection in wanted.declaration.connections}
    former = catalog.connections.get(declared.spec.sink)
    is_same_sink = former is not None and former.connection_id == stored.sink_id and former.plugin == sinks[declared.spec.sink].plugin
    return not is_same_sink or stored.spec["stream"] != declared.spec.stream


def _schedule_changes(wanted: _Wanted, catalog: Catalog) -> Iterator[Change]:
    for name, sync in wanted.syncs.items():
        row = catalog.schedules.get(name)
        if row is not None and row["sync_name"] != name and sync.schedule is not None:
            raise ConfigError(
                f"schedule `{name}` belongs to sync `{row['sync_name']}`", next_step="rename the sync, or delete that schedule"
            )
        owned = row if row is not None and row["sync_name"] == name else None
        if owned is not None or sync.schedule is not None:
            old = None if owned is None else schedule_words(owned)
            change = compared("schedule", name, old, None if sync.schedule is None else _declared_document(sync.schedule, owned))
            if sync.schedule is None:
                yield noted_deletion(change)
            else:
                yield noted_times(change, _merged(owned, name, UUID(int=0), sync.schedule), owned, catalog.now)
    for name, row in catalog.schedules.items():
        if row["sync_name"] not in wanted.syncs:
            yield noted_deletion(compared("schedule", name, schedule_words(row), None), is_with_sync=True)


def schedule_words(row: Row) -> dict[str, Any]:
    """As a declaration says it; the phase of an interval that none declares is not compared."""
    columns = {name: row[name] for name in _DECLARED}
    return _shown({**columns, "anchor_at": row["anchor_at"] if row["every_ms"] else None, "params": dict(row["params"])})


def _declared_document(schedule: ScheduleDeclaration, stored: Row | None) -> dict[str, Any]:
    columns = _declared_columns(schedule)
    if schedule.every_ms is not None and schedule.anchor_at is None:
        columns["anchor_at"] = stored["anchor_at"] if stored is not None else None
    return _shown(columns)


def _shown(columns: dict[str, Any]) -> dict[str, Any]:
    """In the words of the file."""
    return {_WORDS.get(name, name): _word(name, value) for name, value in columns.items()}


def _word(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if name == "priority":
        return Priority(value).name.lower()
    return duration_text(value) if name.endswith("_ms") and value is not None else value


def _declared_columns(schedule: ScheduleDeclaration) -> dict[str, Any]:
    """By column of `wsync.schedule`."""
    columns = {name: getattr(schedule, name) for name in _DECLARED if name != "zone"}
    return {
        **columns,
        "zone": schedule.timezone if schedule.cron else None,
        "priority": int(schedule.priority),
        "overlap": schedule.overlap.value,
        "params": dict(schedule.params),
    }


class _Writer:
    """Writes the changes of one apply; what refers comes after what it refers to, and goes before it."""

    def __init__(
        self, conn: psycopg.Connection[Any], tenant_id: TenantId, *, actor: str, cipher: TenantCipher, wanted: _Wanted, catalog: Catalog
    ) -> None:
        self._conn = conn
        self._tenant_id = tenant_id
        self._actor = actor
        self._cipher = cipher
        self._wanted = wanted
        self._catalog = catalog
        self._connection_ids: dict[str, UUID] = {name: stored.connection_id for name, stored in catalog.connections.items()}
        self._sync_ids: dict[str, UUID] = {name: stored.sync_id for name, stored in catalog.syncs.items()}
        self._moved: set[str] = set()
        self.changed_connections: list[UUID] = []

    def write(self, changes: list[Change]) -> list[DueEntry]:
        """Returns what the index is to be told."""
        todo = [change for change in changes if change.kind != "unchanged"]
        for change in todo:
            if change.object == "connection" and change.kind != "delete":
                self._put_connection(change)
        for change in todo:
            if change.object == "sync" and change.kind != "delete":
                self._put_sync(change)
        entries = [self._put_schedule(change) for change in todo if change.object == "schedule"]
        entries += self._refresh_schedules({change.name for change in todo if change.object == "schedule"})
        for change in todo:
            if change.object == "sync" and change.kind == "delete":
                entries += self._delete_sync(self._sync_ids[change.name])
        for change in todo:
            if change.object == "connection" and change.kind == "delete":
                self._conn.execute(_SQL["connection_delete"], {"connection_id": self._connection_ids[change.name]})
        return entries

    def _put_connection(self, change: Change) -> None:
        spec = next(connection for connection in self._wanted.declaration.connections if connection.name == change.name)
        secrets = self._wanted.secrets[change.name]
        columns = {
            "connection_id": self._connection_ids.setdefault(change.name, uuid7()),
            "tenant_id": self._tenant_id,
            "name": change.name,
            "plugin": spec.plugin,
            "config": Jsonb(dict(spec.config)),
            "secrets": self._cipher.encrypt(json.dumps(dict(secrets)).encode()) if secrets else None,
        }
        self._conn.execute(_SQL["connection_insert" if change.kind == "create" else "connection_change"], columns)
        former = self._catalog.connections.get(change.name)
        if former is not None:
            self.changed_connections.append(former.connection_id)
        if former is not None and former.plugin != spec.plugin:
            self._conn.execute(_SQL["sync_resync_of_sink"], {"connection_id": former.connection_id})

    def _put_sync(self, change: Change) -> None:
        spec = self._wanted.syncs[change.name].spec
        stored = self._catalog.syncs.get(change.name)
        source_id, sink_id = self._connection_ids[spec.source], self._connection_ids[spec.sink]
        queue = self._wanted.syncs[change.name].queue
        if stored is not None and (stored.source_id, stored.sink_id, stored.queue) != (source_id, sink_id, queue):
            self._moved.add(change.name)
        columns = {
            "sync_id": self._sync_ids.setdefault(change.name, uuid7()),
            "tenant_id": self._tenant_id,
            "name": change.name,
            "source_id": source_id,
            "sink_id": sink_id,
            "queue": self._catalog.queues[queue],
            "spec": Jsonb(sync_spec_to_json(spec)),
            "is_moved": change.note == MOVED,
        }
        self._conn.execute(_SQL["sync_insert" if change.kind == "create" else "sync_change"], columns)

    def _put_schedule(self, change: Change) -> DueEntry:
        row = self._catalog.schedules.get(change.name)
        declared = self._wanted.syncs[change.name].schedule if change.name in self._wanted.syncs else None
        if change.kind == "delete" or declared is None:
            assert row is not None
            return delete_schedule(self._conn, self._tenant_id, row["schedule_id"], actor=self._actor).entry
        spec = _merged(row, change.name, self._sync_ids[change.name], declared)
        if row is None:
            return create_schedule(self._conn, self._tenant_id, spec, actor=self._actor).entry
        return change_schedule(self._conn, self._tenant_id, row["schedule_id"], spec, actor=self._actor).entry

    def _refresh_schedules(self, written: set[str]) -> list[DueEntry]:
        """Schedules hold their sync's connections and queue: those of a sync that moved to others are written again."""
        return [
            change_schedule(self._conn, self._tenant_id, row["schedule_id"], schedule_spec_of(row), actor=self._actor).entry
            for name, row in self._catalog.schedules.items()
            if row["sync_name"] in self._moved and name not in written
        ]

    def _delete_sync(self, sync_id: UUID) -> list[DueEntry]:
        """With its open runs, and with what was made of it since the catalog was read. Runs are locked before their sync, by everybody."""
        self._cancel_runs(sync_id)
        ids = {"tenant_id": self._tenant_id, "sync_id": sync_id}
        select(self._conn, _SQL["sync_lock"], {"sync_id": sync_id})
        late = [row["schedule_id"] for row in select(self._conn, _SQL["schedules_of_sync"], ids)]
        entries = [delete_schedule(self._conn, self._tenant_id, schedule_id, actor=self._actor).entry for schedule_id in late]
        self._cancel_runs(sync_id)
        self._conn.execute(_SQL["sync_delete"], {"sync_id": sync_id})
        return entries

    def _cancel_runs(self, sync_id: UUID) -> None:
        for run in select(self._conn, _SQL["run_open_of_sync"], {"tenant_id": self._tenant_id, "sync_id": sync_id}):
            request_cancel(self._conn, run["run_id"], reason="the sync was deleted", actor=self._actor)


def _merged(row: Row | None, name: str, sync_id: UUID, declared: ScheduleDeclaration) -> ScheduleSpec:
    """The declared values over the stored ones; the phase of an interval stays while it is one."""
    kind: Any = "cron" if declared.cron else "interval" if declared.every_ms else "once"
    columns = _declared_columns(declared)
    if kind == "interval" and declared.anchor_at is None and row is not None:
        columns["anchor_at"] = row["anchor_at"]
    return ScheduleSpec(name=name, sync_id=sync_id, kind=kind, **columns)
