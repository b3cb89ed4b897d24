"""Two schedulers and two workers on servers of their own, dozens of syncs, and what may be done to them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import psycopg
from redis import Redis

from wsync_engine.embedded.servers import EmbeddedServers
from wsync_engine.index.due_index import Index
from wsync_engine.index.due_index import connect as connect_index
from wsync_engine.model.declaration import ConnectionSpec, Declaration, SyncDeclaration
from wsync_engine.model.sync import Guards, Mode, SyncSpec
from wsync_engine.plugins import PluginHost
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.services.apply import apply
from wsync_engine.state.database import connect
from wsync_engine.state.tenants import tenant_named

from .chaos_endpoint import Endpoint
from .chaos_lines import Line, Lines

LEASE_S = 3.0
TABLES, STREAMS = 8, 6
ROWS = 60
WRONG_CLOCK = Path(__file__).with_name("wrong_clock")
KEY = base64.b64encode(b"k" * 32).decode()
ROLES = ("scheduler", "scheduler", "worker", "worker")
POSTGRES = {"fsync": "off", "max_connections": "200", "deadlock_timeout": "200ms"}
SCHEMA = """
CREATE SEQUENCE version;
CREATE TABLE applied (sink text, op text, id bigint, v bigint, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO applied VALUES (TG_TABLE_NAME, TG_OP, coalesce(NEW.id, OLD.id), coalesce(NEW.v, OLD.v)); RETURN NULL; END $$;
"""


@dataclass(slots=True)
class Role:
    """One process of the engine, and its successors, with lines of its own to Postgres and Redis."""

    name: str
    postgres: Line
    redis: Line
    process: subprocess.Popen[bytes]


class World:
    """`start` brings everything up, `close` ends every process that was started, by its id."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self.folder, self.endpoint = folder, endpoint
        self.servers = EmbeddedServers.start(folder / "data", postgres_settings=POSTGRES)
        self.ends = self.servers.endpoints
        self.syncs = [f"table{n}" for n in range(TABLES)] + [f"stream{n}" for n in range(STREAMS)]
        self._make_tables()
        self.lines = Lines()
        self.warehouse_line = self.lines.to(_port(self.ends.admin_url))
        os.environ["HERE_URL"] = _through(self.warehouse_line, self.ends.admin_url)
        self._apply()
        self.index = Index(connect_index(self.ends.redis_url, timeout_s=0.5))
        self.seen: dict[tuple[int, float], psutil.Process] = {}
        self.log = (folder / "log").open("ab")
        self.roles = [self._new_role(name) for name in ROLES]

    def _make_tables(self) -> None:
        with psycopg.connect(self.ends.admin_url, autocommit=True) as admin:
            admin.execute(SCHEMA)
            for name in self.syncs:
                admin.execute(f"CREATE TABLE from_{name} (id bigint PRIMARY KEY, v bigint NOT NULL DEFAULT nextval('version'))")
                admin.execute(f"INSERT INTO from_{name} SELECT n FROM generate_series(1, {ROWS}) n")
            for name in self.syncs[:TABLES]:
                admin.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, v bigint)")
                admin.execute(f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION note()")

    def _apply(self) -> None:
        everything = Guards(max_delete_percent=None, allow_empty=True)
        specs = [
            SyncSpec(
                name=name,
                source="here",
                sink="here" if name.startswith("table") else "there",
                query=f"SELECT id, v FROM from_{name}",
                key=("id",),
                stream=f"public.{name}" if name.startswith("table") else name,
                mode=Mode.MIRROR,
                guards=everything,
            )
            for name in self.syncs
        ]
        http = {"url": self.endpoint.url + "/{stream}", "op_field": "op", "limits": {"max_rows": 5}}
        declaration = Declaration(
            tenant="acme",
            connections=(
                ConnectionSpec(name="here", plugin="postgres", config={"url": "env:HERE_URL"}),
                ConnectionSpec(name="there", plugin="http", config=http),
            ),
            syncs=tuple(SyncDeclaration(spec=spec) for spec in specs),
        )
        with self.api() as api:
            apply(api, declaration, host=PluginHost.load(), keyring=Keyring.from_text(KEY), actor="test")
            self.tenant_id = tenant_named(api, "acme")
        self.sync_ids: dict[str, UUID] = dict(self.rows("SELECT name, sync_id FROM wsync.sync"))

    # -- processes

    def _new_role(self, name: str) -> Role:
        postgres, redis = (self.lines.to(_port(url)) for url in (self.ends.admin_url, self.ends.redis_url))
        return Role(name=name, postgres=postgres, redis=redis, process=self._start(name, postgres, redis))

    def _start(self, name: str, postgres: Line, redis: Line, *, clock_offset_s: float = 0.0) -> subprocess.Popen[bytes]:
        told: dict[str, Any] = {
            "role": name,
            "engine_url": _through(postgres, self.ends.database_url_engine),
            "redis_url": _through(redis, self.ends.redis_url),
            "key": KEY,
            "fire_lease_ms": 3_000,
            "restart_grace_s": LEASE_S + 1,
            "options": {
                "api_url": _through(postgres, self.ends.database_url_api),
                "storage_url": (self.folder / "storage").as_uri(),
                "slots": 3,
                "lease_s": LEASE_S,
                "stop_grace_s": 5.0,
                "drain_timeout_s": 20.0,
                "crash_backoff_s": 0.1,
            },
        }
        command = [sys.executable, str(Path(__file__).with_name("role_process.py")), json.dumps(told)]
        wrong = {"PYTHONPATH": str(WRONG_CLOCK), "CLOCK_OFFSET_S": str(clock_offset_s), "CLOCK_JUMP_AFTER_S": "3"} if clock_offset_s else {}
        process = subprocess.Popen(command, env={**os.environ, **wrong}, stdout=self.log, stderr=self.log, start_new_session=True)
        self.look(process.pid)
        return process

    def look(self, pid: int) -> list[psutil.Process]:
        """A process and all that it started, remembered for the end."""
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            self.seen |= {(x.pid, x.create_time()): x for x in family}
        except psutil.NoSuchProcess:
            return []
        return family

    def children(self, role: Role) -> list[psutil.Process]:
        """The task children of a worker."""
        family = self.look(role.process.pid)
        servers = [x for x in family if x.pid != role.process.pid and x.ppid() == role.process.pid]
        return [x for x in family if x.ppid() in {server.pid for server in servers}]

    def kill(self, role: Role, *, clock_offset_s: float = 0.0) -> None:
        """kill -9, and a new process in its place; its wall clock is right at first, then wrong by `clock_offset_s`."""
        self.look(role.process.pid)
        role.process.kill()
        role.process.wait()
        role.process = self._start(role.name, role.postgres, role.redis, clock_offset_s=clock_offset_s)

    def signal(self, process: psutil.Process | subprocess.Popen[bytes], number: int) -> None:
        """Send a signal to a process that may be gone."""
        if isinstance(process, psutil.Process) and not process.is_running():  # its id may be another's
            return
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def revive(self) -> None:
        """Nothing stands still or is cut off, and every process that ended has a successor."""
        self.warehouse_line.restore()
        for role in self.roles:
            role.postgres.restore()
            role.redis.restore()
            for process in self.look(role.process.pid):
                self.signal(process, signal.SIGCONT)
            if role.process.poll() is not None:
                role.process = self._start(role.name, role.postgres, role.redis)

    def drain(self) -> None:
        """SIGTERM to all; returns when they have ended."""
        for role in self.roles:
            self.look(role.process.pid)
            role.process.terminate()
        for role in self.roles:
            assert role.process.wait(60) == 0, self.log_tail()

    def left_over(self) -> list[int]:
        """Processes that were started and are still there."""
        gone, alive = psutil.wait_procs(list(self.seen.values()), timeout=5)
        del gone
        return [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    # -- servers

    def restart_postgres(self) -> None:
        """Without a shutdown: no connection is left, and what was committed asynchronously may be gone."""
        self.servers._postgres._control("-w", "-m", "immediate", "restart")

    def restart_valkey(self) -> None:
        """kill -9; its successor on the same port holds nothing."""
        valkey, port = self.servers._valkey, _port(self.ends.redis_url)
        with self.redis() as client:
            process = psutil.Process(client.info("server")["process_id"])  # type: ignore[index]
        process.kill()
        psutil.wait_procs([process], timeout=5)
        valkey._spawn(port)  # once: a second one would write its id over the first one's before it finds the port taken
        self.wait_for(lambda: valkey._answers(port), "Valkey does not come back", timeout_s=20)

    def api(self) -> psycopg.Connection[Any]:
        return connect(self.ends.database_url_api, application_name="test")

    def redis(self) -> Redis:
        return Redis.from_url(self.ends.redis_url)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """As the engine's login, which sees every tenant; waits for a Postgres that is being restarted."""
        return self.ask(self.ends.database_url_engine, query, *values)

    def ask(self, url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
        until_s = time.monotonic() + 30
        while True:
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    return connection.execute(query.encode(), values).fetchall()
            except psycopg.OperationalError:
                assert time.monotonic() < until_s, "Postgres does not come back"
                threading.Event().wait(0.1)

    def warehouse(self, query: str) -> list[tuple[Any, ...]]:
        return self.ask(self.ends.admin_url, query)

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
        until_s = time.monotonic() + timeout_s
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < until_s, f"{what}\n{self.log_tail()}\n{self.standing()}"
            pause.wait(0.1)

    def standing(self) -> str:
        """What is open, and which destinations are left alone."""
        runs = self.rows(
            "SELECT y.name, r.state::text, r.exclusive, count(*), min(r.ready_at - wsync.clock())::text, max(r.attempt), max(r.error)"
            " FROM wsync.run r JOIN wsync.sync y USING (sync_id)"
            " WHERE r.state IN ('queued', 'running', 'cancelling', 'buffered', 'blocked') GROUP BY 1, 2, 3 ORDER BY 1, 2"
        )
        breakers = self.rows("SELECT state, failures, openings, reason, (retry_at - wsync.clock())::text FROM wsync.breaker")
        return "\n".join(str(row) for row in [*runs, *breakers])

    def log_tail(self) -> str:
        return (self.folder / "log").read_text()[-6_000:]

    def close(self) -> None:
        for role in self.roles:
            self.look(role.process.pid)
            role.process.kill()
            role.process.wait()
        for process in self.seen.values():
            if process.is_running():
                self.signal(process, signal.SIGKILL)
        self.log.close()
        self.lines.close()
        self.servers.leave()


def _port(url: str) -> int:
    return int(urlsplit(url).port or 0)


def _through(line: Line, url: str) -> str:
    """The address of a server by way of a line to it."""
    return url.replace(f":{_port(url)}/", f":{line.port}/")
