from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg.types.json import Jsonb

from wsync_engine.pipeline.unsure_keys import open_requests
from wsync_engine.services.key_resync import resync_keys
from wsync_engine.storage import LocalStorage
from wsync_sdk.errors import ConfigError

from .conftest import Store


@pytest.fixture
def storage(store: Store, tmp_path: Path) -> LocalStorage:
    """A sync with a snapshot of three keys."""
    store.apply()
    made = LocalStorage(root=tmp_path, tenant_id=str(store.tenant_id))
    sync_id = store.rows("SELECT sync_id FROM wsync.sync")[0]["sync_id"]
    file = made.snapshot_folder(str(sync_id)) / "one.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3]}), file)
    manifest = {"partitions": 1, "files": [made.relative(file)], "algorithm": "a", "seed": "s", "key": [["id", "BIGINT"]], "rows": 3}
    manifest |= {"delivery": 1, "resync": 0, "is_unsure": False}
    store.engine.execute(
        "INSERT INTO wsync.snapshot (sync_id, tenant_id, version, manifest) VALUES (%s, %s, 1, %s)",
        [sync_id, store.tenant_id, Jsonb(manifest)],
    )
    return made


def ask(store: Store, storage: LocalStorage, *typed: str) -> tuple[int, tuple[str, ...]]:
    done = resync_keys(store.api, store.tenant_id, "customers", typed, storage=storage, keyring=store.keyring, actor="ann")
    return done.keys, done.missing


def test_keys_that_nothing_was_delivered_of_are_told(store: Store, storage: LocalStorage) -> None:
    assert ask(store, storage, "1", "3", "4") == (2, ("4",))
    with pytest.raises(ConfigError, match="none of the 1 keys"):
        ask(store, storage, "5")

    (row,) = store.rows("SELECT key_resync, unsure_keys FROM wsync.sync")
    (request,) = open_requests(row["unsure_keys"], store.keyring.tenant(store.tenant_id), done=0)
    assert (row["key_resync"], request.keys) == (1, (("1",), ("3",)))


def test_the_event_of_it_says_who_and_how_many_and_no_key(store: Store, storage: LocalStorage) -> None:
    ask(store, storage, "3")

    (event,) = store.rows("SELECT detail FROM wsync.run_event WHERE kind = 'sync.resync_requested'")
    assert (event["detail"]["actor"], event["detail"]["keys"], set(event["detail"])) == ("ann", 1, {"sync", "sync_id", "actor", "keys"})


def test_requests_that_were_done_are_not_kept_beside_a_new_one(store: Store, storage: LocalStorage) -> None:
    ask(store, storage, "1")
    store.engine.execute("UPDATE wsync.snapshot SET manifest = manifest || '{\"key_resync\": 1}'")
    ask(store, storage, "2")
    ask(store, storage, "3")

    (row,) = store.rows("SELECT unsure_keys FROM wsync.sync")
    kept = open_requests(row["unsure_keys"], store.keyring.tenant(store.tenant_id), done=0)
    assert [(one.number, one.keys) for one in kept] == [(2, (("2",),)), (3, (("3",),))]


def test_a_sync_that_delivered_nothing_has_no_keys(store: Store, tmp_path: Path) -> None:
    store.apply()

    with pytest.raises(ConfigError, match="delivered nothing yet"):
        ask(store, LocalStorage(root=tmp_path, tenant_id=str(store.tenant_id)), "1")
