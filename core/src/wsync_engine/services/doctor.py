"""Doctor: looks at an installation, and at one sync, as a person would who wonders why nothing arrives. Changes nothing.

Each look is independent: one that fails says so, and the others still happen, except where they need what is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.model.declaration import sync_spec_from_json
from wsync_engine.model.ids import TenantId
from wsync_engine.model.reading import engine_parameters, reading_fingerprint
from wsync_engine.model.sync import SyncSpec, bound_parameters
from wsync_engine.pipeline.cursor import CursorColumn
from wsync_engine.pipeline.mapping import compile_mapping
from wsync_engine.pipeline.reading import query_of, unread_parameters, usable
from wsync_engine.pipeline.stream_check import stream_mistakes
from wsync_engine.plugins import PluginHost
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.services.catalog import Catalog, StoredConnection, StoredSync, named, read_catalog, service_statements
from wsync_engine.services.connections import secret_of
from wsync_engine.services.storage import known_storage_id
from wsync_engine.services.syncs import shown_cursor
from wsync_engine.services.waiting import explain_waiting
from wsync_engine.state.database import check_schema, connect, tenant_transaction
from wsync_engine.storage import LocalStorage, storage_id
from wsync_sdk import REFUSED_COLUMNS, AddressPolicy, Finding, StreamSpec, WsyncError

__all__ = ["Installation", "examine_installation", "examine_sync"]

_SQL = service_statements("doctor")
LEAST_FREE_BYTES = 1024**3
MOST_SKEW_S = 2.0
LATE_AFTER_S = 30
MOST_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is looked at. Addresses hold passwords and are never shown."""

    engine_url: str = field(repr=False)
    api_url: str = field(repr=False)
    index: Index
    storage_url: str
    host: PluginHost
    keyring: Keyring
    network: AddressPolicy


# -- the installation


def examine_installation(installation: Installation) -> Iterator[Finding]:
    """State store, index, storage, plugins, and whether somebody works; most basic first."""
    is_store_right = True
    for role, url in (("engine", installation.engine_url), ("api", installation.api_url)):
        found = _tried("state_store", partial(check_schema, url), f"the {role}'s login and the schema are right")
        is_store_right = is_store_right and found.ok
        yield found
    index = _tried("index", installation.index.check_server, "Redis answers, and drops nothing when its memory is full")
    yield index
    yield _storage(installation.storage_url)
    yield from _plugins(installation.host)
    if is_store_right:
        with connect(installation.engine_url, application_name="wsync doctor") as conn:
            yield _tried_for("storage", lambda: _same_storage(conn, installation.storage_url))
            if index.ok:
                yield _tried_for("clocks", lambda: _clocks(conn, installation.index))
            yield from _workforce(conn)
            yield _destinations(conn)


def _tried(name: str, call: Callable[[], object], message: str) -> Finding:
    return _tried_for(name, lambda: (call(), Finding(name=name, ok=True, message=message))[1])


def _tried_for(name: str, call: Callable[[], Finding]) -> Finding:
    """The finding of a look, or that it failed."""
    try:
        return call()
    except WsyncError as exc:
        return Finding(name=name, ok=False, message=exc.message, next_step=exc.next_step)


def _storage(url: str) -> Finding:
    folder = Path(unquote(urlparse(url).path))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".doctor"
        probe.write_bytes(b"")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as exc:
        message = f"the storage folder can't be written: {exc.strerror}"
        return Finding(name="storage", ok=False, message=message, next_step="correct its permissions, or WSYNC_STORAGE_URL")
    message = f"{free / 1024**3:.1f} GiB are free in the storage folder"
    if free < LEAST_FREE_BYTES:
        return Finding(name="storage", ok=False, message=message, next_step="free space: runs stage the whole result there")
    return Finding(name="storage", ok=True, message=message)


def _same_storage(conn: psycopg.Connection[Any], url: str) -> Finding:
    known = known_storage_id(conn)
    if known is None or known == storage_id(url):
        return Finding(name="storage", ok=True, message="it is the installation's")
    step = "set WSYNC_STORAGE_URL to the storage that all workers share"
    return Finding(name="storage", ok=False, message="this is not the storage that the installation's snapshots are in", next_step=step)


def _plugins(host: PluginHost) -> Iterator[Finding]:
    for report in host.reports:
        if report.ok:
            offers = [*(f"source {name}" for name in report.sources), *(f"sink {name}" for name in report.sinks)]
            yield Finding(name="plugin", ok=True, message=f"{report.distribution} {report.version}: {', '.join(offers)}")
        else:
            message = f"{report.distribution} {report.version} is left out: {report.reason}"
            yield Finding(name="plugin", ok=report.is_excluded, message=message, next_step=report.next_step)
    if not host.reports:
        yield Finding(name="plugin", ok=False, message="no plugin is installed", next_step="`pip install wsync-postgres`, for example")


def _clocks(conn: psycopg.Connection[Any], index: Index) -> Finding:
    stored = conn.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
    assert stored is not None
    skew_s = abs(index.time_s() - float(stored[0]))
    if skew_s > MOST_SKEW_S:
        message = f"the clocks of Redis and Postgres are {skew_s:.0f} s apart: runs are late by it"
        return Finding(name="clocks", ok=False, message=message, next_step="let both servers' hosts keep time (NTP)")
    return Finding(name="clocks", ok=True, message="the clocks of Redis and Postgres agree")


def _workforce(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    row = select(conn, _SQL["workforce_count"], {"late_after_s": LATE_AFTER_S})[0]
    if row["workers"]:
        yield Finding(name="workers", ok=True, message=f"{row['workers']} worker(s) with {row['slots']} slot(s), {row['running']} in use")
    else:
        yield Finding(name="workers", ok=False, message="no worker is running", next_step="start one: `wsync-engine worker`")
    if row["workers"]:
        for unserved in select(conn, _SQL["queues_unserved"], {}):
            message = f"no worker serves the queue `{unserved['name']}`, which {unserved['syncs']} sync(s) name"
            step = f"start one: `wsync-engine worker --queue {unserved['name']}`"
            yield Finding(name="queues", ok=False, message=message, next_step=step)
    if row["overdue"]:
        message = f"{row['overdue']} schedule(s) are due for more than {LATE_AFTER_S} s, and nobody fired them"
        yield Finding(name="schedulers", ok=False, message=message, next_step="start one: `wsync-engine scheduler`")
    else:
        yield Finding(name="schedulers", ok=True, message="no schedule is overdue")


def _destinations(conn: psycopg.Connection[Any]) -> Finding:
    away = [row["name"] for row in select(conn, _SQL["destinations_away"], {"count": MOST_NAMED})]
    if away:  # no fault of the installation: a person should know
        message = f"destinations that failed again and again, so that their runs wait: {', '.join(away)}"
        return Finding(
            name="destinations", ok=True, message=message, next_step="`wsync-engine doctor SYNC`, for one of its syncs, says more"
        )
    return Finding(name="destinations", ok=True, message="none is left alone")


# -- one sync


def examine_sync(
    conn: psycopg.Connection[Any], tenant_id: TenantId, name: str, installation: Installation, *, folders: Sequence[Path] = ()
) -> Iterator[Finding]:
    """Both its connections, query against mapping, stream, snapshot, schedule and last run.

    :param folders: where the tenant's secret files may lie.
    :raises ConfigError: there is no such sync.
    """
    with tenant_transaction(conn, tenant_id):
        catalog = read_catalog(conn, tenant_id, installation.keyring.tenant(tenant_id))
        stored: StoredSync = named(catalog.syncs, name, "sync")
        row = select(conn, _SQL["sync_health"], {"tenant_id": tenant_id, "sync_id": stored.sync_id})[0]
        waiting = tuple(explain_waiting(conn, tenant_id, stored.sync_id))
    spec = sync_spec_from_json(stored.spec)
    yield from _source(spec, _connection(catalog, stored.source_id), installation.host, folders)
    yield from _sink(spec, _connection(catalog, stored.sink_id), installation, folders)
    yield _snapshot(row, LocalStorage.of_url(installation.storage_url, tenant_id=str(tenant_id)))
    yield from _cursor(spec, row)
    yield from waiting
    yield _last_run(row)


def _connection(catalog: Catalog, connection_id: object) -> StoredConnection:
    return next(connection for connection in catalog.connections.values() if connection.connection_id == connection_id)


def _source(spec: SyncSpec, connection: StoredConnection, host: PluginHost, folders: Sequence[Path]) -> Iterator[Finding]:
    try:
        with host.open_source(connection.plugin, connection.config, secret_of(connection, folders)) as source:
            report = source.check()
            yield from (replace(finding, name=f"source.{finding.name}") for finding in report.findings)
            if report.ok:
                parameters = {**bound_parameters(spec.parameters, {}, nominal_at=datetime.now(UTC)), **unread_parameters(spec)}
                schema = source.preview(query_of(spec, parameters), 1).schema
                compiled = compile_mapping(spec, schema, seed="", partitions=1)
                columns = len([name for name in schema.names if name != REFUSED_COLUMNS])
                message = f"the query gives {columns} columns, the mapping sends {len(compiled.schema.names)} fields"
                yield Finding(name="query", ok=True, message=message)
                if spec.cursor is not None:
                    CursorColumn.of(spec.cursor, schema).first()
    except WsyncError as exc:
        yield Finding(name="query", ok=False, message=exc.message, next_step=exc.next_step)


def _sink(spec: SyncSpec, connection: StoredConnection, installation: Installation, folders: Sequence[Path]) -> Iterator[Finding]:
    try:
        opened = installation.host.open_sink(
            connection.plugin, connection.config, secret_of(connection, folders), network=installation.network
        )
        with opened as sink:
            report = sink.check()
            yield from (replace(finding, name=f"sink.{finding.name}") for finding in report.findings)
            if report.ok:
                yield from _stream(spec, sink.stream(spec.stream))
    except WsyncError as exc:
        yield Finding(name="stream", ok=False, message=exc.message, next_step=exc.next_step)


def _stream(spec: SyncSpec, stream: StreamSpec) -> Iterator[Finding]:
    mistakes = stream_mistakes(spec, stream)
    for mistake in mistakes:
        yield Finding(name="stream", ok=False, message=mistake.what, next_step=mistake.next_step)
    if not mistakes:
        yield Finding(name="stream", ok=True, message=f"the stream `{spec.stream}` takes {' and '.join(sorted(stream.operations))}")


def _snapshot(row: Row, storage: LocalStorage) -> Finding:
    manifest = row["manifest"]
    is_resync = row["resync"] > (manifest or {}).get("resync", 0)
    if manifest is None:
        return Finding(name="snapshot", ok=True, message="nothing was delivered yet: the next run offers everything")
    lost = [name for name in manifest["files"] if name is not None and not storage.absolute(name).is_file()]
    if lost and not is_resync:
        message = f"snapshot_lost: {len(lost)} of the snapshot's files are not in the storage folder of this host"
        step = "look whether this host has the workers' storage; else `wsync-engine sync resync NAME` or `wsync-engine sync adopt NAME`"
        return Finding(name="snapshot", ok=False, message=message, next_step=step)
    message = f"{manifest['rows']} subscribers were delivered, as far as their destination said" + (
        "; the next run offers all again" if is_resync else ""
    )
    return Finding(name="snapshot", ok=True, message=message)


def _cursor(spec: SyncSpec, row: Row) -> Iterator[Finding]:
    """How far it has read. A text may be anything of a row, and is not shown."""
    if not engine_parameters(spec):
        return
    fingerprint = reading_fingerprint(spec, bound_parameters(spec.parameters, {}, nominal_at=datetime.now(UTC)))
    asked = {name: row[name] for name in ("resync", "key_resync")}
    stored = usable(row["cursor"], row["manifest"], version=row["version"], asked=asked, fingerprint=fingerprint)
    if stored is None:
        why = "a resync was asked for, or the sync was changed" if row["cursor"] else "no run has settled all of its changes yet"
        yield Finding(name="cursor", ok=True, message=f"the next run reads from the start: {why}")
        return
    where = "" if spec.cursor is None else f" from `{spec.cursor.column}` {shown_cursor(stored)}, less the overlap"
    yield Finding(name="cursor", ok=True, message=f"the next run reads on{where}; the last settled run began at {stored['last_sync_at']}")


def _last_run(row: Row) -> Finding:
    if row["run_id"] is None:
        return Finding(name="last_run", ok=True, message="it never ran")
    message = f"run {row['run_id']}: {row['state']}" + (f", {row['outcome_reason']}" if row["outcome_reason"] else "")
    step = f"`wsync-engine runs show {row['run_id']}`"
    with suppress(KeyError):
        step = {"blocked": f"{step}, then `wsync-engine runs approve {row['run_id']}` or `discard`", "succeeded": ""}[row["state"]]
    return Finding(name="last_run", ok=row["state"] not in ("failed", "partial", "blocked"), message=message, next_step=step)
