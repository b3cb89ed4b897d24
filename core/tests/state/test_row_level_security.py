"""What the api's login can reach: the rows of the tenant that its transaction names, and no others."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from wsync_engine.state.database import connect, tenant_transaction

TABLES = {  # columns enough for a valid row; ID stands for a fresh uuid, CONNECTION and the like for the id of such a row
    "tenant": {"name": "ID"},
    "connection": {"connection_id": "ID", "name": "ID", "plugin": "'p'"},
    "sync": {
        "sync_id": "ID",
        "name": "ID",
        "spec": "'{}'",
        "overlap_key": "ID",
        "source_connection_id": "CONNECTION",
        "sink_connection_id": "CONNECTION",
    },
    "snapshot": {"sync_id": "SYNC", "manifest": "'{}'"},
    "split": {"run_id": "RUN", "part": "0", "plan_generation": "0"},
    "rejection": {
        "rejection_id": "ID",
        "sync_id": "SYNC",
        "run_id": "ID",
        "phase": "'diff'",
        "code": "'c'",
        "message": "'m'",
        "retryable": "false",
    },
    "resource_cap": {"kind": "'T'", "resource_id": "ID", "max_running": "1"},
    "breaker": {"credential_id": "ID"},
    "schedule": {
        "schedule_id": "ID",
        "name": "ID",
        "sync_id": "ID",
        "connection_id": "ID",
        "credential_id": "ID",
        "overlap_key": "ID",
        "kind": "'once'",
        "once_at": "now()",
    },
    "schedule_spec": {"schedule_id": "ID", "spec_version": "1", "spec": "'{}'"},
    "schedule_clock": {"schedule_id": "SCHEDULE", "shard": "0"},
    "backfill": {
        "backfill_id": "ID",
        "shard": "0",
        "schedule_id": "ID",
        "from_at": "now()",
        "to_at": "now() + interval '1 day'",
        "cursor_at": "now()",
    },
    "run": {
        "run_id": "ID",
        "shard": "0",
        "sync_id": "ID",
        "connection_id": "ID",
        "credential_id": "ID",
        "overlap_key": "ID",
        "trigger": "'manual'",
        "nominal_at": "now()",
        "due_at": "now()",
        "ready_at": "now()",
        "priority": "1",
        "exclusive": "true",
        "state": "'queued'",
    },
    "task": {"run_id": "RUN", "kind": "'diff'", "part": "0"},
    "chunk": {"run_id": "ID", "partition": "0", "first_row": "0", "last_row": "0"},
    "ack": {
        "run_id": "ID",
        "partition": "0",
        "first_row": "0",
        "last_row": "0",
        "epoch": "1",
        "verdict": "'accepted'",
        "at": "now()",
    },
    "run_event": {"kind": "'k'"},
}
TABLES["run_history"] = {**TABLES["run"], "finished_at": "now()", "created_at": "now()", "state": "'succeeded'"} | dict.fromkeys(
    ("buffer_one", "fanned", "dry_run", "adopt"), "false"
)
TABLES["run_history"] |= dict.fromkeys(("epoch", "attempt", "crashes", "plan_generation"), "0")
READ_ONLY = {"run_history", "breaker"}
"""Of which the api makes no rows."""
NEEDS = {"CONNECTION": "connection", "SYNC": "sync", "RUN": "run", "SCHEDULE": "schedule"}


def insert(connection: psycopg.Connection, table: str, tenant_id) -> str:
    """Insert a row of a tenant, and those that it refers to; returns its id, where its first column is one."""
    values = {"tenant_id": f"'{tenant_id}'"}
    for column, value in TABLES[table].items():
        needed = NEEDS.get(value)
        values[column] = insert(connection, needed, tenant_id) if needed else f"'{uuid4()}'" if value == "ID" else value
    if table == "connection":
        connection.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING", [tenant_id, str(tenant_id)])
    columns = sql.SQL(", ").join(map(sql.Identifier, values))
    connection.execute(
        sql.SQL("INSERT INTO wsync.{} ({}) VALUES ({})").format(sql.Identifier(table), columns, sql.SQL(", ".join(values.values())))
    )
    return list(values.values())[1]


def rows(connection: psycopg.Connection, table: str) -> int:
    return connection.execute(sql.SQL("SELECT count(*) FROM wsync.{}").format(sql.Identifier(table))).fetchone()[0]


def test_every_table_with_a_tenant_is_in_this_list_and_under_forced_row_level_security(database) -> None:
    with connect(database.owner_url, application_name="test") as owner:
        found = owner.execute(
            "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = 'wsync'::regnamespace AND a.attname = 'tenant_id' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        ).fetchall()

    assert dict(found) == dict.fromkeys(TABLES, True)


@pytest.fixture
def filled(database):
    """One row of tenant A and one of B in every table."""
    a, b = uuid4(), uuid4()
    with connect(database.engine_url, application_name="test") as engine:
        for tenant_id in (a, b):
            for table in sorted(TABLES, key=lambda name: name == "tenant"):
                if table != "tenant":
                    insert(engine, table, tenant_id)
    return a, b


def test_without_a_tenant_the_api_sees_no_row_of_any_table(database, filled) -> None:
    with connect(database.api_url, application_name="test") as api, connect(database.engine_url, application_name="test") as engine:
        assert {table: rows(api, table) for table in TABLES} == dict.fromkeys(TABLES, 0)
        assert all(rows(engine, table) >= 2 for table in TABLES)


def test_a_connection_that_had_a_tenant_sees_nothing_after_its_transaction(database, filled) -> None:
    with connect(database.api_url, application_name="test") as api:
        with tenant_transaction(api, filled[0]):
            assert all(rows(api, table) >= 1 for table in TABLES)

        assert {table: rows(api, table) for table in TABLES} == dict.fromkeys(TABLES, 0)


def test_a_tenant_sees_its_own_rows_only(database, filled) -> None:
    with connect(database.api_url, application_name="test") as api, tenant_transaction(api, filled[0]):
        for table in TABLES:
            seen = api.execute(sql.SQL("SELECT DISTINCT tenant_id FROM wsync.{}").format(sql.Identifier(table))).fetchall()
            assert seen == [(filled[0],)], table


@pytest.mark.parametrize("table", sorted(set(TABLES) - READ_ONLY))
def test_a_tenant_cannot_write_a_row_of_another(database, table: str) -> None:
    a, b = uuid4(), uuid4()
    with connect(database.engine_url, application_name="test") as engine:
        for needed in NEEDS.values():
            insert(engine, needed, b)
        if table not in {"tenant", *NEEDS.values()}:
            insert(engine, table, b)

    with connect(database.api_url, application_name="test") as api:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), tenant_transaction(api, a):
            insert_alone(api, table, b)
        for verb in ("UPDATE wsync.{} SET tenant_id = tenant_id", "DELETE FROM wsync.{}"):
            assert changed_rows(api, a, verb, table) == 0


def insert_alone(api: psycopg.Connection, table: str, tenant_id) -> None:
    values = {"tenant_id": f"'{tenant_id}'"}
    values |= {column: f"'{uuid4()}'" if value in {"ID", *NEEDS} else value for column, value in TABLES[table].items()}
    columns = sql.SQL(", ").join(map(sql.Identifier, values))
    api.execute(
        sql.SQL("INSERT INTO wsync.{} ({}) VALUES ({})").format(sql.Identifier(table), columns, sql.SQL(", ".join(values.values())))
    )


def changed_rows(api: psycopg.Connection, tenant_id, verb: str, table: str) -> int:
    try:
        with tenant_transaction(api, tenant_id):
            return api.execute(sql.SQL(verb).format(sql.Identifier(table))).rowcount
    except psycopg.errors.InsufficientPrivilege:
        return 0  # this login never may, be it whose row it will


@pytest.mark.parametrize("table", sorted(set(TABLES) - READ_ONLY))
def test_a_tenant_can_write_its_own_rows(database, table: str) -> None:
    tenant_id = uuid4()
    with connect(database.api_url, application_name="test") as api, tenant_transaction(api, tenant_id):
        insert(api, table, tenant_id)

        assert rows(api, table) == 1


def test_a_tenant_cannot_hand_its_row_to_another(database) -> None:
    a, b = uuid4(), uuid4()
    with connect(database.api_url, application_name="test") as api:
        with tenant_transaction(api, a):
            insert(api, "run", a)

        with pytest.raises(psycopg.errors.InsufficientPrivilege), tenant_transaction(api, a):
            api.execute("UPDATE wsync.run SET tenant_id = %s", [b])


def test_a_sync_cannot_refer_to_another_tenants_connection(database) -> None:
    a, b = uuid4(), uuid4()
    with connect(database.api_url, application_name="test") as api:
        with tenant_transaction(api, b):
            stolen = insert(api, "connection", b)
        with tenant_transaction(api, a):
            own = insert(api, "connection", a)

        with pytest.raises(psycopg.errors.ForeignKeyViolation), tenant_transaction(api, a):
            api.execute(
                "INSERT INTO wsync.sync (sync_id, tenant_id, name, spec, overlap_key, source_connection_id, sink_connection_id)"
                f" VALUES (gen_random_uuid(), %s, 'x', '{{}}', gen_random_uuid(), {own}, {stolen})",
                [a],
            )


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM wsync.setting",
        "SELECT * FROM wsync.run_event_default",
        "DELETE FROM wsync.run_event",
        "UPDATE wsync.worker SET draining = true",
        "SELECT wsync.partition_make(1)",
        "SELECT wsync.partition_drop('run_event', '2999-01-01')",
        "TRUNCATE wsync.run",
        "CREATE TABLE wsync.mine (x int)",
        "CREATE TABLE public.mine (x int)",
        "SET ROLE wsync_engine",
    ],
)
def test_the_api_is_refused_what_is_the_engines(database, statement: str) -> None:
    with connect(database.api_url, application_name="test") as api, pytest.raises(psycopg.errors.InsufficientPrivilege):
        api.execute(statement)


def test_the_api_reads_the_settings_it_needs_and_no_others(database) -> None:
    with connect(database.engine_url, application_name="test") as engine:
        engine.execute("INSERT INTO wsync.setting (key, value) VALUES ('retention', '1')")

    with connect(database.api_url, application_name="test") as api:
        read = [api.execute("SELECT wsync.setting_value(%s)", [key]).fetchone()[0] for key in ("shards", "retention")]

    assert read == [1, None]
