"""What a worker reads to hand a run to a child."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.runs import claim_runs
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state.database import connect
from wsync_engine.worker.messages import Assignment
from wsync_engine.worker.store import Presence, load_assignments, show_presence
from wsync_sdk import ConfigError


def load(world: Any, keyring: Keyring) -> Assignment:
    with connect(world.database.engine_url, application_name="test") as conn:
        (claimed,) = claim_runs(conn, [world.add_run()], uuid7())
        found = load_assignments(conn, [claimed], keyring, write_until_s=0.0, call_timeout_s=9.0, rows_per_partition=1_000)[claimed.run_id]
        if isinstance(found, Exception):
            raise found
        return found


def test_an_assignment_brings_the_secrets_its_connections_refer_to_and_hides_them(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_PASSWORD", "opensesame")
    world.add_sync()

    assignment = load(world, Keyring.from_text(world.key))

    assert assignment.source.secret_by_reference == {"env:WAREHOUSE_PASSWORD": "opensesame"}
    assert "opensesame" not in repr(assignment)
    assert assignment.tenant_key not in repr(assignment)


def claimed_by_an_older_worker(world: Any, run_id: Any) -> list[Any]:
    """An engine of the first schema names no generation, and claims by this statement, too."""
    worker_id = uuid7()
    world.engine.execute("INSERT INTO wsync.worker (worker_id, slots, running) VALUES (%s, 2, 0)", (worker_id,))
    with connect(world.database.engine_url, application_name="test") as conn:
        return claim_runs(conn, [run_id], worker_id)


def test_an_older_worker_claims_what_it_understands(world: Any) -> None:
    world.add_sync()

    assert len(claimed_by_an_older_worker(world, world.add_run())) == 1


@pytest.mark.parametrize("what", ["queue = 1", "params = '{\"floor\": 5}'"])
def test_an_older_worker_gets_no_run_that_it_would_execute_wrongly(world: Any, what: str) -> None:
    world.add_sync()
    run_id = world.add_run()
    world.engine.execute(f"UPDATE wsync.run SET {what} WHERE run_id = %s", (run_id,))

    assert claimed_by_an_older_worker(world, run_id) == []

    presence = Presence(worker_id=uuid7(), host="h", pid=1, version="2", slots=1, running=0, is_draining=False, queues=[0, 1], refusal=None)
    with connect(world.database.engine_url, application_name="test") as conn:
        show_presence(conn, presence)
        assert [run.epoch for run in claim_runs(conn, [run_id], presence.worker_id)] == [1]


def test_a_connections_stored_secret_is_decrypted_with_its_tenants_key(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_PASSWORD", "outer")
    keyring = Keyring.from_text(world.key)
    world.add_sync()
    stored = keyring.tenant(world.tenant_id).encrypt(json.dumps({"env:WAREHOUSE_PASSWORD": "stored"}).encode())
    world.engine.execute("UPDATE wsync.connection SET secrets = %s", (stored,))

    assert load(world, keyring).sink.secret_by_reference == {"env:WAREHOUSE_PASSWORD": "stored"}


def test_a_secret_of_another_key_is_refused(world: Any) -> None:
    world.add_sync()
    stored = Keyring([bytes(32)]).tenant(world.tenant_id).encrypt(b"{}")
    world.engine.execute("UPDATE wsync.connection SET secrets = %s", (stored,))

    with pytest.raises(ConfigError):
        load(world, Keyring.from_text(world.key))


def test_the_installations_own_settings_are_no_secrets_of_a_tenant(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSYNC_SECRET_KEY", world.key)
    world.add_sync()
    world.engine.execute("UPDATE wsync.connection SET config = %s", (Jsonb({"headers": ["env:WSYNC_SECRET_KEY"]}),))

    assert load(world, Keyring.from_text(world.key)).sink.secret_by_reference == {}
