"""Connections: which models their config must fit, which secrets they need, and whether they work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import psycopg
from pydantic import BaseModel

from wsync_engine.index.due_index import Index
from wsync_engine.index.entries import Cap
from wsync_engine.model.declaration import Declaration
from wsync_engine.model.ids import TenantId
from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.pipeline.stream_check import StreamMistake, stream_mistakes
from wsync_engine.plugins import PluginHost
from wsync_engine.plugins.configuration import secret_references, validated
from wsync_engine.scheduler.breakers import close_breakers
from wsync_engine.scheduler.caps import announce_caps
from wsync_engine.scheduler.rows import select
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.secrets.references import check_reference, resolve
from wsync_engine.services.catalog import Catalog, StoredConnection, named, read_catalog, service_statements
from wsync_engine.state.database import tenant_transaction
from wsync_sdk.errors import ConfigError
from wsync_sdk.network import AddressPolicy
from wsync_sdk.sink import Operation
from wsync_sdk.source import CheckReport, Finding

__all__ = ["Checked", "Role", "check_config", "check_connection", "check_mode", "forgive", "resolved_secrets", "roles_of", "secret_of"]

_SQL = service_statements("catalog")
Role = Literal["source", "sink"]
STORED = "env:"
"""References whose values are stored, encrypted: no other process has this one's environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a connection's check found in one role."""

    role: Role
    report: CheckReport


def roles_of(declaration: Declaration, connection: str) -> tuple[Role, ...]:
    """What the declared syncs use a connection as; empty: nothing uses it."""
    used = {"source": any(sync.spec.source == connection for sync in declaration.syncs)}
    used["sink"] = any(sync.spec.sink == connection for sync in declaration.syncs)
    return tuple(role for role in ("source", "sink") if used[role])


def check_config(host: PluginHost, plugin: str, config: Mapping[str, Any], roles: Sequence[Role]) -> None:
    """Hold a config against its plugin's models; no secret is resolved and nothing is connected.

    :raises ConfigError: there is no such plugin for that role, or the config is wrong.
    """
    for model in _models(host, plugin, roles):
        validated(model, config, resolve)


def check_mode(host: PluginHost, plugin: str, config: Mapping[str, Any], mode: Mode) -> None:
    """Hold a sync's mode against what its sink can do, as far as the sink's config tells.

    :raises ConfigError: the sync mirrors, and the sink deletes nothing.
    """
    operations = host.sink_operations(plugin, config, resolve) if mode is Mode.MIRROR else None
    if operations is not None and Operation.DELETE not in operations:
        raise ConfigError(
            "mode `mirror` deletes what left the result, and the sink's config says nothing of deletes",
            next_step=f"tell the sink how to delete (see the page of `{plugin}`), or use `mode: upsert`",
        )


def declared_mistakes(host: PluginHost, plugin: str, config: Mapping[str, Any], spec: SyncSpec) -> list[StreamMistake]:
    """What the sink's stream can't take of a sync, as far as its plugin tells without connecting.

    :raises ConfigError: the config is wrong.
    """
    try:
        stream = host.sink_stream(plugin, config, resolve, spec.stream)
    except ConfigError as exc:
        return [StreamMistake(path=("stream",), what=exc.message, next_step=exc.next_step)]
    return [] if stream is None else stream_mistakes(spec, stream)


def resolved_secrets(
    host: PluginHost, plugin: str, config: Mapping[str, Any], roles: Sequence[Role], folders: Sequence[Path]
) -> dict[str, str]:
    """The values to be stored: of every `env:` reference, as they are in this process now. `file:` is read by whoever uses it.

    :param folders: where the tenant's files may lie.
    :raises ConfigError: a variable is not set, a file is not the tenant's, or a secret is given as a value.
    """
    references = [found for model in _models(host, plugin, roles) for found in secret_references(model, config)]
    for reference in references:
        check_reference(reference, folders)
    return {reference: resolve(reference) for reference in sorted(set(references)) if reference.startswith(STORED)}


def check_connection(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    name: str,
    *,
    host: PluginHost,
    keyring: Keyring,
    network: AddressPolicy,
    folders: Sequence[Path] = (),
    index: Index | None = None,
) -> tuple[Checked, ...]:
    """Open a stored connection and let its plugin look at it, in each role that a sync uses, else in the first that the plugin offers. Runs that
    wait because it failed as a destination may go where it is found well.

    :param index: the tenant's, told of that. :param network: which addresses a sink may call. :param folders: where the tenant's secret files may lie.
    :raises ConfigError: there is no such connection, or its config is wrong. Errors of the plugin pass through.
    """
    with tenant_transaction(conn, tenant_id):
        catalog = read_catalog(conn, tenant_id, keyring.tenant(tenant_id))
    connection: StoredConnection = named(catalog.connections, name, "connection")
    checked = tuple(
        Checked(role=role, report=_checked(connection, role, host, network, folders)) for role in _roles_in_use(catalog, connection, host)
    )
    if any(one.role == "sink" and one.report.ok for one in checked):
        with tenant_transaction(conn, tenant_id):
            caps = forgive(conn, tenant_id, [connection.connection_id], is_trusted=False)
        if index is not None and caps:
            announce_caps(index, caps)
        if caps:
            message = "its runs waited because it had failed again and again; they may go now"
            checked += (Checked(role="sink", report=CheckReport(findings=(Finding(name="breaker", ok=True, message=message),))),)
    return checked


def forgive(conn: psycopg.Connection[Any], tenant_id: TenantId, connection_ids: Sequence[UUID], *, is_trusted: bool = True) -> list[Cap]:
    """A person saw to these destinations: runs that wait because they failed may go. In the tenant's transaction; gives the caps to announce.

    :param is_trusted: False: the next failure alone makes them wait again.
    """
    if not connection_ids:
        return []
    rows = select(conn, _SQL["connection_credentials"], {"tenant_id": tenant_id, "connection_ids": list(connection_ids)})
    return close_breakers(conn, tenant_id, [row["credential_id"] for row in rows], is_trusted=is_trusted)


def secret_of(connection: StoredConnection, folders: Sequence[Path]) -> Callable[[str], str]:
    """What resolves the connection's references: the stored value where there is one, else this process' environment and the tenant's files."""

    def value(reference: str) -> str:
        return connection.secrets[reference] if reference in connection.secrets else resolve(reference, folders=folders)

    return value


def _checked(connection: StoredConnection, role: Role, host: PluginHost, network: AddressPolicy, folders: Sequence[Path]) -> CheckReport:
    if role == "source":
        with host.open_source(connection.plugin, connection.config, secret_of(connection, folders)) as source:
            return source.check()
    with host.open_sink(connection.plugin, connection.config, secret_of(connection, folders), network=network) as sink:
        return sink.check()


def _roles_in_use(catalog: Catalog, connection: StoredConnection, host: PluginHost) -> tuple[Role, ...]:
    roles: list[Role] = []
    if any(sync.source_id == connection.connection_id for sync in catalog.syncs.values()):
        roles.append("source")
    if any(sync.sink_id == connection.connection_id for sync in catalog.syncs.values()):
        roles.append("sink")
    return tuple(roles) or (_first_role(host, connection.plugin),)


def _first_role(host: PluginHost, plugin: str) -> Role:
    try:
        host.source_spec(plugin)
    except ConfigError:
        host.sink_spec(plugin)
        return "sink"
    return "source"


def _models(host: PluginHost, plugin: str, roles: Sequence[Role]) -> list[type[BaseModel]]:
    wanted = roles or (_first_role(host, plugin),)
    return [(host.source_spec(plugin) if role == "source" else host.sink_spec(plugin)).config_model for role in wanted]
