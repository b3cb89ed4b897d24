"""One sync from a Postgres table, its state store and its storage: runs are made and executed through the real connectors, without a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.model.ids import uuid7
from wsync_engine.model.sync import SyncSpec
from wsync_engine.pipeline.context import Cancelled, RunContext, no_faults
from wsync_engine.pipeline.deliver import RetryPolicy
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.job import Job, Outcome
from wsync_engine.pipeline.run import execute
from wsync_engine.plugins import PluginHost
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state.books import RunBooks
from wsync_engine.state.holding import Claim
from wsync_engine.storage import LocalStorage
from wsync_sdk import Sink

WORKER = UUID(int=1)


class Crash(BaseException):
    """The process dies here."""


class OneSync:
    """A warehouse and a state store in one database; subclasses fill the warehouse and open the sink."""

    sink_plugin: str
    spec: SyncSpec

    def __init__(self, database: Any, admin_url: str, folder: Path) -> None:
        self.url = admin_url.rsplit("/", 1)[0] + "/" + database.engine_url.rsplit("/", 1)[1]
        self.admin = psycopg.connect(self.url, autocommit=True)
        self.host = PluginHost.load()
        self.tenant_id, self.sync_id = uuid7(), uuid7()
        self.engine = psycopg.connect(database.engine_url, autocommit=True)
        self.api = psycopg.connect(database.api_url, autocommit=True)
        self.storage = LocalStorage(root=folder, tenant_id=str(self.tenant_id))
        self.cipher = Keyring.from_file(folder / "secret.key").tenant(self.tenant_id)
        connection_id = uuid7()
        self.retry = RetryPolicy(first_wait_s=0.01, max_wait_s=0.02)
        self.call_timeout_s = 9.0
        self.engine.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, 'acme')", (self.tenant_id,))
        self.engine.execute(
            "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin) VALUES (%s, %s, 'c', %s)",
            (connection_id, self.tenant_id, self.sink_plugin),
        )
        self.engine.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " VALUES (%s, %s, 'people', %s, %s, '{}', %s)",
            (self.sync_id, self.tenant_id, connection_id, connection_id, self.sync_id),
        )

    def open_sink(self) -> AbstractContextManager[Sink]:
        raise NotImplementedError

    def close(self) -> None:
        for connection in (self.admin, self.engine, self.api):
            connection.close()

    def new_run(self) -> UUID:
        run_id = uuid7()
        self.engine.execute(
            "INSERT INTO wsync.run (run_id, tenant_id, shard, sync_id, connection_id, credential_id, overlap_key, trigger, nominal_at,"
            " due_at, ready_at, priority, exclusive, state)"
            " VALUES (%s, %s, 0, %s, %s, %s, %s, 'manual', now(), now(), now(), 1, true, 'queued')",
            (run_id, self.tenant_id, self.sync_id, uuid7(), uuid7(), self.sync_id),
        )
        return run_id

    def attempt(self, run_id: UUID, faults: Callable[[str], None] = no_faults) -> Outcome:
        """One holder's try, with connectors of its own."""
        row = self.engine.execute(
            "UPDATE wsync.run SET state = 'running', epoch = epoch + 1, worker_id = %s WHERE run_id = %s RETURNING epoch", (WORKER, run_id)
        ).fetchone()
        assert row is not None
        with self._job(run_id, row[0], faults) as job:
            return execute(job)

    def end(self, run_id: UUID) -> Outcome:
        """What a child does when somebody cancelled the run."""
        row = self.engine.execute("SELECT epoch FROM wsync.run WHERE run_id = %s", (run_id,)).fetchone()
        assert row is not None
        with self._job(run_id, row[0], no_faults) as job:
            return conclude(job, Cancelled("cancelled", next_step="nothing"), outcome="cancelled")

    @contextmanager
    def _job(self, run_id: UUID, epoch: int, faults: Callable[[str], None]) -> Iterator[Job]:
        with self.host.open_source("postgres", {"url": "env:WAREHOUSE_URL"}, lambda _: self.url) as source, self.open_sink() as sink:
            yield Job(
                sync_id=self.sync_id,
                sync_name="people",
                spec=self.spec,
                parameters={},
                source=source,
                sink=sink,
                destination=f"c/{self.sink_plugin}",
                books=RunBooks(
                    self.api,
                    tenant_id=self.tenant_id,
                    run_id=run_id,
                    claim=Claim(holder=run_id, epoch=epoch, worker_id=WORKER),
                ),
                storage=self.storage,
                cipher=self.cipher,
                context=RunContext(tag="test", faults=faults),
                seed="seed",
                retry=self.retry,
                call_timeout_s=self.call_timeout_s,
            )

    def run(self) -> Outcome:
        return self.attempt(self.new_run())
