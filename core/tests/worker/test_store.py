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
from wsync_engine.worker.store import load_assignments
from wsync_sdk import ConfigError


def load(world: Any, keyring: Keyring) -> Assignment:
    with connect(world.database.engine_url, application_name="test") as conn:
        (claimed,) = claim_runs(conn, [world.add_run()], uuid7())
        found = load_assignments(conn, [claimed], keyring, write_until_s=0.0, call_timeout_s=9.0)[claimed.run_id]
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
