"""kill -9 of a scheduler and of a worker with ten runs in hand, in each phase of a run, with real processes and the real connectors."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from wsync_engine.model.declaration import ConnectionSpec, Declaration, SyncDeclaration
from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.plugins import PluginHost
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.services.apply import apply
from wsync_engine.services.syncs import trigger_sync
from wsync_engine.state.database import connect
from wsync_engine.state.tenants import tenant_named

SYNCS = 10
ROWS = 400
LEASE_S = 3.0
KEY = base64.b64encode(b"k" * 32).decode()
# The step a run stands at when it is killed, and the last event that its phase leaves.
PHASES = {
    "plan": "plan.started",
    "extract": "plan.stored",
    "diff": "extract.done",
    "after_write": "delivery.started",
    "before_finish": "delivery.started",
}


class World:
    """Ten syncs of one warehouse table, each into a table of its own that notes every row it is brought."""

    def __init__(self, database: Any, redis_url: str, admin_url: str, folder: Path) -> None:
        self.database, self.redis_url, self.folder = database, redis_url, folder
        self.url = admin_url.rsplit("/", 1)[0] + "/" + database.engine_url.rsplit("/", 1)[1]
        self.admin = psycopg.connect(self.url, autocommit=True)
        self.admin.execute(f"CREATE TABLE customer AS SELECT n AS id, 'Zoë ' || n AS name FROM generate_series(1, {ROWS}) n")
        self.admin.execute("CREATE TABLE applied (sink text, id bigint)")
        self.admin.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN INSERT INTO applied VALUES (TG_TABLE_NAME, coalesce(NEW.id, OLD.id)); RETURN NULL; END'"
        )
        for number in range(SYNCS):
            self.admin.execute(f"CREATE TABLE sink{number} (id bigint PRIMARY KEY, name text)")
            self.admin.execute(f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON sink{number} FOR EACH ROW EXECUTE FUNCTION note()")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.api = connect(database.api_url, application_name="test")
        self._apply()

    def _apply(self) -> None:
        specs = [
            SyncSpec(
                name=f"sync{number}",
                source="here",
                sink="here",
                query="SELECT id, name FROM customer",
                key=("id",),
                stream=f"public.sink{number}",
                mode=Mode.MIRROR,
                split_by="id",
            )
            for number in range(SYNCS)
        ]
        declaration = Declaration(
            tenant="acme",
            connections=(ConnectionSpec(name="here", plugin="postgres", config={"url": "env:HERE_URL"}),),
            syncs=tuple(SyncDeclaration(spec=spec) for spec in specs),
        )
        apply(self.api, declaration, host=PluginHost.load(), keyring=Keyring.from_text(KEY), actor="test")
        self.tenant_id = tenant_named(self.api, "acme")

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        urls = {"OWNER": self.database.owner_url, "ENGINE": self.database.engine_url, "API": self.database.api_url}
        settings = {f"WSYNC_DATABASE_URL_{role}": url for role, url in urls.items()}
        settings |= {"WSYNC_REDIS_URL": self.redis_url, "WSYNC_DATA_DIR": str(self.folder / "data")}
        return self._start([sys.executable, "-m", "wsync_engine.cli", "scheduler"], settings)

    def stop_at(self, step: str | None) -> None:
        (self.folder / "step").write_text(step or "")

    def start_worker(self, *, slots: int = 2) -> subprocess.Popen[bytes]:
        told = {
            "options": {
                "api_url": self.database.api_url,
                "storage_url": (self.folder / "storage").as_uri(),
                "slots": slots,
                "lease_s": LEASE_S,
            },
            "engine_url": self.database.engine_url,
            "redis_url": self.redis_url,
            "key": KEY,
            "folder": str(self.folder),
        }
        return self._start([sys.executable, str(Path(__file__).with_name("worker_that_stops.py")), json.dumps(told)], {})

    def _start(self, command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    def trigger_all(self) -> None:
        for number in range(SYNCS):
            assert trigger_sync(self.api, self.tenant_id, f"sync{number}", actor="test").is_new

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        until_s = time.monotonic() + timeout_s
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < until_s, (self.folder / "log").read_text()[-4000:]
            pause.wait(0.05)

    def wait_until_all_succeeded(self) -> None:
        self.wait_for(lambda: self.rows("SELECT count(*) FROM wsync.run WHERE state <> 'succeeded'") == [(0,)])

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.admin.execute(query, values).fetchall()  # type: ignore[arg-type]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.api.close()
        self.admin.close()


@pytest.fixture
def world(database: Any, redis_url: str, servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    name = database.engine_url.rsplit("/", 1)[1]
    monkeypatch.setenv("HERE_URL", servers.endpoints.admin_url.rsplit("/", 1)[0] + f"/{name}")
    made = World(database, redis_url, servers.endpoints.admin_url, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("step", PHASES)
def test_ten_runs_killed_in_a_phase_lose_and_double_nothing(world: World, step: str) -> None:
    scheduler = world.start_scheduler()
    worker = world.start_worker(slots=SYNCS)
    world.trigger_all()
    world.wait_until_all_succeeded()
    world.admin.execute("TRUNCATE applied")
    world.admin.execute("UPDATE customer SET name = name || '!' WHERE id <= 50")
    world.admin.execute("DELETE FROM customer WHERE id > 380")
    world.admin.execute("INSERT INTO customer VALUES (1001, 'new'), (1002, NULL)")
    world.stop_at(step)
    world.trigger_all()
    world.wait_for(lambda: len(list(world.folder.glob(f"{step}.*"))) == SYNCS)

    worker.kill()
    scheduler.kill()
    world.stop_at(None)
    last_events = world.rows(
        "SELECT DISTINCT ON (run_id) kind FROM wsync.run_event JOIN wsync.run USING (run_id) WHERE state = 'running' ORDER BY run_id, at DESC"
    )
    world.start_scheduler()
    world.start_worker()
    world.wait_until_all_succeeded()

    assert last_events == [(PHASES[step],)] * SYNCS
    assert world.rows("SELECT count(*), min(epoch) FROM wsync.run WHERE epoch > 1") == [(SYNCS, 2)]
    for number in range(SYNCS):
        assert world.rows(f"SELECT id, name FROM customer EXCEPT SELECT id, name FROM sink{number}") == []
        assert world.rows(f"SELECT id, name FROM sink{number} EXCEPT SELECT id, name FROM customer") == []
    assert world.rows("SELECT sink, count(*), count(DISTINCT id) FROM applied GROUP BY sink HAVING count(*) <> 72") == []
    assert world.rows("SELECT count(*) FROM applied") == [(72 * SYNCS,)]
