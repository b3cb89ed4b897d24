from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from psycopg.types.json import Jsonb

from wsync_engine.model.declaration import ConnectionSpec
from wsync_engine.model.ids import uuid7
from wsync_engine.model.sync import Mode
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.pipeline.manifest import KeyColumn, Manifest
from wsync_engine.services.replay import Choice, replay_sync
from wsync_engine.services.runs import cancel_run, retry_run
from wsync_engine.services.syncs import trigger_sync
from wsync_engine.storage import LocalStorage
from wsync_engine.worker.store import load_assignments
from wsync_sdk.errors import ConfigError

from .conftest import DECLARATION, Store

NOW = datetime.now(UTC)


@pytest.fixture
def storage(store: Store, tmp_path: Path) -> LocalStorage:
    archive = ConnectionSpec(name="archive", plugin="postgres", config={"url": "env:CRM_URL"})
    store.apply(replace(DECLARATION, connections=(*DECLARATION.connections, archive)))
    return LocalStorage(root=tmp_path, tenant_id=str(store.tenant_id))


def delivered(store: Store, storage: LocalStorage, *, hours_ago: float, delivery: int) -> UUID:
    """A run that has sent its change log."""
    run_id = trigger_sync(store.api, store.tenant_id, "customers", actor="test").run_id
    file = storage.log_folder(str(run_id)) / "changes.parquet"
    file.touch()
    sink_id = store.rows("SELECT sink_connection_id FROM wsync.sync")[0]["sink_connection_id"]
    log = LogRecord(
        partitions=1,
        files=(storage.relative(file),),
        stage={"0": []},
        base=Manifest(version=0, partitions=1, files=(None,), algorithm="a", seed="s"),
        key=(KeyColumn(name="id", type="BIGINT"),),
        schema=pa.schema([("id", pa.int64())]),
        mode=Mode.MIRROR,
        destination=f"{sink_id}/postgres",
        stream="people",
    )
    store.engine.execute(
        "UPDATE wsync.run SET state = 'succeeded', delivery = %s, folded_at = %s, finished_at = %s, change_log = %s WHERE run_id = %s",
        [delivery, NOW, NOW - timedelta(hours=hours_ago), Jsonb(log.to_json()), run_id],
    )
    return run_id


def chosen(store: Store, storage: LocalStorage, **choice: Any) -> tuple[UUID, ...]:
    made = replay_sync(store.api, store.tenant_id, "customers", Choice(**choice), storage=storage, actor="ann")
    cancel_run(store.api, store.tenant_id, made.triggered.run_id, reason="", actor="test")
    return made.run_ids


def test_runs_are_chosen_one_by_one_or_by_time_and_replayed_in_the_order_of_their_delivery(store: Store, storage: LocalStorage) -> None:
    newest, oldest, middle = (delivered(store, storage, hours_ago=n, delivery=4 - n) for n in (1, 3, 2))

    assert chosen(store, storage, run_ids=[newest, oldest, newest]) == (oldest, newest)
    assert chosen(store, storage, since=NOW - timedelta(hours=2.5)) == (middle, newest)
    assert chosen(store, storage, since=NOW - timedelta(hours=9), until=NOW - timedelta(hours=1)) == (oldest, middle)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "which runs"),
        ({"since": NOW, "run_ids": [uuid7()]}, "which runs"),
        ({"since": NOW}, "no run of the sync delivered"),
        ({"run_ids": [uuid7()], "until": NOW}, "--until goes with --since"),
        ({"run_ids": [uuid7()]}, "none of the sync's"),
        ({"since": NOW - timedelta(days=1), "to": "nowhere"}, "no connection `nowhere`"),
        ({"since": NOW - timedelta(days=1), "stream": "others"}, "--stream goes with --to"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(store: Store, storage: LocalStorage, choice: dict[str, Any], message: str) -> None:
    delivered(store, storage, hours_ago=1, delivery=1)

    with pytest.raises(ConfigError, match=message):
        chosen(store, storage, **choice)


@pytest.mark.parametrize(
    ("mode", "message"), [("replace", "replaces all that its destination holds"), ("append", "every replayed row twice")]
)
def test_what_is_replaced_as_a_whole_or_sent_once_is_not_replayed(store: Store, storage: LocalStorage, mode: str, message: str) -> None:
    run_id = delivered(store, storage, hours_ago=1, delivery=1)
    store.engine.execute("UPDATE wsync.sync SET spec = jsonb_set(spec, '{mode}', to_jsonb(CAST(%s AS text)))", [mode])

    with pytest.raises(ConfigError, match=message) as refused:
        chosen(store, storage, run_ids=[run_id])

    assert refused.value.next_step


def test_a_replay_is_exclusive_and_says_which_run_is_open(store: Store, storage: LocalStorage) -> None:
    run_id = delivered(store, storage, hours_ago=1, delivery=1)
    opened = trigger_sync(store.api, store.tenant_id, "customers", actor="test").run_id

    with pytest.raises(ConfigError, match=f"run {opened} of the sync is open"):
        chosen(store, storage, run_ids=[run_id])


def test_a_replay_to_another_connection_is_opened_with_that_ones_config_stream_and_credential(store: Store, storage: LocalStorage) -> None:
    run_id = delivered(store, storage, hours_ago=1, delivery=1)
    choice = Choice(run_ids=[run_id], to="archive", stream="copies")

    made = replay_sync(store.api, store.tenant_id, "customers", choice, storage=storage, actor="ann").triggered

    archive_id = store.rows("SELECT connection_id FROM wsync.connection WHERE name = 'archive'")[0]["connection_id"]
    assert store.rows("SELECT credential_id FROM wsync.run WHERE run_id = %s", made.run_id) == [{"credential_id": archive_id}]
    assignment = loaded(store, made.run_id)
    assert (assignment.destination, assignment.spec.stream) == (f"{archive_id}/postgres", "copies")
    store.engine.execute("UPDATE wsync.run SET state = 'failed' WHERE run_id = %s", [made.run_id])
    again = retry_run(store.api, store.tenant_id, made.run_id, actor="ann").run_id
    assert (loaded(store, again).destination, loaded(store, again).spec.stream) == (f"{archive_id}/postgres", "copies")


def loaded(store: Store, run_id: UUID) -> Any:
    from wsync_engine.scheduler.runs import ClaimedRun

    (row,) = store.rows("SELECT tenant_id, run_id, sync_id, nominal_at FROM wsync.run WHERE run_id = %s", run_id)
    fields = dict.fromkeys(ClaimedRun.__dataclass_fields__) | row | {"epoch": 1, "worker_id": uuid7()}
    limits: Any = {"write_until_s": 1.0, "call_timeout_s": 1.0, "rows_per_partition": 1}
    return load_assignments(store.engine, [ClaimedRun(**fields)], store.keyring, **limits)[run_id]
