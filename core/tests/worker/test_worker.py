"""Workers as real processes: what becomes of runs when anything dies, is cancelled, grows or drains."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import psutil

from wsync_engine.embedded.processes import is_running
from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.caps import announce_caps, set_cap
from wsync_engine.scheduler.runs import claim_runs, request_cancel
from wsync_engine.scheduler.schedules import announce, trigger_run
from wsync_engine.state.database import connect, tenant_transaction


def test_a_queued_run_is_executed_to_its_end(world: Any) -> None:
    world.add_sync(rows=40)
    run_id = world.add_run()
    world.start_worker()

    row = world.until_state(run_id, "succeeded", "failed")

    assert (row["state"], row["counts"]["accepted"], row["epoch"]) == ("succeeded", 40, 1), row["error"]
    assert sorted(i for chunk in world.sent() for i in chunk["ids"]) == list(range(40))


def test_a_killed_worker_takes_its_children_along_and_another_one_finishes_after_the_lease(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    first = world.start_worker()
    world.shut("write")
    child = world.until_reached("write")

    first.kill()
    world.until(lambda: not is_running(child, words=()), timeout_s=1)
    world.open("write")
    world.start_worker()
    row = world.until_state(run_id, "succeeded", "failed", "partial")

    assert (row["state"], row["epoch"], row["crashes"], row["attempt"]) == ("succeeded", 2, 1, 0), row["error"]
    assert row["counts"]["accepted"] == 60
    ids_by_key: dict[str, list[int]] = {}
    for chunk in world.sent():
        assert ids_by_key.setdefault(chunk["key"], chunk["ids"]) == chunk["ids"]
    assert sorted(i for ids in ids_by_key.values() for i in ids) == list(range(60))
    assert len(world.sent()) > len(ids_by_key)


def test_a_run_whose_child_is_killed_three_times_fails_as_a_crash_loop(world: Any) -> None:
    world.add_sync()
    run_id = world.add_run()
    worker = world.start_worker()
    for crashes in (1, 2, 3):
        world.shut("plan")
        os.kill(world.until_reached("plan"), signal.SIGKILL)
        world.until(lambda crashes=crashes: world.run_row(run_id)["crashes"] == crashes)

    row = world.run_row(run_id)
    assert (row["state"], row["error_class"], row["attempt"]) == ("failed", "crash_loop", 0)
    assert "signal 9" in row["error"]
    assert worker.poll() is None


def test_a_cancelled_run_stops_the_warehouse_and_ends_cancelled(world: Any) -> None:
    world.add_sync()
    run_id = world.add_run()
    world.start_worker()
    world.shut("read")
    world.until_reached("read")

    request_cancel(world.engine, run_id, reason="not now", actor="test")
    row = world.until_state(run_id, "cancelled", "failed", "succeeded")

    assert row["state"] == "cancelled", row["error"]
    assert (world.folder / "cancelled").read_bytes() == b"handle"
    assert world.sent() == []


def test_a_cancelled_run_that_does_not_end_is_killed(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    world.start_worker(stop_grace_s=0.2)
    world.shut("write")
    child = world.until_reached("write")
    os.kill(child, signal.SIGSTOP)

    request_cancel(world.engine, run_id, reason="not now", actor="test")
    row = world.until_state(run_id, "cancelled", "failed", "succeeded")

    assert (row["state"], row["folded_at"]) == ("cancelled", None)
    world.until(lambda: not is_running(child, words=()), timeout_s=5)


def test_a_run_beyond_its_time_fails_as_such(world: Any) -> None:
    world.add_sync(attempt_timeout_ms=500)
    run_id = world.add_run()
    world.start_worker()
    world.shut("read")

    row = world.until_state(run_id, "failed", "succeeded")

    assert (row["state"], row["outcome_reason"]) == ("failed", "out of time")


def test_a_run_that_stands_still_is_ended_and_tried_again(world: Any) -> None:
    world.add_sync(rows=60, stall_ms=5_000)
    run_id = world.add_run()
    world.start_worker(stop_grace_s=0.2)
    world.shut("write")
    world.until_reached("write")

    world.until(lambda: world.engine.execute("SELECT 1 FROM wsync.run_event WHERE kind = 'run.stuck'").fetchone())
    world.until(lambda: world.run_row(run_id)["attempt"] == 1)
    assert "nothing moved" in world.run_row(run_id)["error"]
    world.open("write")
    row = world.until_state(run_id, "succeeded", "failed")

    assert (row["state"], row["attempt"]) == ("succeeded", 1)


def test_a_query_that_takes_its_time_until_the_first_row_is_not_taken_as_standing_still(world: Any) -> None:
    world.add_sync(rows=60, stall_ms=5_000)
    run_id = world.add_run()
    world.start_worker()
    world.shut("plan")
    world.until_reached("plan")
    time.sleep(8)

    world.open("plan")
    row = world.until_state(run_id, "succeeded", "failed")

    assert (row["state"], row["attempt"], row["epoch"]) == ("succeeded", 0, 1)


def test_a_stopped_process_stands_still_too(world: Any) -> None:
    world.add_sync(rows=60, stall_ms=5_000)
    run_id = world.add_run()
    world.start_worker(stop_grace_s=0.2)
    world.shut("plan")
    child = world.until_reached("plan")
    os.kill(child, signal.SIGSTOP)
    world.open("plan")

    row = world.until_state(run_id, "succeeded", "failed")

    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    assert not is_running(child, words=())


def test_a_worker_that_stood_still_itself_does_not_hold_it_against_its_runs(world: Any) -> None:
    world.add_sync(rows=60, stall_ms=5_000)
    run_id = world.add_run()
    worker = world.start_worker(lease_s=60)
    world.shut("write")
    world.until_reached("write")
    time.sleep(2.5)  # its worker has heard how far it is

    worker.send_signal(signal.SIGSTOP)
    time.sleep(7)
    worker.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    world.open("write")
    row = world.until_state(run_id, "succeeded", "failed")

    assert (row["state"], row["attempt"], row["epoch"]) == ("succeeded", 0, 1)
    assert not world.engine.execute("SELECT 1 FROM wsync.run_event WHERE kind = 'run.stuck'").fetchone()


def test_a_run_that_is_terminated_by_a_later_one_stops_and_the_later_one_does_not_wait_for_the_lease(world: Any) -> None:
    world.add_sync(rows=60, overlap="terminate_other")
    first = world.add_run()
    world.start_worker(lease_s=60.0)
    world.shut("write")
    child = world.until_reached("write")
    with connect(world.database.api_url, application_name="test") as api, tenant_transaction(api, world.tenant_id):
        made = trigger_run(api, world.tenant_id, sync_id=world.sync_id, schedule_id=world.schedule_id, actor="test")
    announce(world.index, runs=[made.run] if made.run else [], interrupted=[made.interrupted] if made.interrupted else [])

    world.until(lambda: not is_running(child, words=()))
    world.open("write")
    started_s = time.monotonic()
    row = world.until_state(made.run_id, "succeeded", "failed")

    assert time.monotonic() < started_s + 30  # half of the lease
    assert (world.run_row(first)["state"], world.run_row(first)["cancel_reason"], row["state"]) == ("cancelled", "terminated", "succeeded")


def test_two_runs_of_one_sync_beside_each_other_both_succeed_and_deliver_one_after_the_other(world: Any) -> None:
    world.add_sync(rows=60, overlap="allow_all")
    options = {"sync_id": world.sync_id, "schedule_id": world.schedule_id, "actor": "test"}
    with connect(world.database.api_url, application_name="test") as api, tenant_transaction(api, world.tenant_id):
        made = [trigger_run(api, world.tenant_id, **options) for _ in range(2)]
    world.shut("write")
    world.start_worker(slots=2)
    announce(world.index, runs=[x.run for x in made if x.run])
    world.until_reached("write")
    is_told = "SELECT FROM wsync.run WHERE state = 'queued' AND attempt = 0 AND error = 'an earlier run of the sync is executed'"
    world.until(lambda: bool(world.engine.execute(is_told).fetchall()))

    world.open("write")
    rows = [world.until_state(x.run_id, "succeeded", "failed") for x in made]

    assert [(row["state"], row["attempt"]) for row in rows] == [("succeeded", 0)] * 2
    assert sorted(row["counts"]["accepted"] for row in rows) == [0, 60]
    assert sorted(i for chunk in world.sent() for i in chunk["ids"]) == list(range(60))


def test_a_worker_drains_when_it_is_asked_to_from_elsewhere(world: Any) -> None:
    worker = world.start_worker()
    world.until(lambda: world.engine.execute("SELECT 1 FROM wsync.worker").fetchone())

    world.engine.execute("UPDATE wsync.worker SET drain_requested_at = now()")

    assert worker.wait(15) == 0
    assert "worker.drain_requested" in world.logs()


def test_a_worker_with_another_storage_claims_nothing_and_says_why(world: Any) -> None:
    world.add_sync()
    world.engine.execute("""INSERT INTO wsync.setting (key, value) VALUES ('storage_id', '"theirs"')""")
    world.start_worker(storage_id="ours")
    world.until(lambda: world.engine.execute("SELECT 1 FROM wsync.worker WHERE refusal IS NOT NULL").fetchone())
    run_id = world.add_run()

    world.until(lambda: "worker.refuses" in world.logs())
    time.sleep(2)
    assert world.run_row(run_id)["state"] == "queued"
    world.engine.execute("""UPDATE wsync.setting SET value = '"ours"' WHERE key = 'storage_id'""")
    world.until_state(run_id, "succeeded")


def test_a_draining_worker_finishes_its_run_takes_no_other_and_leaves(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    worker = world.start_worker()
    world.shut("write")
    world.until_reached("write")

    worker.terminate()
    world.until(lambda: world.engine.execute("SELECT draining FROM wsync.worker").fetchone()["draining"])
    world.open("write")
    world.until_state(run_id, "succeeded")

    assert worker.wait(10) == 0
    assert world.engine.execute("SELECT * FROM wsync.worker").fetchall() == []


def test_a_run_that_outlasts_the_drain_goes_back_to_the_queue_without_using_an_attempt(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    worker = world.start_worker(drain_timeout_s=0.2)
    world.shut("read")
    world.until_reached("read")

    worker.terminate()
    world.until(lambda: "worker.draining" in world.logs())
    world.open("read")
    row = world.until_state(run_id, "queued", "succeeded")

    assert worker.wait(10) == 0
    assert row["state"] in {"queued", "succeeded"}
    assert (row["attempt"], row["crashes"]) == (0, 0)


def test_a_second_signal_gives_the_run_back_at_once(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    worker = world.start_worker()
    world.shut("write")
    world.until_reached("write")

    worker.terminate()
    world.until(lambda: "worker.draining" in world.logs())
    worker.terminate()

    assert worker.wait(5) == 0
    row = world.run_row(run_id)
    assert (row["state"], row["attempt"], row["crashes"]) == ("queued", 0, 0)


def test_a_holder_of_an_old_epoch_writes_nothing(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    worker = world.start_worker()
    world.shut("write")
    child = world.until_reached("write")
    sent = len(world.sent())

    world.engine.execute("UPDATE wsync.run SET epoch = epoch + 1, worker_id = NULL, lease_until = now() + interval '1 hour'")
    world.open("write")
    world.until(lambda: "run.dropped" in world.logs() or not is_running(child, words=()))

    row = world.run_row(run_id)
    assert (row["state"], row["epoch"], row["worker_id"], row["attempt"]) == ("running", 2, None, 0)
    acked = world.engine.execute("SELECT max(last_row) AS last FROM wsync.ack").fetchone()["last"]
    assert acked is None or acked < 20
    assert len(world.sent()) <= sent + 15
    assert worker.poll() is None


def test_a_child_beyond_its_memory_is_killed_and_the_run_says_why(world: Any) -> None:
    world.add_sync(failure="memory", max_attempts=1)
    run_id = world.add_run()
    world.start_worker(memory_limit_bytes=350 * 1024 * 1024)
    world.shut("plan")

    row = world.until_state(run_id, "failed", "succeeded")

    assert (row["state"], row["error_class"]) == ("failed", "memory_limit")
    assert "memory" in row["error"]


def test_a_failure_that_may_pass_is_tried_again_and_then_fails(world: Any) -> None:
    world.add_sync(failure="retryable", max_attempts=2)
    run_id = world.add_run()
    world.start_worker()

    row = world.until_state(run_id, "failed", "succeeded")

    assert (row["state"], row["epoch"], row["error"]) == ("failed", 2, "the warehouse is busy")


def test_a_bug_fails_the_run_in_one_line_that_repeats_no_value(world: Any) -> None:
    world.add_sync(failure="bug")
    run_id = world.add_run()
    world.start_worker()

    row = world.until_state(run_id, "failed", "succeeded")

    assert (row["state"], row["error"]) == ("failed", "the run failed with an unexpected ZeroDivisionError")


def test_a_child_has_neither_the_engines_logins_nor_the_master_key(world: Any) -> None:
    world.add_sync()
    run_id = world.add_run()
    world.start_worker()
    world.until_state(run_id, "succeeded", "failed")

    for name in ("environment", "initial_environment"):
        seen = (world.folder / name).read_text()
        assert "hidden" not in seen
        assert world.key not in seen


def test_a_worker_outlives_redis_being_flushed_and_postgres_dropping_its_connections(world: Any) -> None:
    world.add_sync()
    worker = world.start_worker()
    world.until(lambda: world.engine.execute("SELECT count(*) AS n FROM wsync.worker").fetchone()["n"] == 1)

    world.engine.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wsync worker'")
    world.client.flushdb()
    run_id = world.add_run(is_announced=False)
    world.scheduler.rebuild()
    row = world.until_state(run_id, "succeeded", "failed")

    assert row["state"] == "succeeded", row["error"]
    assert worker.poll() is None
    assert "Traceback" not in world.logs()


def test_the_fork_server_has_one_thread_and_dies_with_its_worker(world: Any) -> None:
    world.add_sync()
    run_id = world.add_run()
    worker = world.start_worker()
    world.until_state(run_id, "succeeded", "failed")
    servers = [child for child in psutil.Process(worker.pid).children() if "forkserver" in " ".join(child.cmdline())]

    assert [server.num_threads() for server in servers] == [1]
    loaded = servers[0].memory_maps()
    assert any("pyarrow" in part.path for part in loaded)

    worker.kill()
    world.until(lambda: not is_running(servers[0].pid, words=()), timeout_s=1)


def test_a_worker_replaces_a_child_that_did_its_share_and_a_fork_server_that_died(world: Any) -> None:
    world.add_sync()
    worker = world.start_worker(runs_per_child=1)
    pids = []
    for _ in range(2):
        run_id = world.add_run()
        world.until_state(run_id, "succeeded", "failed")
        pids.append((world.folder / "pid").read_text())
    (server,) = (child for child in psutil.Process(worker.pid).children() if "forkserver" in " ".join(child.cmdline()))
    server.kill()
    run_id = world.add_run()
    row = world.until_state(run_id, "succeeded", "failed")

    pids.append((world.folder / "pid").read_text())
    assert row["state"] == "succeeded", row["error"]
    assert len(set(pids)) == 3
    assert "hidden" not in (world.folder / "initial_environment").read_text()


def test_a_worker_survives_a_fork_server_that_dies_while_it_makes_a_child(world: Any) -> None:
    world.add_sync()
    worker = world.start_worker(runs_per_child=1)
    world.shut("write")
    first = world.add_run()
    child = world.until_reached("write")
    (server,) = (child for child in psutil.Process(worker.pid).children() if "forkserver" in " ".join(child.cmdline()))
    server.suspend()  # it takes the request for the next child, and never answers
    world.open("write")
    world.until_state(first, "succeeded")
    world.until(lambda: not is_running(child, words=()))
    server.kill()

    row = world.until_state(world.add_run(), "succeeded", "failed")

    assert row["state"] == "succeeded", row["error"]
    assert worker.poll() is None


def test_progress_shows_in_postgres_and_in_redis_while_a_run_goes_on(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    world.start_worker()
    world.shut("write")
    world.until_reached("write")

    world.until(lambda: (world.run_row(run_id)["progress"] or {}).get("read") == 60)
    world.until(lambda: world.client.hget("ws2:{0}:prog", run_id.hex) is not None)
    assert json.loads(world.client.hget("ws2:{0}:prog", run_id.hex))["read"] == 60
    world.open("write")
    world.until_state(run_id, "succeeded")
    world.until(lambda: world.client.hget("ws2:{0}:prog", run_id.hex) is None)


def test_a_worker_that_lost_postgres_for_a_while_goes_on_under_the_same_epoch(world: Any) -> None:
    world.add_sync(rows=60)
    run_id = world.add_run()
    world.start_worker()
    world.shut("write")
    world.until_reached("write")

    world.engine.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wsync worker'")
    beaten_at = world.run_row(run_id)["heartbeat_at"]
    world.until(lambda: world.run_row(run_id)["heartbeat_at"] > beaten_at)
    world.open("write")
    row = world.until_state(run_id, "succeeded", "failed")

    assert (row["state"], row["epoch"]) == ("succeeded", 1)


def test_a_run_whose_own_connection_broke_is_tried_again_without_using_an_attempt(world: Any) -> None:
    world.add_sync(rows=60, max_attempts=1)
    run_id = world.add_run()
    world.start_worker()
    world.shut("write")
    world.until_reached("write")

    with connect(world.database.api_url, application_name="test") as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'wsync run %'")
    world.open("write")
    row = world.until_state(run_id, "succeeded", "failed", "partial")

    assert (row["state"], row["attempt"], row["crashes"]) == ("succeeded", 0, 0), row["error"]
    assert row["epoch"] == 2


def test_connectors_come_from_the_plugin_host_and_a_missing_one_fails_the_run_by_name(world: Any) -> None:
    world.add_sync()
    run_id = world.add_run()
    world.start_worker(is_host_used=True)

    row = world.until_state(run_id, "failed", "succeeded")

    assert (row["state"], row["error_class"], row["error"]) == ("failed", "ConfigError", "there is no source plugin `test`")


def test_a_dry_run_blocks_and_frees_its_slot(world: Any) -> None:
    world.add_sync()
    world.start_worker()
    world.until_state(world.add_run(is_dry=True), "blocked")

    assert world.until_state(world.add_run(), "succeeded", "failed")["state"] == "succeeded"


def test_a_long_run_makes_room_for_a_more_urgent_one_and_goes_on_where_it_was(world: Any) -> None:
    world.add_sync(rows=60)
    long = world.add_run()
    world.start_worker()
    world.shut("write")
    world.until_reached("write")
    urgent = world.add_run(priority=2, sync_id=world.copy_sync())

    world.until_asked_to_make_room()
    world.open("write")
    world.until_state(urgent, "succeeded", "failed")
    row = world.until_state(long, "succeeded", "failed")

    assert (row["state"], row["epoch"], row["attempt"], row["crashes"]) == ("succeeded", 2, 0, 0)
    assert world.run_row(urgent)["finished_at"] < row["finished_at"]


def test_a_run_of_the_same_priority_waits_for_its_turn_only(world: Any) -> None:
    world.add_sync(rows=60)
    long = world.add_run()
    world.start_worker(turn_s=2.0)
    world.shut("write")
    world.until_reached("write")
    other = world.add_run(sync_id=world.copy_sync())
    world.until_asked_to_make_room()
    world.open("write")

    world.until_state(other, "succeeded", "failed")

    assert world.until_state(long, "succeeded", "failed")["epoch"] >= 2


def test_a_worker_takes_the_runs_of_its_queues_only(world: Any) -> None:
    world.add_sync()
    theirs, ours = world.add_run(queue=3), world.add_run(queue=5, sync_id=world.copy_sync())
    world.start_worker(queues=[5])

    world.until_state(ours, "succeeded")

    assert world.run_row(theirs)["state"] == "queued"
    assert world.engine.execute("SELECT queues FROM wsync.worker").fetchone()["queues"] == [5]


def test_a_run_that_another_worker_executes_keeps_what_it_holds_when_we_are_refused_it(world: Any) -> None:
    world.add_sync()
    announce_caps(world.index, [set_cap(world.engine, world.tenant_id, "S", world.sync_id, max_running=1, actor="ann")])
    theirs, next_one = world.add_run(is_dry=True), world.add_run(is_dry=True)
    claim_runs(world.engine, [theirs], uuid7(), lease_s=300)  # as after a stall between dispatch and claim: the index lets us have it too
    unlimited = world.add_run(sync_id=world.copy_sync())

    world.start_worker()

    assert world.until_state(unlimited, "succeeded", "failed")["state"] == "succeeded"
    assert world.run_row(next_one)["state"] == "queued"


def test_a_worker_that_lost_a_run_gives_back_nothing_that_the_next_holder_holds(world: Any) -> None:
    world.add_sync(rows=60)
    announce_caps(world.index, [set_cap(world.engine, world.tenant_id, "S", world.sync_id, max_running=1, actor="ann")])
    world.shut("write")
    theirs = world.add_run()
    frozen = world.start_worker()
    world.until_reached("write")
    frozen.send_signal(signal.SIGSTOP)
    world.start_worker(slots=2)
    world.until(lambda: world.run_row(theirs)["epoch"] == 2)
    next_one = world.add_run(is_dry=True)

    frozen.send_signal(signal.SIGCONT)
    world.until(lambda: "run.dropped" in world.logs() or "child.died" in world.logs())
    unlimited = world.add_run(is_dry=True, sync_id=world.copy_sync())

    assert world.until_state(unlimited, "blocked")["state"] == "blocked"
    assert (world.run_row(theirs)["state"], world.run_row(next_one)["state"]) == ("running", "queued")


def test_a_run_that_comes_to_no_border_stands_still_while_a_more_urgent_one_has_its_turn(world: Any) -> None:
    world.add_sync(rows=60)
    long = world.add_run()
    world.start_worker()
    world.shut("read")
    world.until_reached("read")
    urgent = world.add_run(priority=2, sync_id=world.copy_sync(), is_dry=True)
    world.until(lambda: "slot.lent" in world.logs())
    reader = world.standing("read")

    world.open("read")
    world.until_state(urgent, "blocked", "failed")
    row = world.until_state(long, "succeeded", "failed")

    assert (row["state"], row["epoch"], row["attempt"], row["crashes"]) == ("succeeded", 1, 0, 0), "nothing was read twice"
    assert world.logs().count("slot.lent") == 1
    assert {chunk["pid"] for chunk in world.sent()} == reader
    assert sorted(n for chunk in world.sent() for n in chunk["ids"]) == list(range(60))


def test_a_run_that_stands_still_for_another_one_can_be_cancelled(world: Any) -> None:
    world.add_sync(rows=60)
    long = world.add_run()
    world.start_worker()
    world.shut("read")
    world.until_reached("read")
    world.add_run(priority=2, sync_id=world.copy_sync(), is_dry=True)
    world.until(lambda: len(world.standing("read")) == 2)

    with connect(world.database.api_url, application_name="test") as conn, tenant_transaction(conn, world.tenant_id):
        request_cancel(conn, long, reason="cancelled", actor="test")

    assert world.until_state(long, "cancelled", "succeeded", "failed")["state"] == "cancelled"
