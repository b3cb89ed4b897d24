"""The demo's course: load, apply, start scheduler and worker as their own processes, watch two scheduled runs into a table and two runs into an HTTP
endpoint, compare both with the query."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from wsync_engine.demo.endpoint import Endpoint
from wsync_engine.demo.world import ADDED, CHANGED, DELETED, QUERY, ROWS, World
from wsync_engine.embedded.servers import EmbeddedServers
from wsync_engine.model.ids import TenantId
from wsync_engine.services.runs import list_runs, show_run
from wsync_engine.services.syncs import trigger_sync
from wsync_engine.state.tenants import tenant_named
from wsync_sdk.errors import FatalError

__all__ = ["run_demo"]

TIMEOUT_S = 120.0
EVERY_S = 5
FILE = """\
version: 1
tenant: demo
connections:
  warehouse: {{plugin: postgres, config: {{url: env:DEMO_WAREHOUSE_URL}}}}
  store: {{plugin: postgres, config: {{url: env:DEMO_STORE_URL}}}}
  endpoint: {{plugin: http, config: {{url: "{endpoint_url}", op_field: op}}}}
syncs:
  customers:
    source: warehouse
    query: {query}
    key: id
    sink: store
    stream: public.subscriber
    mode: mirror
    schedule: {{every: {every_s}s, priority: high}}
  customers_http:
    source: warehouse
    query: {query}
    key: id
    sink: endpoint
    stream: subscribers
    mode: mirror
"""
Run = Mapping[str, Any]


def run_demo(say: Callable[[str], None]) -> None:
    """Run it in a folder of its own that is removed at the end.

    :raises FatalError: a process ended, a run failed or was too slow, or the store is not what the query says.
    """
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wsync-demo-") as folder:
        data = Path(folder) / "data"
        endpoint = Endpoint()
        with EmbeddedServers.start(data) as servers, endpoint.serving():
            say(f"Postgres and Valkey run in {time.monotonic() - started_s:.1f} s; loading {ROWS:,} subscribers into a warehouse")
            world = World.build(servers.endpoints.admin_url)
            environment = _environment(data, world)
            file = Path(folder) / "wsync.yaml"
            file.write_text(FILE.format(endpoint_url=endpoint.url, query=QUERY, every_s=EVERY_S), encoding="utf-8")
            subprocess.run([*_COMMAND, "apply", str(file)], check=True, env=environment)
            with (
                _processes(environment, Path(folder)) as alive,
                psycopg.connect(servers.endpoints.database_url_api, autocommit=True) as api,
            ):
                _Show(api=api, tenant_id=tenant_named(api, "demo"), world=world, endpoint=endpoint, alive=alive, say=say).run()
        say(f"done in {time.monotonic() - started_s:.0f} s")


_COMMAND = [sys.executable, "-P", "-m", "wsync_engine.cli"]


def _environment(data: Path, world: World) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
    settings = {"WSYNC_DATA_DIR": str(data), "WSYNC_ALLOW_PRIVATE_ADDRESSES": "127.0.0.0/8"}
    return {**clean, **settings, "DEMO_WAREHOUSE_URL": world.warehouse_url, "DEMO_STORE_URL": world.store_url}


@contextmanager
def _processes(environment: dict[str, str], folder: Path) -> Iterator[Callable[[], None]]:
    """A scheduler and a worker, as an operator would start them; gives a check that both are alive."""
    logs = {role: folder / f"{role}.log" for role in ("scheduler", "worker")}
    children = {}
    for role, log in logs.items():
        with log.open("wb") as target:
            children[role] = subprocess.Popen([*_COMMAND, role], env=environment, stdout=target, stderr=target, start_new_session=True)

    def alive() -> None:
        for role, child in children.items():
            if child.poll() is not None:
                last = logs[role].read_text(errors="replace").strip().splitlines()[-1:]
                raise FatalError(f"the {role} ended: {' '.join(last)}", next_step="report this")

    try:
        yield alive
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            try:
                child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                child.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Show:
    """What happens once everything runs. `known`: runs that were told of."""

    api: psycopg.Connection[Any]
    tenant_id: TenantId
    world: World
    endpoint: Endpoint
    alive: Callable[[], None]
    say: Callable[[str], None]
    known: set[UUID] = field(default_factory=set)

    def run(self) -> None:
        self.say(f"a scheduler and a worker run; the schedule says every {EVERY_S} s: waiting for the first run")
        self._expect("first run", self._next_run("customers", ROWS), upserts=ROWS, deletes=0)
        self._expect("first run into the HTTP endpoint", self._triggered_run(ROWS), upserts=ROWS, deletes=0)
        self.world.change()
        self.say(f"the warehouse changes: {CHANGED:,} rows updated, {ADDED} added, {DELETED} deleted; waiting for the next run")
        changes = CHANGED + ADDED + DELETED
        self._expect("next run", self._next_run("customers", changes), upserts=CHANGED + ADDED, deletes=DELETED)
        self._expect("next run into the HTTP endpoint", self._triggered_run(changes), upserts=CHANGED + ADDED, deletes=DELETED)
        self._compare()

    def _triggered_run(self, changes: int) -> Run:
        trigger_sync(self.api, self.tenant_id, "customers_http", actor="demo")
        return self._next_run("customers_http", changes)

    def _next_run(self, sync: str, changes: int) -> Run:
        """The sync's first ended run that was not told of and that changed something, shown while it goes."""
        columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        until_s = time.monotonic() + TIMEOUT_S
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            read = bars.add_task("rows read", total=ROWS)
            sent = bars.add_task("changes delivered", total=changes)
            while time.monotonic() < until_s:
                self.alive()
                for run in list_runs(self.api, self.tenant_id, sync=sync, count=20):
                    if run["run_id"] in self.known:
                        continue
                    progress = show_run(self.api, self.tenant_id, run["run_id"]).run["progress"] or {}
                    bars.update(read, completed=progress.get("read", 0))
                    bars.update(sent, completed=progress.get("accepted", 0))
                    if run["state"] in _ENDED and self._has_changes(run):
                        return run
                time.sleep(0.1)
        raise FatalError(f"no run ended within {TIMEOUT_S:g} s", next_step="try again on a machine that is less busy")

    def _has_changes(self, run: Run) -> bool:
        if run["state"] != "succeeded":
            raise FatalError(f"a run ended as {run['state']}: {run['outcome_reason']}", next_step="report this")
        self.known.add(run["run_id"])
        return bool(run["counts"]["upserts"])

    def _expect(self, what: str, run: Run, *, upserts: int, deletes: int) -> None:
        counts = run["counts"]
        if (counts["upserts"], counts["deletes"]) != (upserts, deletes):
            found = f"{counts['upserts']} upserts and {counts['deletes']} deletes"
            raise FatalError(f"the run sent {found} instead of {upserts} and {deletes}", next_step="report this")
        self.say(f"{what}: {_summary(run)}")

    def _compare(self) -> None:
        query, store = self.world.digests()
        if query != store:
            raise FatalError(f"the store is not what the query says: {store[0]} rows against {query[0]}", next_step="report this")
        self.say(f"compared row by row: the {store[0]:,} subscribers in the store are what the query says")
        received = self.endpoint.subscriber_by_id
        if received != self.world.result():
            raise FatalError(f"the endpoint was not told what the query says: it has {len(received)} subscribers", next_step="report this")
        calls = len(self.endpoint.calls_by_key)
        self.say(f"compared row by row: the {len(received):,} subscribers that the endpoint was told of, in {calls:,} calls, are the same")


_ENDED = ("succeeded", "partial", "failed", "cancelled", "blocked")


def _summary(run: Run) -> str:
    counts = run["counts"]
    took_s = (run["finished_at"] - run["started_at"]).total_seconds()
    return (
        f"{counts['read']:,} rows read, {counts['unchanged']:,} unchanged, {counts['upserts']:,} upserts and {counts['deletes']:,} deletes"
        f" delivered in {took_s:.1f} s"
    )
