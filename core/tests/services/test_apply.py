from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
import pytest

from wsync_engine.model.declaration import ConnectionSpec, Declaration, ScheduleDeclaration, sync_spec_from_json
from wsync_engine.model.run import Priority
from wsync_engine.model.sync import Cursor, Guards, MappingEntry, Mode, Read
from wsync_engine.scheduler.schedules import create_schedule, trigger_run
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.services.apply import apply
from wsync_engine.services.changes import Change, FieldChange
from wsync_engine.services.plan_notes import FIRES_NO_MORE, READS_EVERYTHING
from wsync_engine.state.database import connect, tenant_transaction
from wsync_sdk.errors import ConfigError

from .conftest import DECLARATION, SYNC, Store, with_schedule, with_sync

PAST = datetime(2020, 1, 31, 8, tzinfo=UTC)
FUTURE = datetime(2090, 1, 31, 8, tzinfo=UTC)


def kinds(changes: list[Change]) -> list[tuple[str, str, str]]:
    return [(change.kind, change.object, change.name) for change in changes]


def test_a_first_apply_creates_everything(store: Store) -> None:
    changes = store.apply()

    assert kinds(changes) == [
        ("create", "tenant", "acme"),
        ("create", "connection", "warehouse"),
        ("create", "connection", "crm"),
        ("create", "sync", "customers"),
        ("create", "schedule", "customers"),
    ]
    assert sync_spec_from_json(store.rows("SELECT spec FROM wsync.sync")[0]["spec"]) == SYNC
    assert store.rows("SELECT next_due_at IS NOT NULL AS due FROM wsync.schedule_clock") == [{"due": True}]


def test_applying_twice_changes_nothing(store: Store) -> None:
    store.apply()
    query = "SELECT spec_version, updated_at FROM wsync.{} ORDER BY 1, 2"
    before = [store.rows(query.format(table)) for table in ("connection", "sync", "schedule")]

    changes = store.apply()

    assert {change.kind for change in changes} == {"unchanged"}
    assert [store.rows(query.format(table)) for table in ("connection", "sync", "schedule")] == before


def test_a_plan_says_what_apply_does_and_writes_nothing(store: Store) -> None:
    planned = store.plan()

    assert store.rows("SELECT * FROM wsync.tenant") == []
    assert store.apply() == planned


def test_a_changed_query_shows_both_texts(store: Store) -> None:
    store.apply()

    planned = store.plan(with_sync(query="SELECT 1"))

    changed = [change for change in planned if change.kind == "change"]
    assert [change.fields for change in changed] == [(FieldChange(path="query", old=SYNC.query, new="SELECT 1"),)]


def test_secrets_are_stored_encrypted_and_shown_nowhere(store: Store) -> None:
    changes = store.apply()

    stored = store.rows("SELECT config, secrets FROM wsync.connection WHERE name = 'warehouse'")[0]
    assert stored["config"] == {"url": "env:WAREHOUSE_URL"}
    assert b"hunter2" not in bytes(stored["secrets"])
    decrypted = json.loads(store.keyring.tenant(store.tenant_id).decrypt(bytes(stored["secrets"])))
    assert decrypted == {"env:WAREHOUSE_URL": "postgresql://reader:hunter2@warehouse/db"}
    assert "hunter2" not in repr(changes)


def test_a_new_value_behind_a_reference_is_a_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.apply()
    monkeypatch.setenv("CRM_URL", "postgresql://writer:hunter4@crm/db")

    changes = store.apply()

    changed = [change for change in changes if change.kind == "change"]
    assert changed == [
        Change(
            kind="change",
            object="connection",
            name="crm",
            fields=(FieldChange(path="secrets.env:CRM_URL", old="stored", new="another value"),),
        )
    ]
    assert {change.kind for change in store.plan()} == {"unchanged"}


def test_a_variable_that_is_not_set_stops_before_anything_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRM_URL")

    with pytest.raises(ConfigError, match="env:CRM_URL"):
        store.apply()

    assert store.rows("SELECT * FROM wsync.tenant") == []


def test_a_file_outside_the_tenants_folder_of_secrets_stops_before_anything_is_written(store: Store) -> None:
    stolen = ConnectionSpec(name="crm", plugin="postgres", config={"url": "file:/run/secrets/other/url"})

    with pytest.raises(ConfigError, match="not in the tenant's folder"):
        store.apply(replace(DECLARATION, connections=(DECLARATION.connections[0], stolen)))

    assert store.rows("SELECT * FROM wsync.connection") == []


def test_what_is_no_longer_declared_goes_with_its_schedules_and_open_runs(store: Store) -> None:
    store.apply()
    sync_id = store.rows("SELECT sync_id FROM wsync.sync")[0]["sync_id"]
    with tenant_transaction(store.api, store.tenant_id):
        create_schedule(
            store.api, store.tenant_id, ScheduleSpec(name="other", sync_id=sync_id, kind="cron", cron="@daily", zone="UTC"), actor="test"
        )
        trigger_run(store.api, store.tenant_id, sync_id=sync_id, actor="test")

    changes = store.apply(replace(DECLARATION, connections=DECLARATION.connections[:1], syncs=()))

    assert kinds([change for change in changes if change.kind != "unchanged"]) == [
        ("delete", "connection", "crm"),
        ("delete", "sync", "customers"),
        ("delete", "schedule", "customers"),
        ("delete", "schedule", "other"),
    ]
    assert store.rows("SELECT state::text, cancel_reason FROM wsync.run") == [
        {"state": "cancelled", "cancel_reason": "the sync was deleted"}
    ]
    assert store.rows("SELECT secrets FROM wsync.connection WHERE deleted_at IS NOT NULL") == [{"secrets": None}]


class Beside:
    """Calls in threads, on connections that wait for locks as long as a test may last."""

    def __init__(self, store: Store, database: Any) -> None:
        self.store = store
        self._database = database
        self._pool = ThreadPoolExecutor(max_workers=2)
        self.connections: list[psycopg.Connection[Any]] = []
        self._looking = self.connect()  # a login sees what its own connections wait for

    def connect(self) -> psycopg.Connection[Any]:
        connection = connect(self._database.api_url, application_name="test")
        connection.execute("SET lock_timeout = '60s'")
        self.connections.append(connection)
        return connection

    def start(self, call: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
        """Returns when the call waits for a lock, or has ended."""
        connection = self.connect()
        result = self._pool.submit(call, connection)
        for _ in range(6_000):
            waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            if result.done() or self._looking.execute(waits, [connection.info.backend_pid]).fetchall():
                break
            threading.Event().wait(0.01)
        return result

    def apply(self, connection: psycopg.Connection[Any]) -> list[Change]:
        """The file without its sync, and without the connection `crm`."""
        rest = replace(DECLARATION, connections=DECLARATION.connections[:1], syncs=())
        return apply(connection, rest, host=self.store.host, keyring=self.store.keyring, actor="test")

    def close(self) -> None:
        self._pool.shutdown()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def beside(store: Store, database: Any) -> Iterator[Beside]:
    store.apply()
    made = Beside(store, database)
    yield made
    made.close()


def made_of_the_sync(what: str, store: Store, sync_id: UUID) -> Callable[[psycopg.Connection[Any]], Any]:
    tenant_id = store.tenant_id
    if what == "run":
        return lambda conn: trigger_run(conn, tenant_id, sync_id=sync_id, actor="ann")
    spec = ScheduleSpec(name="late", sync_id=sync_id, kind="cron", cron="@daily", zone="UTC")
    return lambda conn: create_schedule(conn, tenant_id, spec, actor="ann")


@pytest.mark.parametrize("what", ["run", "schedule"])
def test_what_is_made_of_a_sync_while_it_is_deleted_goes_with_it(store: Store, beside: Beside, what: str) -> None:
    make = made_of_the_sync(what, store, store.rows("SELECT sync_id FROM wsync.sync")[0]["sync_id"])
    producer = beside.connect()

    with tenant_transaction(producer, store.tenant_id):
        make(producer)
        applied = beside.start(beside.apply)
    applied.result()

    assert store.rows("SELECT state::text FROM wsync.run") == ([{"state": "cancelled"}] if what == "run" else [])
    assert store.rows("SELECT name FROM wsync.schedule WHERE deleted_at IS NULL") == []


@pytest.mark.parametrize("what", ["run", "schedule"])
def test_nothing_is_made_of_a_sync_whose_deletion_came_first(store: Store, beside: Beside, what: str) -> None:
    make = made_of_the_sync(what, store, store.rows("SELECT sync_id FROM wsync.sync")[0]["sync_id"])

    def produce(conn: psycopg.Connection[Any]) -> None:
        with tenant_transaction(conn, store.tenant_id):
            make(conn)

    with store.engine.transaction():  # the connection goes last: the sync is deleted, and nobody sees it yet
        store.engine.execute("SELECT FROM wsync.connection WHERE name = 'crm' FOR UPDATE")
        applied = beside.start(beside.apply)
        produced = beside.start(produce)
    applied.result()

    with pytest.raises(ConfigError, match="there is no sync"):
        produced.result()
    assert store.rows("SELECT FROM wsync.run") == []
    assert store.rows("SELECT FROM wsync.schedule WHERE deleted_at IS NULL") == []


def test_a_plan_says_what_a_deletion_takes_along_and_what_it_leaves(store: Store) -> None:
    store.apply()

    without_schedule = {change.object: change.note for change in store.plan(with_schedule(None)) if change.kind == "delete"}
    without_all = {
        change.object: change.note for change in store.plan(replace(DECLARATION, connections=(), syncs=())) if change.kind == "delete"
    }

    assert without_schedule == {"schedule": "no more runs by schedule; those that it made go on"}
    assert "stays at the destination" in without_all["sync"]
    assert "open runs are cancelled" in without_all["sync"]
    assert without_all["schedule"] == "it goes with its sync"
    assert "secrets are deleted" in without_all["connection"]


def test_what_was_deleted_can_come_back(store: Store) -> None:
    store.apply()
    store.apply(replace(DECLARATION, syncs=()))

    changes = store.apply()

    assert ("create", "sync", "customers") in kinds(changes)


def test_a_schedule_of_another_name_stays(store: Store) -> None:
    store.apply()
    sync_id = store.rows("SELECT sync_id FROM wsync.sync")[0]["sync_id"]
    with tenant_transaction(store.api, store.tenant_id):
        create_schedule(
            store.api, store.tenant_id, ScheduleSpec(name="other", sync_id=sync_id, kind="cron", cron="@daily", zone="UTC"), actor="test"
        )

    store.apply(with_schedule(None))

    assert store.rows("SELECT name FROM wsync.schedule WHERE deleted_at IS NULL") == [{"name": "other"}]


def test_a_schedule_changes_from_cron_to_an_interval_and_back(store: Store) -> None:
    store.apply()

    store.apply(with_schedule(ScheduleDeclaration(every_ms=60_000, priority=Priority.HIGH)))
    changed = store.rows("SELECT kind, cron, every_ms, priority, anchor_at IS NOT NULL AS anchored FROM wsync.schedule")
    store.apply()

    assert changed == [{"kind": "interval", "cron": None, "every_ms": 60_000, "priority": 2, "anchored": True}]
    assert store.rows("SELECT kind, zone, spec_version FROM wsync.schedule") == [
        {"kind": "cron", "zone": "Europe/Berlin", "spec_version": 3}
    ]


def test_a_sync_that_moves_to_another_source_takes_its_schedule_along(store: Store) -> None:
    store.apply()
    second = ConnectionSpec(name="replica", plugin="postgres", config={"url": "env:WAREHOUSE_URL"})
    declaration = replace(DECLARATION, connections=(*DECLARATION.connections, second))

    store.apply(with_sync(declaration, source="replica"))

    names = store.rows("SELECT k.name FROM wsync.schedule s JOIN wsync.connection k USING (connection_id)")
    assert names == [{"name": "replica"}]


CRM = ConnectionSpec(name="other", plugin="postgres", config={"url": "env:CRM_URL"})


@pytest.mark.parametrize(
    "moved", [with_sync(stream="others"), with_sync(replace(DECLARATION, connections=(*DECLARATION.connections, CRM)), sink="other")]
)
def test_a_sync_that_moves_to_another_destination_offers_everything_there(store: Store, moved: Declaration) -> None:
    store.apply()
    planned = store.plan(moved)

    store.apply(moved)
    store.apply(moved)

    assert [change.name for change in planned if "offers everything" in change.note] == ["customers"]
    assert store.rows("SELECT resync FROM wsync.sync") == [{"resync": 1}]


def test_another_query_or_mapping_offers_only_what_changed(store: Store) -> None:
    store.apply()

    store.apply(with_sync(query="SELECT id, email FROM other"))

    assert store.rows("SELECT resync FROM wsync.sync") == [{"resync": 0}]


@pytest.mark.parametrize(("schedule", "place"), [
    (ScheduleDeclaration(once_at=PAST), "syncs.customers.schedule.at: 2020-01-31T08:00:00+00:00 is past"),
    (ScheduleDeclaration(cron="@daily", end_at=PAST), "syncs.customers.schedule.end: 2020-01-31T08:00:00+00:00 is past"),
    (ScheduleDeclaration(every_ms=3_600_000, end_at=PAST), "syncs.customers.schedule.end: "),
    (ScheduleDeclaration(once_at=FUTURE, end_at=FUTURE - timedelta(days=1)), "syncs.customers.schedule.end: it leaves no time"),
    (ScheduleDeclaration(once_at=FUTURE, start_at=FUTURE + timedelta(days=1)), "syncs.customers.schedule.start: it leaves no time"),
])  # fmt: skip
def test_a_new_schedule_that_would_never_fire_is_refused_by_the_plan_already(
    store: Store, schedule: ScheduleDeclaration, place: str
) -> None:
    for judge in (store.plan, store.apply):
        with pytest.raises(ConfigError) as refused:
            judge(with_schedule(schedule))
        assert refused.value.message.startswith(place)

    assert store.rows("SELECT * FROM wsync.sync") == []


@pytest.mark.parametrize(("column", "declared"), [
    ("once_at", ScheduleDeclaration(once_at=FUTURE)), ("end_at", ScheduleDeclaration(cron="@daily", end_at=FUTURE)),
])  # fmt: skip
def test_a_file_stays_good_when_the_times_of_its_schedule_have_passed(
    store: Store, column: Literal["once_at", "end_at"], declared: ScheduleDeclaration
) -> None:
    store.apply(with_schedule(declared))
    store.engine.execute(f"UPDATE wsync.schedule SET {column} = %s", [PAST])
    store.engine.execute("UPDATE wsync.schedule_clock SET next_nominal_at = NULL, next_due_at = NULL")
    later = replace(declared, once_at=PAST) if column == "once_at" else replace(declared, end_at=PAST)

    again, other = store.apply(with_schedule(later)), store.apply(with_schedule(replace(later, priority=Priority.HIGH)))

    assert {change.kind for change in again} == {"unchanged"}
    assert [(change.kind, change.note) for change in other if change.object == "schedule"] == [("change", FIRES_NO_MORE)]


def test_a_change_that_leaves_a_schedule_no_times_is_planned_with_a_word(store: Store) -> None:
    store.apply()

    planned = store.plan(with_schedule(ScheduleDeclaration(cron="*/15 * * * *", timezone="Europe/Berlin", end_at=PAST)))

    assert [change.note for change in planned if change.kind == "change"] == [FIRES_NO_MORE]


def test_a_schedule_that_never_fires_changes_nothing(store: Store) -> None:
    with pytest.raises(ConfigError):
        store.apply(with_schedule(ScheduleDeclaration(cron="0 0 30 2 *")))

    assert store.rows("SELECT * FROM wsync.sync") == []


# -- what is read

BY_CURSOR: dict[str, Any] = {
    "query": "SELECT id, email FROM customers WHERE id >= :cursor",
    "mode": Mode.UPSERT,
    "read": Read.INCREMENTAL,
    "cursor": Cursor(column="id"),
}


def notes(changes: list[Change]) -> set[str]:
    return {change.note for change in changes if change.object == "sync"}


@pytest.mark.parametrize(
    "changes",
    [
        {"query": "SELECT id, email FROM customers WHERE id >= :cursor AND active"},
        {"cursor": Cursor(column="email")},
        {"cursor": Cursor(column="id", initial=7)},
        {"mapping": (MappingEntry(target="id", column="id"),)},
        {"parameters": {"least": 7}},
    ],
)
def test_a_change_that_makes_a_cursor_worthless_is_planned_with_a_word_about_that(store: Store, changes: dict[str, Any]) -> None:
    store.apply(with_sync(**BY_CURSOR))

    assert notes(store.plan(with_sync(**{**BY_CURSOR, **changes}))) == {READS_EVERYTHING}


@pytest.mark.parametrize("changes", [{"cursor": Cursor(column="id", overlap_by=7)}, {"guards": Guards(max_deletes=1)}, {}])
def test_a_change_that_leaves_the_cursor_is_planned_without_a_word(store: Store, changes: dict[str, Any]) -> None:
    store.apply(with_sync(**BY_CURSOR))

    assert notes(store.plan(with_sync(**{**BY_CURSOR, **changes}))) == {""}


def test_a_sync_that_becomes_incremental_reads_everything_once_and_one_that_becomes_full_needs_no_word(store: Store) -> None:
    store.apply(with_sync(mode=Mode.UPSERT))
    assert notes(store.apply(with_sync(**BY_CURSOR))) == {READS_EVERYTHING}

    assert notes(store.plan(with_sync(mode=Mode.UPSERT))) == {""}


def test_what_no_sync_can_read_is_refused_also_without_a_file(store: Store) -> None:
    with pytest.raises(ConfigError, match="sync `customers`: `mirror` deletes what is not in the result"):
        store.apply(with_sync(**{**BY_CURSOR, "mode": Mode.MIRROR}))

    assert store.rows("SELECT * FROM wsync.tenant") == []
