"""How fast are schedules made and fired, what does waiting cost, and how soon does a run go on when its worker is killed?

Usage: .venv/bin/python benchmarks/schedule.py [--schedules 100000] [--due 1000 10000] [--runs 4000] [--seconds 20]

Two schedulers and two workers, as processes, on servers of their own. The workers are the product's; their task processes are not, a run ends at
once: what is measured is scheduling. The last line is one JSON object: create_per_s (with two loaders under their tenants' login, index included),
lateness_p50_ms and lateness_p99_ms (from due to claimed, of the first --due spread over one second, with 16 slots a worker: with slots for fewer
runs than are due, the wait for a slot would be measured), lateness_<n>_p99_ms of the others, rebuild_s (from FLUSHALL until the index holds all
schedules again) and rebuild_lateness_ms (the worst of those that are due meanwhile), noop_runs_per_s (claim to finish), idle_cpu_percent (of one
core: both schedulers, both workers and the index, with all schedules stored and none due), recovery_s (from kill -9 of a worker until its run
starts again) and loop_per_s, a busy loop of the same minute, as a measure of the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import structlog

from wsync_engine.embedded.servers import EmbeddedServers
from wsync_engine.index.due_index import Index, connect
from wsync_engine.index.shards import Shards
from wsync_engine.model.declaration import sync_spec_to_json
from wsync_engine.model.ids import uuid7
from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.scheduler.schedules import announce, create_schedules
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state import database as state
from wsync_engine.worker.child import ChildSetup
from wsync_engine.worker.host import Host, Listener
from wsync_engine.worker.live import WakeListener
from wsync_engine.worker.messages import Assignment, Called, Ended, Tick, TurnsWanted
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.slots import Slot
from wsync_engine.worker.supervisor import Worker

BATCH = 2_000
SLOTS = 16
DUE_IN_REBUILD = 200
KEY = "c2NoZWR1bGUtYmVuY2htYXJrLWtleS0zMi1ieXRlcyE="
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """Where the servers are."""

    engine: str
    api: str
    redis: str


# -- processes


class NoopSlot(Slot):
    """Ends each run at once, or never."""

    is_endless = False

    def start(self) -> None:
        self.started_at_s = self._monotonic_s()
        self.runs_done = 0
        self.outbox: list[Tick | Called | Ended | TurnsWanted] = []

    @property
    def is_alive(self) -> bool:
        return True

    def tell(self, message: Any) -> None:
        if isinstance(message, Assignment) and not self.is_endless:
            self.outbox.append(Ended(run_id=message.run_id, epoch=message.epoch, kind="concluded", state="succeeded"))

    def messages(self) -> list[Tick | Called | Ended | TurnsWanted]:
        found, self.outbox = self.outbox, []
        return found

    def end(self, timeout_s: float) -> None:
        pass

    def kill(self) -> None:
        pass

    def rss_bytes(self) -> int:
        return 0


class EndlessSlot(NoopSlot):
    is_endless = True


class NoopHost(Host):
    """This machine, without task processes."""

    def __init__(self, slot: type[NoopSlot]) -> None:
        self._slot = slot

    def start(self) -> None:
        pass

    def new_slot(self, setup: ChildSetup) -> Slot:
        return self._slot(setup, monotonic_s=self.clocks.monotonic_s)

    def wait(self, listener: Listener, slots: Sequence[Slot], timeout_s: float) -> bool:
        assert isinstance(listener, WakeListener)
        is_spoken_to = any(isinstance(slot, NoopSlot) and slot.outbox for slot in slots)
        ready, _, _ = select.select([listener.reading], [], [], 0 if is_spoken_to else timeout_s)
        return bool(ready)


def scheduler_main(urls: Urls) -> None:
    quiet()
    client = connect(urls.redis)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    Scheduler(
        indexes=Shards(client), wakes=Scheduler.wakes_of(client), connect=lambda: state.connect(urls.engine, application_name="scheduler")
    ).run(stop)


def worker_main(urls: Urls, slots: int, slot: type[NoopSlot]) -> None:
    quiet()
    Worker(
        WorkerOptions(api_url=urls.api, storage_url="file:///nowhere", slots=slots),
        index=Shards(connect(urls.redis)),
        client=connect(urls.redis),
        connect=lambda: state.connect(urls.engine, application_name="worker"),
        keyring=Keyring.from_text(KEY),
        opener=no_connectors,
        host=NoopHost(slot),
    ).run()


def no_connectors(_assignment: Assignment) -> Any:
    raise NotImplementedError


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


class Team:
    """Processes that are ended together."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []

    def start(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = SPAWN.Process(target=target, args=arguments)
        process.start()
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(30)
        self.processes.clear()


# -- what is measured


class Bench:
    """An installation with tenants and their syncs."""

    def __init__(self, urls: Urls) -> None:
        self.urls = urls
        self.engine = state.connect(urls.engine, application_name="benchmark")
        self.index = Index(connect(urls.redis))
        self.spec = SyncSpec(name="s", source="c", sink="c", query="SELECT 1", key=("id",), stream="x", mode=Mode.UPSERT)
        client = connect(urls.redis)
        Scheduler(indexes=Shards(client), wakes=Scheduler.wakes_of(client), connect=lambda: self.engine).rebuild()

    def new_tenant(self, syncs: int) -> tuple[UUID, list[UUID]]:
        tenant_id, connection_id = uuid7(), uuid7()
        ids = [uuid7() for _ in range(syncs)]
        self.engine.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, %s)", [tenant_id, tenant_id.hex])
        self.engine.execute(
            "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin) VALUES (%s, %s, 'c', 'none')", [connection_id, tenant_id]
        )
        self.engine.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " SELECT id, %s, id::text, %s, %s, %s, id FROM unnest(CAST(%s AS uuid[])) AS id",
            [tenant_id, connection_id, connection_id, json.dumps(sync_spec_to_json(self.spec)), ids],
        )
        return tenant_id, ids

    def create_per_s(self, schedules: int) -> float:
        """Two loaders, each for its tenant."""
        tenants = [self.new_tenant(1) for _ in range(2)]
        start = SPAWN.Barrier(3)  # what a process imports is not measured
        loaders = [SPAWN.Process(target=load, args=(self.urls, tenant_id, ids[0], schedules // 2, start)) for tenant_id, ids in tenants]
        for loader in loaders:
            loader.start()
        start.wait(120)
        began_s = time.monotonic()
        for loader in loaders:
            loader.join()
            assert loader.exitcode == 0
        return schedules / (time.monotonic() - began_s)

    def lateness_ms(self, due: int) -> tuple[float, float]:
        """(p50, p99) from due to claimed, of schedules that are due within one second."""
        tenant_id, syncs = self.new_tenant(due)
        first = datetime.now(UTC) + timedelta(seconds=6 + due / 2_000)
        self.make(tenant_id, [(sync_id, first + timedelta(seconds=at / due)) for at, sync_id in enumerate(syncs)])
        self.until_ended(tenant_id, due)
        row = self.engine.execute(
            "SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM started_at - due_at))"
            " FROM wsync.run WHERE tenant_id = %s",
            [tenant_id],
        ).fetchone()
        assert row is not None
        return row[0][0], row[0][1]

    def rebuild(self, stored: int) -> tuple[float, float]:
        """Seconds until an index that lost everything holds all schedules again, and the worst lateness (ms) of those due meanwhile."""
        tenant_id, syncs = self.new_tenant(DUE_IN_REBUILD)
        first = datetime.now(UTC) + timedelta(seconds=4)
        self.make(tenant_id, [(sync_id, first + timedelta(seconds=at / 10)) for at, sync_id in enumerate(syncs)])
        time.sleep(4)
        connect(self.urls.redis).flushall()
        began_s = time.monotonic()
        self.until(lambda: self.index.sizes()[0] >= stored)
        took_s = time.monotonic() - began_s
        self.until_ended(tenant_id, DUE_IN_REBUILD)
        row = self.engine.execute(
            "SELECT max(1000 * extract(epoch FROM started_at - due_at)) FROM wsync.run WHERE tenant_id = %s", [tenant_id]
        ).fetchone()
        assert row is not None
        return took_s, float(row[0])

    def noop_runs_per_s(self, runs: int, team: Team) -> float:
        """Fired first, then executed by two workers that find them all in line."""
        tenant_id, syncs = self.new_tenant(runs)
        self.make(tenant_id, [(sync_id, datetime.now(UTC) + timedelta(seconds=4)) for sync_id in syncs])
        self.until(lambda: self.count(tenant_id, "queued") == runs)
        for _ in range(2):
            team.start(worker_main, self.urls, 64, NoopSlot)
        self.until_ended(tenant_id, runs)
        row = self.engine.execute(
            "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM wsync.run WHERE tenant_id = %s", [tenant_id]
        ).fetchone()
        assert row is not None
        return runs / float(row[0])

    def recovery_s(self, team: Team) -> float:
        """A run that never ends, on a worker that is killed; another one takes it."""
        tenant_id, (sync_id,) = self.new_tenant(1)
        first = team.start(worker_main, self.urls, 1, EndlessSlot)
        self.make(tenant_id, [(sync_id, datetime.now(UTC) + timedelta(seconds=2))])
        self.until(lambda: self.count(tenant_id, "running") == 1)
        team.start(worker_main, self.urls, 1, EndlessSlot)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        began_s = time.monotonic()
        self.until(lambda: bool(self.engine.execute("SELECT 1 FROM wsync.run WHERE tenant_id = %s AND epoch = 2", [tenant_id]).fetchone()))
        return time.monotonic() - began_s

    def make(self, tenant_id: UUID, times: Sequence[tuple[UUID, datetime]]) -> None:
        api = state.connect(self.urls.api, application_name="benchmark")
        for at in range(0, len(times), BATCH):
            specs = [
                ScheduleSpec(name=sync_id.hex, sync_id=sync_id, kind="once", once_at=once_at) for sync_id, once_at in times[at : at + BATCH]
            ]
            with state.tenant_transaction(api, tenant_id):
                made = create_schedules(api, tenant_id, specs, actor="benchmark")
            announce(self.index, [stored.entry for stored in made])
        api.close()

    def count(self, tenant_id: UUID, state_name: str) -> int:
        row = self.engine.execute(
            "SELECT count(*) FROM wsync.run WHERE tenant_id = %s AND state::text = %s", [tenant_id, state_name]
        ).fetchone()
        assert row is not None
        return int(row[0])

    def until_ended(self, tenant_id: UUID, runs: int) -> None:
        self.until(lambda: self.count(tenant_id, "succeeded") == runs)

    def until(self, condition: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + 180
        while not condition():
            if time.monotonic() > give_up_s:
                raise SystemExit("nothing moves any more")
            time.sleep(0.1)


def load(urls: Urls, tenant_id: UUID, sync_id: UUID, schedules: int, barrier: Any) -> None:
    """Daily schedules over all minutes of tomorrow and later."""
    api, index = state.connect(urls.api, application_name="loader"), Index(connect(urls.redis))
    start = datetime.now(UTC) + timedelta(days=1)
    barrier.wait(120)
    for first in range(0, schedules, BATCH):
        specs = [
            ScheduleSpec(
                name=f"s{n}", sync_id=sync_id, kind="cron", cron=f"{n % 60} {n // 60 % 24} * * *", zone="Europe/Berlin", start_at=start
            )
            for n in range(first, min(schedules, first + BATCH))
        ]
        with state.tenant_transaction(api, tenant_id):
            made = create_schedules(api, tenant_id, specs, actor="benchmark")
        announce(index, [stored.entry for stored in made])


def idle_cpu_percent(processes: Sequence[int], seconds: float) -> float:
    found = [psutil.Process(process_id) for process_id in processes]
    before_s = sum(sum(process.cpu_times()[:2]) for process in found)
    time.sleep(seconds)
    return 100 * (sum(sum(process.cpu_times()[:2]) for process in found) - before_s) / seconds


def valkey_pid(servers: EmbeddedServers) -> int:
    row: Any = connect(servers.endpoints.redis_url).info("server")
    return int(row["process_id"])


def loop_per_s() -> float:
    began_s, turns = time.perf_counter(), 0
    while time.perf_counter() < began_s + 1:
        turns += 1
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--due", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--runs", type=int, default=4_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServers.start(Path(folder)) as servers:
        ends = servers.endpoints
        print(json.dumps(measure(Urls(engine=ends.database_url_engine, api=ends.database_url_api, redis=ends.redis_url), servers, options)))


def measure(urls: Urls, servers: EmbeddedServers, options: argparse.Namespace) -> dict[str, float]:
    bench, team = Bench(urls), Team()
    found = {"loop_per_s": loop_per_s(), "schedules": float(options.schedules)}
    try:
        found["create_per_s"] = bench.create_per_s(options.schedules)
        say(found)
        schedulers = [team.start(scheduler_main, urls) for _ in range(2)]
        workers = [team.start(worker_main, urls, SLOTS, NoopSlot) for _ in range(2)]
        time.sleep(15)
        found["idle_cpu_percent"] = idle_cpu_percent([*(x.pid or 0 for x in [*schedulers, *workers]), valkey_pid(servers)], options.seconds)
        say(found)
        for number, due in enumerate(options.due):
            p50, p99 = bench.lateness_ms(due)
            found |= {"lateness_p50_ms": p50, "lateness_p99_ms": p99} if number == 0 else {f"lateness_{due}_p99_ms": p99}
            say(found)
        found["rebuild_s"], found["rebuild_lateness_ms"] = bench.rebuild(options.schedules)
        say(found)
        for worker in workers:
            worker.terminate()
        found["noop_runs_per_s"] = bench.noop_runs_per_s(options.runs, team)
        say(found)
        for worker in team.processes[2:]:
            worker.terminate()
            worker.join(30)
        found["recovery_s"] = bench.recovery_s(team)
    finally:
        team.end()
    return {name: round(value, 2) for name, value in found.items()}


def say(found: dict[str, float]) -> None:
    print(found, file=sys.stderr)


if __name__ == "__main__":
    main()
