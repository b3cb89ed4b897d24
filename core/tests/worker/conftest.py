from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from wsync_engine.index.due_index import Index, connect
from wsync_engine.model.declaration import sync_spec_to_json
from wsync_engine.model.ids import uuid7
from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.scheduler.rows import ready_run
from wsync_engine.state import database as state

KEY = base64.b64encode(bytes(range(32))).decode()
LEASE_S = 3.0
HERE = Path(__file__).parent


class World:
    """A sync, a scheduler that is moved by hand, and workers as processes."""

    def __init__(self, database: Any, redis_url: str, folder: Path) -> None:
        self.database = database
        self.redis_url = redis_url
        self.folder = folder
        self.engine = psycopg.connect(database.engine_url, autocommit=True, row_factory=dict_row)
        self.key = KEY
        self.client = client = connect(redis_url)
        self.index = Index(client)
        self.scheduler = Scheduler(
            indexes=[self.index],
            wakes=Scheduler.wakes_of(client),
            connect=lambda: state.connect(database.engine_url, application_name="scheduler"),
            restart_grace_s=0,
        )
        self.scheduler.rebuild()
        self.tenant_id, self.sync_id, self.schedule_id, self.sink_id = uuid7(), uuid7(), uuid7(), uuid7()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.engine.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, 'acme')", (self.tenant_id,))

    def add_sync(self, rows: int = 40, failure: str = "", splits: int = 1, calls_per_s: float | None = None, **schedule: Any) -> None:
        source, sink = uuid7(), self.sink_id
        for connection_id, name in ((source, "w"), (sink, "s")):
            config = {
                "folder": str(self.folder),
                "rows": rows,
                "failure": failure,
                "calls_per_s": calls_per_s,
                "splits": splits,
                "password": "env:WAREHOUSE_PASSWORD",
            }
            self.engine.execute(
                "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin, config) VALUES (%s, %s, %s, 'test', %s)",
                (connection_id, self.tenant_id, name, Jsonb(config)),
            )
        spec = SyncSpec(name="people", source="w", sink="s", query="SELECT", key=("id",), stream="people", mode=Mode.MIRROR)
        self.engine.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " VALUES (%s, %s, 'people', %s, %s, %s, %s)",
            (self.sync_id, self.tenant_id, source, sink, Jsonb(sync_spec_to_json(spec)), self.sync_id),
        )
        timing = {"max_attempts": 3, "attempt_timeout_ms": 60_000, "stall_ms": 60_000, "overlap": "skip", **schedule}
        self.engine.execute(
            "INSERT INTO wsync.schedule (schedule_id, tenant_id, name, sync_id, connection_id, credential_id, overlap_key, kind, cron, zone,"
            " max_attempts, backoff_base_ms, attempt_timeout_ms, stall_ms, overlap)"
            " VALUES (%s, %s, 'people', %s, %s, %s, %s, 'cron', '0 0 1 1 *', 'UTC', %s, 20, %s, %s, %s)",
            (
                self.schedule_id,
                self.tenant_id,
                self.sync_id,
                sink,
                sink,
                self.sync_id,
                timing["max_attempts"],
                timing["attempt_timeout_ms"],
                timing["stall_ms"],
                timing["overlap"],
            ),
        )
        self.engine.execute(
            "INSERT INTO wsync.schedule_clock (schedule_id, tenant_id, shard) VALUES (%s, %s, 0)", (self.schedule_id, self.tenant_id)
        )

    def copy_sync(self) -> UUID:
        """Another sync over the same connections."""
        sync_id = uuid7()
        self.engine.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " SELECT %s, tenant_id, 'copy', source_connection_id, sink_connection_id, spec, %s FROM wsync.sync WHERE sync_id = %s",
            (sync_id, sync_id, self.sync_id),
        )
        return sync_id

    def add_run(
        self, *, is_announced: bool = True, is_dry: bool = False, sync_id: UUID | None = None, priority: int = 1, queue: int = 0
    ) -> UUID:
        run_id = uuid7()
        sync_id = sync_id or self.sync_id
        row = self.engine.execute(
            "INSERT INTO wsync.run (run_id, tenant_id, shard, schedule_id, sync_id, connection_id, credential_id, overlap_key, trigger,"
            " nominal_at, due_at, ready_at, exclusive, state, dry_run, priority, queue)"
            " VALUES (%s, %s, 0, %s, %s, %s, %s, %s, 'manual', now(), now(), now(), %s, 'queued', %s, %s, %s)"
            " RETURNING run_id, tenant_id, queue, sync_id, connection_id, credential_id, priority, due_at, ready_at",
            (run_id, self.tenant_id, self.schedule_id, sync_id, uuid7(), self.sink_id, sync_id, not is_dry, is_dry, priority, queue),
        ).fetchone()
        assert row is not None
        if is_announced:
            self.index.commit_fire([], [ready_run(row)])
        return run_id

    def start_worker(
        self, *, is_host_used: bool = False, task_cgroup: str = "", group_bytes: int = 0, **options: Any
    ) -> subprocess.Popen[bytes]:
        settings = {
            "api_url": self.database.api_url,
            "storage_url": (self.folder / "storage").as_uri(),
            "slots": 1,
            "lease_s": LEASE_S,
            "crash_backoff_s": 0.01,
            **options,
        }
        told = {
            "engine_url": self.database.engine_url,
            "redis_url": self.redis_url,
            "key": KEY,
            "options": settings,
            "is_host_used": is_host_used,
            "task_cgroup": task_cgroup,
            "group_bytes": group_bytes,
        }
        secrets = {
            "WSYNC_DATABASE_URL_ENGINE": "postgresql://hidden",
            "WSYNC_DATABASE_URL_OWNER": "postgresql://hidden",
            "WSYNC_SECRET_KEY": KEY,
        }
        log = (self.folder / f"worker{len(self.workers)}.log").open("wb")
        with log:
            worker = subprocess.Popen(
                [sys.executable, str(HERE / "worker_process.py"), json.dumps(told)],
                env={**os.environ, **secrets, "WAREHOUSE_PASSWORD": "opensesame"},
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("worker*.log")))

    def run_row(self, run_id: UUID) -> dict[str, Any]:
        row = self.engine.execute("SELECT * FROM wsync.run WHERE run_id = %s", (run_id,)).fetchone()
        assert row is not None
        return row

    def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait, with a scheduler at work."""
        give_up_at_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up_at_s, self.logs()[-4000:]
            self.scheduler.step()
            self.scheduler.reap()
            time.sleep(0.02)

    def until_state(self, run_id: UUID, *states: str) -> dict[str, Any]:
        self.until(lambda: self.run_row(run_id)["state"] in states)
        return self.run_row(run_id)

    def shut(self, gate: str) -> None:
        (self.folder / f"{gate}.shut").touch()
        (self.folder / f"{gate}.reached").unlink(missing_ok=True)

    def open(self, gate: str) -> None:
        (self.folder / f"{gate}.shut").unlink(missing_ok=True)

    def until_reached(self, gate: str) -> int:
        """The child stands at the gate; its process id."""
        self.until((self.folder / f"{gate}.reached").exists)
        return int((self.folder / "pid").read_text())

    def standing(self, gate: str) -> set[int]:
        """Processes that have stood at the gate."""
        return {int(path.suffix[1:]) for path in self.folder.glob(f"{gate}.at.*")}

    def until_asked_to_make_room(self) -> None:
        """The supervisor has told a child, which stands at a gate, and the child's thread had the time to hear it."""
        self.until(lambda: "run.makes_room" in self.logs())
        time.sleep(0.5)

    def sent(self) -> list[dict[str, Any]]:
        path = self.folder / "sent"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
            worker.wait(10)
        self.scheduler.close()
        self.engine.close()


@pytest.fixture
def world(database: Any, redis_url: str, tmp_path: Path) -> Iterator[World]:
    made = World(database, redis_url, tmp_path)
    yield made
    made.close()
