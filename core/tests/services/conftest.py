from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from wsync_engine.model.declaration import ConnectionSpec, Declaration, ScheduleDeclaration, SyncDeclaration
from wsync_engine.model.ids import TenantId
from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.plugins import PluginHost
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.services.apply import apply, plan_changes
from wsync_engine.services.changes import Change
from wsync_engine.state.database import connect
from wsync_engine.state.tenants import ensure_tenant

SYNC = SyncSpec(
    name="customers",
    source="warehouse",
    sink="crm",
    query="SELECT id, email FROM customers",
    key=("id",),
    stream="people",
    mode=Mode.MIRROR,
)
DECLARATION = Declaration(
    tenant="acme",
    connections=(
        ConnectionSpec(name="warehouse", plugin="postgres", config={"url": "env:WAREHOUSE_URL"}),
        ConnectionSpec(name="crm", plugin="postgres", config={"url": "env:CRM_URL"}),
    ),
    syncs=(SyncDeclaration(spec=SYNC, schedule=ScheduleDeclaration(cron="*/15 * * * *", timezone="Europe/Berlin")),),
)


def with_sync(declaration: Declaration = DECLARATION, **changes: Any) -> Declaration:
    """The declaration with other values in its one sync."""
    return replace(declaration, syncs=(replace(declaration.syncs[0], spec=replace(SYNC, **changes)),))


def with_schedule(schedule: ScheduleDeclaration | None) -> Declaration:
    """The declaration with another schedule."""
    return replace(DECLARATION, syncs=(SyncDeclaration(spec=SYNC, schedule=schedule),))


@dataclass(slots=True, kw_only=True)
class Store:
    """A state store and everything that a service needs."""

    api: psycopg.Connection[Any]
    engine: psycopg.Connection[Any]
    host: PluginHost
    keyring: Keyring

    @property
    def tenant_id(self) -> TenantId:
        return ensure_tenant(self.api, "acme")

    def apply(self, declaration: Declaration = DECLARATION) -> list[Change]:
        return apply(self.api, declaration, host=self.host, keyring=self.keyring, actor="test")

    def plan(self, declaration: Declaration = DECLARATION) -> list[Change]:
        return plan_changes(self.api, declaration, host=self.host, keyring=self.keyring)

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        with self.engine.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, arguments).fetchall()  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def host() -> PluginHost:
    return PluginHost.load(allow=("wsync-postgres",))


@pytest.fixture
def store(database: Any, host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("WAREHOUSE_URL", "postgresql://reader:hunter2@warehouse/db")
    monkeypatch.setenv("CRM_URL", "postgresql://writer:hunter3@crm/db")
    with connect(database.api_url, application_name="test") as api, connect(database.engine_url, application_name="test") as engine:
        yield Store(api=api, engine=engine, host=host, keyring=Keyring([b"k" * 32]))
