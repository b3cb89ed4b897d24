"""A big run is executed by several processes at once, and any of them may die, be cancelled or be asked to make room."""

from __future__ import annotations

import os
import signal
from typing import Any
from uuid import UUID

import pytest

from wsync_engine.embedded.processes import is_running
from wsync_engine.scheduler.runs import request_cancel
from wsync_engine.state.database import connect, tenant_transaction

ROWS = 400
BIG = {"rows_per_partition": 50}
"""Options of a worker for which the run has eight partitions."""


def helpers_of(world: Any, run_id: UUID) -> list[dict[str, Any]]:
    return world.engine.execute("SELECT * FROM wsync.run WHERE helps = %s ORDER BY run_id", (run_id,)).fetchall()


def check_all_is_sent(world: Any, run_id: UUID) -> None:
    """Each row is at the destination, the same rows under the same key, and the books say so."""
    ids_by_key: dict[str, list[int]] = {}
    for chunk in world.sent():
        assert ids_by_key.setdefault(chunk["key"], chunk["ids"]) == chunk["ids"]
    assert sorted(n for ids in ids_by_key.values() for n in ids) == list(range(ROWS))
    row = world.run_row(run_id)
    assert row["counts"]["read"] == row["counts"]["accepted"] == ROWS, row["counts"]
    manifest = world.engine.execute("SELECT manifest FROM wsync.snapshot WHERE sync_id = %s", (world.sync_id,)).fetchone()["manifest"]
    assert (manifest["rows"], manifest["partitions"]) == (ROWS, 8)


def check_nothing_is_left(world: Any, run_id: UUID) -> None:
    assert helpers_of(world, run_id) == []
    assert world.engine.execute("SELECT count(*) AS n FROM wsync.task").fetchone()["n"] == 0


def test_a_big_run_is_spread_over_the_slots_of_all_workers(world: Any) -> None:
    world.add_sync(rows=ROWS, splits=4)
    world.shut("write")
    workers = [world.start_worker(slots=2, **BIG), world.start_worker(slots=2, **BIG)]
    run_id = world.add_run()

    world.until(lambda: len(world.standing("write")) == 4)
    world.open("write")
    row = world.until_state(run_id, "succeeded", "failed", "partial")

    assert row["state"] == "succeeded", row["error"]
    check_all_is_sent(world, run_id)
    check_nothing_is_left(world, run_id)
    assert len({chunk["pid"] for chunk in world.sent()}) == 4
    assert len({chunk["key"] for chunk in world.sent()}) == len(world.sent())
    assert all(worker.poll() is None for worker in workers)


def test_a_worker_that_comes_later_takes_part(world: Any) -> None:
    world.add_sync(rows=ROWS)
    world.shut("write")
    world.start_worker(**BIG)
    run_id = world.add_run()
    world.until(lambda: len(world.standing("write")) == 1)

    world.start_worker(**BIG)
    world.until(lambda: len(world.standing("write")) == 2)
    world.open("write")

    assert world.until_state(run_id, "succeeded", "failed", "partial")["state"] == "succeeded"
    check_all_is_sent(world, run_id)
    check_nothing_is_left(world, run_id)


def test_the_second_run_reads_compares_and_folds_in_parts_and_sends_only_what_changed(world: Any) -> None:
    world.add_sync(rows=ROWS, splits=4)
    world.start_worker(slots=2, **BIG)
    first = world.add_run()
    world.until_state(first, "succeeded", "failed", "partial")
    sent = len(world.sent())

    second = world.add_run()
    row = world.until_state(second, "succeeded", "failed", "partial")

    assert (row["state"], row["counts"]["unchanged"], len(world.sent())) == ("succeeded", ROWS, sent), row["error"]
    check_nothing_is_left(world, second)


@pytest.mark.parametrize("victim", ["leader", "helper"])
def test_whoever_is_killed_in_mid_delivery_another_one_goes_on(world: Any, victim: str) -> None:
    world.add_sync(rows=ROWS)
    world.shut("write")
    run_id = world.add_run()
    leader = world.start_worker(**BIG)
    world.until(lambda: len(world.standing("write")) == 1)
    helper = world.start_worker(**BIG)
    world.until(lambda: len(world.standing("write")) == 2)

    (leader if victim == "leader" else helper).kill()
    world.open("write")
    world.start_worker(**BIG)
    row = world.until_state(run_id, "succeeded", "failed", "partial")

    assert (row["state"], row["attempt"], row["epoch"]) == ("succeeded", 0, 1 + (victim == "leader")), row["error"]
    check_all_is_sent(world, run_id)
    check_nothing_is_left(world, run_id)


@pytest.mark.parametrize("gate", ["read", "write"])
def test_a_child_that_dies_is_replaced_and_its_task_is_done_by_another(world: Any, gate: str) -> None:
    world.add_sync(rows=ROWS, splits=4)
    world.shut(gate)
    run_id = world.add_run()
    world.start_worker(slots=2, **BIG)
    world.until(lambda: len(world.standing(gate)) == 2)

    for child in world.standing(gate):
        os.kill(child, signal.SIGKILL)
    world.open(gate)
    row = world.until_state(run_id, "succeeded", "failed", "partial")

    assert (row["state"], row["epoch"]) == ("succeeded", 2), row["error"]
    check_all_is_sent(world, run_id)
    check_nothing_is_left(world, run_id)


def test_a_cancelled_run_ends_after_its_helpers_and_keeps_what_was_acknowledged(world: Any) -> None:
    world.add_sync(rows=10 * ROWS)
    world.shut("write")
    run_id = world.add_run()
    world.start_worker(slots=2, rows_per_partition=500)
    world.until(lambda: len(world.standing("write")) == 2)

    with connect(world.database.api_url, application_name="test") as conn, tenant_transaction(conn, world.tenant_id):
        request_cancel(conn, run_id, reason="cancelled", actor="test")
    row = world.until_state(run_id, "cancelled", "succeeded", "failed")

    assert row["state"] == "cancelled"
    assert row["folded_at"] is not None
    check_nothing_is_left(world, run_id)
    sent = {n for chunk in world.sent() for n in chunk["ids"]}
    assert len(sent) <= row["counts"]["accepted"] + row["counts"]["unsure"] < 10 * ROWS

    second = world.add_run()
    assert world.until_state(second, "succeeded", "failed", "partial")["state"] == "succeeded"
    assert world.run_row(second)["counts"]["unchanged"] == row["counts"]["accepted"]
    assert sorted({n for chunk in world.sent() for n in chunk["ids"]}) == list(range(10 * ROWS))


def test_a_helper_whose_destination_is_away_fails_the_attempt_and_the_next_one_goes_on(world: Any) -> None:
    world.add_sync(rows=ROWS)
    (world.folder / "away").touch()
    run_id = world.add_run()
    world.start_worker(slots=2, breaker_failures=1_000, **BIG)
    world.until(lambda: world.run_row(run_id)["attempt"] >= 1)

    (world.folder / "away").unlink()
    row = world.until_state(run_id, "succeeded", "failed", "partial")

    assert row["state"] == "succeeded", row["error"]
    check_all_is_sent(world, run_id)
    check_nothing_is_left(world, run_id)


def test_an_urgent_run_gets_the_slot_of_a_helper_and_the_big_one_goes_on(world: Any) -> None:
    world.add_sync(rows=ROWS)
    world.shut("write")
    big = world.add_run(priority=1)
    world.start_worker(slots=2, **BIG)
    world.until(lambda: len(world.standing("write")) == 2)
    other = world.copy_sync()

    urgent = world.add_run(priority=2, sync_id=other, is_dry=True)
    world.until_asked_to_make_room()
    world.open("write")
    world.until_state(urgent, "blocked", "failed")
    row = world.until_state(big, "succeeded", "failed", "partial")

    assert (row["state"], row["crashes"], row["attempt"]) == ("succeeded", 0, 0), row["error"]
    first = next(line for line in world.logs().splitlines() if "run.makes_room" in line)
    assert str(big) not in first, "the helper makes room first, not who leads the run"
    check_all_is_sent(world, big)


def test_a_worker_that_outlives_its_child_which_led_a_run_that_ended_keeps_no_helper(world: Any) -> None:
    world.add_sync(rows=ROWS)
    world.shut("write")
    run_id = world.add_run()
    leader = world.start_worker(**BIG)
    world.until(lambda: len(world.standing("write")) == 1)
    world.start_worker(**BIG)
    world.until(lambda: len(world.standing("write")) == 2)
    leader.kill()

    world.engine.execute(  # as whoever terminates a run
        "UPDATE wsync.run SET state = 'cancelled', epoch = epoch + 1, cancel_reason = 'terminated', lease_until = wsync.clock(),"
        " finished_at = wsync.clock() WHERE run_id = %s",
        (run_id,),
    )
    second = world.add_run()
    assert {helper["state"] for helper in helpers_of(world, run_id)} == {"cancelling", "cancelled"}
    world.open("write")
    row = world.until_state(second, "succeeded", "failed", "partial")

    assert row["state"] == "succeeded", row["error"]
    assert not any(is_running(child, words=()) for child in world.standing("write") if child not in {c["pid"] for c in world.sent()})
    assert sorted({n for chunk in world.sent() for n in chunk["ids"]}) == list(range(ROWS))
    assert world.run_row(run_id)["folded_at"] is not None
