"""Runs on one credential share its rate, and what its destination asks for, also where different workers execute them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wsync_engine.index.connection import connect
from wsync_engine.index.turns import Turns
from wsync_engine.model.ids import uuid7
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.worker.child import ChildSetup
from wsync_engine.worker.credentials import shared_credential
from wsync_engine.worker.host import Host
from wsync_engine.worker.messages import ConnectionPart, TurnsWanted
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.slot_pool import SlotPool
from wsync_engine.worker.slots import Slot, Tenure
from wsync_engine.worker.turns import give_turns
from wsync_sdk import RetryableError

from .conftest import KEY, World

RATE = 10.0
CALLS = 16
"""Of two runs of 40 rows."""
ASKED_S = 2.0
"""What the destination asks for, once."""


def test_two_workers_keep_to_the_rate_of_one_credential_between_them(world: World) -> None:
    world.add_sync(rows=40, calls_per_s=RATE)
    runs = [world.add_run(), world.add_run(sync_id=world.copy_sync())]
    for _ in runs:
        world.start_worker()
    for run_id in runs:
        world.until_state(run_id, "succeeded")

    times = sorted(call["at_s"] for call in world.sent())
    assert len(times) == CALLS
    assert times[-1] - times[0] >= (CALLS - 1) / RATE - 0.3, "each by itself would take half as long"


def test_what_one_run_is_asked_to_wait_another_workers_run_waits_too(world: World) -> None:
    world.add_sync(rows=40, calls_per_s=1_000.0)
    world.shut("write")
    first = world.add_run()
    world.start_worker()
    world.until_reached("write")
    (world.folder / "throttle").touch()
    second = world.add_run(sync_id=world.copy_sync())
    world.start_worker()
    world.until(lambda: any(world.client.hexists(name, "held") for name in world.client.scan_iter("ws2:{k:*")))
    opened_at_s = time.monotonic()
    world.open("write")
    for run_id in (first, second):
        world.until_state(run_id, "succeeded")

    later = [call["at_s"] for call in world.sent() if call["at_s"] > opened_at_s]
    assert len(later) == 3 + CALLS / 2, "those of the first run after the one that it stood in, and all of the second one"
    assert min(later) - opened_at_s > ASKED_S / 2


# -- what a supervisor answers


class Listening(Slot):
    """Has no process; keeps what it is told."""

    is_alive = True

    def start(self) -> None:
        self.told: list[Any] = []

    def tell(self, message: Any) -> None:
        self.told.append(message)


def listening(credential: str) -> Listening:
    slot = Listening(ChildSetup(api_url="", storage_url="", opener=lambda _: NotImplemented))
    assignment: Any = SimpleNamespace(run_id=uuid7(), epoch=1, rate_credential=credential)
    slot.tenure = Tenure(assignment=assignment, ends_at_s=0, stall_s=0, moved_at_s=0, priority=1, started_at_s=0)
    return slot


def wanted(slot: Slot, **want: Any) -> tuple[Slot, TurnsWanted]:
    assert slot.tenure is not None
    return slot, TurnsWanted(run_id=slot.tenure.assignment.run_id, epoch=1, **want)


@pytest.fixture
def pool() -> SlotPool:
    made = SlotPool(WorkerOptions(api_url="", storage_url=""), Host())
    made.slots = [listening("a"), listening("a"), listening("b")]
    return made


def call(tell: Callable[[], object]) -> None:
    """As a worker does, which survives that the index is away."""
    with suppress(RetryableError):
        tell()


def test_while_the_index_is_away_runs_are_told_at_once_to_keep_their_own_pace(pool: SlotPool) -> None:
    pool.wanted = [wanted(pool.slots[0], calls=4, calls_per_s=10.0)]

    give_turns(pool, Turns(connect("redis://127.0.0.1:1/0", timeout_s=0.5)), call, Host.clocks)

    assert [(answer.is_shared, answer.count) for answer in cast(Listening, pool.slots[0]).told] == [(False, 0)]
    assert pool.wanted == []


def test_also_without_an_index_the_other_runs_of_the_worker_hear_that_the_destination_asked_for_a_wait(pool: SlotPool) -> None:
    pool.wanted = [wanted(pool.slots[0], hold_s=20.0)]

    give_turns(pool, Turns(connect("redis://127.0.0.1:1/0", timeout_s=0.5)), call, Host.clocks)

    told = [[message.held_until_s - Host.clocks.boot_time_s() for message in cast(Listening, slot).told] for slot in pool.slots]
    assert told == [[], [pytest.approx(20, abs=1)], []], "the others on the credential, and nobody else"


def test_what_a_run_wanted_that_has_left_its_slot_takes_no_place(pool: SlotPool, redis_url: str) -> None:
    turns = Turns(connect(redis_url))
    credential = uuid7().hex
    pool.slots = [listening(credential)]
    pool.wanted = [(pool.slots[0], TurnsWanted(run_id=uuid7(), epoch=1, calls=20, calls_per_s=10.0))]

    give_turns(pool, turns, call, Host.clocks)

    assert turns.take(credential, 1, 10.0).first_s == 0
    assert cast(Listening, pool.slots[0]).told == []


# -- who shares


KEYRING = Keyring.from_text(KEY)
SINK = ConnectionPart(
    plugin="http",
    config={"url": "https://api.example.com/people", "secret_headers": {"Authorization": "env:TOKEN"}},
    secret_by_reference={"env:TOKEN": "Bearer secret"},
)


def of(sink: ConnectionPart) -> str:
    return shared_credential(sink, KEYRING)


def test_tenants_that_call_one_host_with_one_secret_share_a_budget_whatever_they_call_it() -> None:
    other = replace(
        SINK,
        config={
            "url": "https://API.example.com/lists",
            "secret_headers": {"Authorization": "file:/run/secrets/b/token"},
            "limits": {"max_rows": 7},
        },
        secret_by_reference={"file:/run/secrets/b/token": "Bearer secret"},
    )

    assert of(SINK) == of(other) != ""


@pytest.mark.parametrize(
    "other",
    [
        replace(SINK, secret_by_reference={"env:TOKEN": "Bearer another"}),
        replace(SINK, plugin="suprsend"),
        replace(SINK, config={**SINK.config, "url": "https://evil.example.net/people"}),
    ],
    ids=["secret", "plugin", "host"],
)
def test_another_secret_plugin_or_host_is_another_budget(other: ConnectionPart) -> None:
    assert of(other) != of(SINK)


def test_the_name_of_a_credential_tells_nothing_without_the_installations_key() -> None:
    assert of(SINK) != shared_credential(SINK, Keyring.throwaway())


@pytest.mark.parametrize("secrets", [{}, {"env:ANOTHER": "x"}])
def test_who_has_no_secret_or_one_that_leads_nowhere_shares_with_nobody(secrets: dict[str, str]) -> None:
    assert of(replace(SINK, secret_by_reference=secrets)) == ""
    assert of(replace(SINK, config={"url": "https://api.example.com"}, secret_by_reference={})) == ""
