from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from wsync_engine.model.declaration import Declaration
from wsync_engine.model.ids import TenantId, uuid7
from wsync_engine.services import purge
from wsync_engine.services.purge import Purged, RunsOpen, end_tenant, purge_tenant
from wsync_engine.services.storage import claim_storage
from wsync_engine.services.syncs import trigger_sync
from wsync_engine.state.tenants import ensure_tenant, find_tenant
from wsync_engine.storage import LocalStorage
from wsync_sdk.errors import ConfigError

from .conftest import DECLARATION, Store


def url_of(folder: Path) -> str:
    return f"file://{folder}"


def rows_by_table(store: Store, tenant_id: TenantId) -> dict[str, int]:
    """Of every table that has a tenant, whatever the schema comes to have."""
    tables = store.rows(
        "SELECT c.table_name AS name FROM information_schema.columns AS c JOIN information_schema.tables AS t USING (table_schema, table_name)"
        " JOIN pg_class AS p ON p.relname = c.table_name AND p.relnamespace = 'wsync'::regnamespace AND NOT p.relispartition"
        " WHERE c.table_schema = 'wsync' AND c.column_name = 'tenant_id'"
    )
    return {
        table["name"]: store.rows(f"SELECT count(*) AS rows FROM wsync.{table['name']} WHERE tenant_id = %s", tenant_id)[0]["rows"]
        for table in tables
    }


def fill(store: Store, tenant_id: TenantId, folder: Path) -> UUID:
    """Something of the tenant in every table, and in the storage; gives an ended run."""
    run_id = trigger_sync(store.api, tenant_id, "customers", actor="test").run_id
    one = {"tenant_id": tenant_id, "run_id": run_id, "id": uuid7()}
    for statement in [
        "UPDATE wsync.run SET state = 'succeeded', finished_at = now(), folded_at = now() WHERE run_id = %(run_id)s",
        "INSERT INTO wsync.run_history SELECT * FROM wsync.run WHERE run_id = %(run_id)s",
        "INSERT INTO wsync.split (run_id, part, tenant_id, plan_generation) VALUES (%(run_id)s, 0, %(tenant_id)s, 1)",
        "INSERT INTO wsync.task (run_id, kind, part, tenant_id) VALUES (%(run_id)s, 'diff', 0, %(tenant_id)s)",
        "INSERT INTO wsync.chunk (run_id, partition, first_row, last_row, tenant_id) VALUES (%(run_id)s, 0, 0, 1, %(tenant_id)s)",
        "INSERT INTO wsync.ack (run_id, partition, first_row, last_row, tenant_id, epoch, verdict, at)"
        " VALUES (%(run_id)s, 0, 0, 1, %(tenant_id)s, 1, 'accepted', now())",
        "INSERT INTO wsync.rejection (rejection_id, tenant_id, sync_id, run_id, phase, code, message, retryable)"
        " SELECT %(id)s, tenant_id, sync_id, run_id, 'diff', 'c', 'm', false FROM wsync.run WHERE run_id = %(run_id)s",
        "INSERT INTO wsync.snapshot (sync_id, tenant_id, manifest) SELECT sync_id, tenant_id, '{}' FROM wsync.run WHERE run_id = %(run_id)s",
        "INSERT INTO wsync.resource_cap (tenant_id, kind, resource_id, max_running) VALUES (%(tenant_id)s, 'T', %(tenant_id)s, 1)",
        "INSERT INTO wsync.breaker (tenant_id, credential_id) VALUES (%(tenant_id)s, %(id)s)",
        "INSERT INTO wsync.schedule_spec (schedule_id, spec_version, tenant_id, spec) VALUES (%(id)s, 1, %(tenant_id)s, '{}')",
        "INSERT INTO wsync.backfill (backfill_id, tenant_id, shard, schedule_id, from_at, to_at, cursor_at)"
        " VALUES (%(id)s, %(tenant_id)s, 0, %(id)s, now() - interval '1 day', now(), now())",
    ]:
        store.engine.execute(statement.encode(), one)
    storage = LocalStorage(root=folder, tenant_id=str(tenant_id))
    (storage.log_folder(str(run_id)) / "changes.parquet").write_bytes(b"people")
    (storage.snapshot_folder(str(uuid7())) / "snapshot.parquet").write_bytes(b"people")
    return run_id


@pytest.fixture
def full(store: Store, tmp_path: Path) -> TenantId:
    """A tenant that has something everywhere."""
    store.apply()
    fill(store, store.tenant_id, tmp_path)
    return store.tenant_id


def purged(store: Store, tenant_id: TenantId, folder: Path, *, cancels: bool = False) -> Purged:
    end_tenant(store.api, tenant_id, actor="ann", cancels=cancels)
    return purge_tenant(store.engine, tenant_id, storage_url=url_of(folder), actor="ann")


def test_nothing_of_a_purged_tenant_is_left_but_one_event(store: Store, full: TenantId, tmp_path: Path) -> None:
    assert min(rows_by_table(store, full).values()) >= 1

    done = purged(store, full, tmp_path)

    assert {name: rows for name, rows in rows_by_table(store, full).items() if rows} == {"run_event": 1}
    (event,) = store.rows("SELECT kind, detail FROM wsync.run_event WHERE tenant_id = %s", full)
    assert (event["kind"], event["detail"]["actor"]) == ("tenant.purged", "ann")
    assert not (tmp_path / str(full)).exists()
    assert (done.runs, done.rejections, done.schedules, done.syncs, done.connections, done.files) == (2, 1, 1, 1, 2, 2)
    assert find_tenant(store.api, "acme") is None


def test_another_tenant_keeps_all_that_it_has(store: Store, full: TenantId, tmp_path: Path) -> None:
    other = Declaration(tenant="other", connections=DECLARATION.connections, syncs=DECLARATION.syncs)
    store.apply(other)
    other_id = ensure_tenant(store.api, "other")
    fill(store, other_id, tmp_path)
    before = rows_by_table(store, other_id)

    purged(store, full, tmp_path)

    assert rows_by_table(store, other_id) == before
    assert len(LocalStorage(root=tmp_path, tenant_id=str(other_id)).runs()) == 1


def test_an_open_run_stops_a_purge_and_nothing_is_changed(store: Store, full: TenantId, tmp_path: Path) -> None:
    run_id = trigger_sync(store.api, full, "customers", actor="test").run_id
    before = rows_by_table(store, full)

    with pytest.raises(ConfigError, match=f"1 runs of the tenant are open, the first is {run_id}"):
        purged(store, full, tmp_path)

    assert rows_by_table(store, full) == before
    assert store.rows("SELECT count(*) AS syncs FROM wsync.sync WHERE deleted_at IS NULL") == [{"syncs": 1}]
    purged(store, full, tmp_path, cancels=True)
    assert find_tenant(store.api, "acme") is None


def test_a_run_that_is_executed_is_asked_to_end_and_waited_for(store: Store, full: TenantId, tmp_path: Path) -> None:
    run_id = trigger_sync(store.api, full, "customers", actor="test").run_id
    store.engine.execute("UPDATE wsync.run SET state = 'running', worker_id = %s, epoch = 1 WHERE run_id = %s", [uuid7(), run_id])

    with pytest.raises(RunsOpen):
        end_tenant(store.api, full, actor="ann", cancels=True)
    with pytest.raises(RunsOpen):
        purge_tenant(store.engine, full, storage_url=url_of(tmp_path), actor="ann")

    assert store.rows("SELECT state::text FROM wsync.run WHERE run_id = %s", run_id) == [{"state": "cancelling"}]
    assert (tmp_path / str(full)).exists()
    with pytest.raises(ConfigError, match="no sync `customers`"):
        trigger_sync(store.api, full, "customers", actor="test")
    store.engine.execute("UPDATE wsync.run SET state = 'cancelled' WHERE run_id = %s", [run_id])
    purged(store, full, tmp_path, cancels=True)
    assert find_tenant(store.api, "acme") is None


@pytest.mark.parametrize("done", range(len(purge._LONG) + 1))
def test_a_purge_that_died_anywhere_is_finished_by_the_next_one(store: Store, full: TenantId, tmp_path: Path, done: int) -> None:
    end_tenant(store.api, full, actor="ann", cancels=False)
    LocalStorage(root=tmp_path, tenant_id=str(full)).drop_all()
    for name in purge._LONG[:done]:
        store.engine.execute(purge._SQL[name], {"tenant_id": full, "count": 1})

    purged(store, full, tmp_path)

    assert sum(rows_by_table(store, full).values()) == 1


def test_a_host_without_the_installations_storage_removes_nothing(store: Store, full: TenantId, tmp_path: Path) -> None:
    claim_storage(store.engine, url_of(tmp_path / "workers"))
    before = rows_by_table(store, full)

    with pytest.raises(ConfigError, match="does not have the storage"):
        purge_tenant(store.engine, full, storage_url=url_of(tmp_path), actor="ann")

    assert rows_by_table(store, full) == before
