"""Redis flushed and Postgres restarted at once, in the middle of a run: it heals by itself, and nothing is lost or doubled."""

from __future__ import annotations

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
from redis import Redis

from wsync_engine.embedded.servers import EmbeddedServers

ROWS = 30_000
FILE = """\
version: 1
tenant: acme
connections:
  here: {plugin: postgres, config: {url: env:HERE_URL}}
syncs:
  customers:
    source: here
    query: SELECT id, name, slowly(id) AS pause FROM customer
    key: id
    sink: here
    stream: public.people
    mode: mirror
    mapping: {id: id, name: name}
"""
COMMAND = [sys.executable, "-m", "wsync_engine.cli"]


class World:
    """Servers of the test's own, which it may restart, with a scheduler and a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers = EmbeddedServers.start(folder / "data", postgres_settings={"fsync": "off"})
        ends = self.servers.endpoints
        self.url = ends.admin_url
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
        self.environment = {**clean, "WSYNC_DATA_DIR": str(folder / "data"), "HERE_URL": self.url}
        with self.connected() as admin:
            admin.execute(f"CREATE TABLE customer AS SELECT n AS id, 'Zoë ' || n AS name FROM generate_series(1, {ROWS}) n")
            admin.execute("CREATE TABLE people (id int PRIMARY KEY, name text)")
            admin.execute("CREATE TABLE applied (id int)")
            admin.execute("CREATE TABLE brake (at text)")
            # Slow where the test says so: at each thousandth row read, or at each statement that writes.
            admin.execute(
                "CREATE FUNCTION slowly(id int) RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN IF id % 1000 = 0 AND EXISTS"
                " (SELECT FROM brake WHERE at = ''read'') THEN PERFORM pg_sleep(0.2); END IF; RETURN 0; END'"
            )
            admin.execute(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN INSERT INTO applied VALUES (coalesce(NEW.id, OLD.id)); RETURN NULL; END'"
            )
            admin.execute(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF EXISTS"
                " (SELECT FROM brake WHERE at = ''write'') THEN PERFORM pg_sleep(1); END IF; RETURN NULL; END'"
            )
            admin.execute("CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON people FOR EACH ROW EXECUTE FUNCTION note()")
            admin.execute("CREATE TRIGGER wait AFTER INSERT ON people FOR EACH STATEMENT EXECUTE FUNCTION wait()")
        (folder / "wsync.yaml").write_text(FILE)
        self.command("apply", "wsync.yaml")
        self.log = (folder / "log").open("wb")
        self.processes = [self._start(role) for role in ("scheduler", "worker")]

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*COMMAND, role], env=self.environment, stdout=self.log, stderr=self.log, start_new_session=True)

    def connected(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *words], env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr + (self.folder / "log").read_text()
        return done

    def slow_down(self, at: str | None) -> None:
        with self.connected() as admin:
            admin.execute("TRUNCATE brake")
            admin.execute("INSERT INTO brake SELECT %s WHERE %s::text IS NOT NULL", (at, at))

    def count(self, query: str) -> int:
        with psycopg.connect(self.servers.endpoints.database_url_engine) as engine:
            row = engine.execute(query.encode()).fetchone()
            assert row is not None
            return int(row[0])

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        until_s = time.monotonic() + timeout_s
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < until_s, (self.folder / "log").read_text()[-4000:]
            pause.wait(0.05)

    def strike(self) -> None:
        """No state of Redis is left, and no connection to Postgres."""
        with Redis.from_url(self.servers.endpoints.redis_url) as client:
            client.flushall()
        self.servers._postgres._control("-w", "-m", "immediate", "restart")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.log.close()
        self.servers.leave()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


REACHED = {
    "read": "SELECT count(*) FROM wsync.run WHERE state = 'running' AND phase = 'extract'",
    "write": "SELECT count(*) FROM wsync.chunk",
}


@pytest.mark.parametrize("phase", REACHED)
def test_a_run_outlives_a_flushed_redis_and_a_restarted_postgres(world: World, phase: str) -> None:
    world.slow_down(phase)
    run_id = world.command("sync", "run", "customers").stdout.strip()
    world.wait_for(lambda: world.count(REACHED[phase]) > 0)

    world.strike()
    world.slow_down(None)
    watched = world.command("runs", "watch", run_id, "--json")

    assert '"state": "succeeded"' in watched.stdout
    with world.connected() as admin:
        assert admin.execute("SELECT count(*) FROM (TABLE customer EXCEPT TABLE people) x").fetchone() == (0,)
        assert admin.execute("SELECT count(*), count(DISTINCT id) FROM applied").fetchone() == (ROWS, ROWS)
