"""How many calls at once: the decisions, against destinations whose latency is a formula, and the gate that keeps to them."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable

import pytest

from wsync_engine.pipeline.call_budget import NoBudget, Turn
from wsync_engine.pipeline.concurrency import AdaptiveLimit
from wsync_engine.pipeline.turns import CallGate
from wsync_sdk import RetryableError, StreamLimits

Latency = Callable[[int], float]
Fails = Callable[[float, int], bool]


def play(most: int, latency_s: Latency, *, calls: int = 1_500, fails: Fails = lambda at_s, calls: False) -> list[tuple[float, int]]:
    """(when, limit) after each call; `latency_s` of so many calls at once, give or take a fifth."""
    draw, limit = random.Random(1), AdaptiveLimit(most)
    running: list[tuple[float, float]] = []
    now_s, history, started = 0.0, [], 0
    while len(history) < calls:
        while len(running) < limit.now:
            started += 1
            heapq.heappush(running, (now_s + latency_s(len(running) + 1) * draw.uniform(0.9, 1.1), now_s))
        was_full = len(running) >= limit.now
        now_s, began_s = heapq.heappop(running)
        if fails(now_s, len(running) + 1):
            limit.failed(began_s=began_s, ended_s=now_s)
        else:
            limit.answered(began_s=began_s, ended_s=now_s, was_full=was_full)
        history.append((now_s, limit.now))
    return history


def mean(history: list[tuple[float, int]]) -> float:
    """Of the limits, after the beginning."""
    later = [limit for _, limit in history[300:]]
    return sum(later) / len(later)


@pytest.mark.parametrize("most", [1, 4, 16, 64])
def test_a_destination_that_bears_all_of_them_soon_gets_all_of_them(most: int) -> None:
    history = play(most, lambda calls: 0.05)

    assert next(at_s for at_s, limit in history if limit == most) < 1.0
    assert mean(history) > 0.85 * most


def test_a_destination_that_does_one_call_after_the_other_gets_few() -> None:
    assert mean(play(16, lambda calls: 0.05 * calls)) < 3


def test_a_destination_with_eight_servers_gets_about_eight() -> None:
    assert 6 < mean(play(64, lambda calls: 0.05 * max(1.0, calls / 8))) < 12


def test_a_destination_that_throttles_beyond_six_gets_about_six_and_is_seldom_asked_for_more() -> None:
    refused = 0

    def throttles(_: float, calls: int) -> bool:
        nonlocal refused
        refused += calls > 6
        return calls > 6

    assert 4 < mean(play(32, lambda calls: 0.05, fails=throttles)) < 7
    assert refused < 0.05 * 1_500


def test_after_an_outage_it_soon_is_what_it_was() -> None:
    history = play(16, lambda calls: 0.05, calls=3_000, fails=lambda at_s, calls: 1 < at_s < 3)

    assert min(limit for at_s, limit in history if 1 < at_s < 3) == 1
    assert next(at_s for at_s, limit in history if at_s > 3 and limit >= 8) < 6


def test_all_calls_that_fail_together_count_once() -> None:
    limit = AdaptiveLimit(8)
    limit.now = 8
    for _ in range(8):
        limit.failed(began_s=0.0, ended_s=1.0)

    assert limit.now == 4


# -- the gate


def go_on() -> None:
    """Nothing ends the wait."""


def gate(budget: NoBudget | None = None, **limits: float) -> CallGate:
    return CallGate(StreamLimits(**limits), budget or NoBudget(), longest_wait_s=30.0)  # type: ignore[arg-type]


def test_no_more_calls_are_inside_than_the_limit() -> None:
    shared, inside, most = gate(concurrency=8), 0, 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal inside, most
        for _ in range(50):
            shared.enter(go_on)
            with lock:
                inside += 1
                most = max(most, inside)
            began_s = time.monotonic()
            with lock:
                inside -= 1
            shared.answered(began_s)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert 1 <= most <= 8


def test_one_call_that_is_told_to_wait_holds_all_and_says_so() -> None:
    told: list[float] = []

    class Budget(NoBudget):
        def asked_to_wait(self, wait_s: float) -> None:
            told.append(wait_s)

    shared = gate(Budget(), concurrency=4)
    shared.enter(go_on)
    shared.failed(time.monotonic(), 0.3)
    asked_at_s = time.monotonic()
    shared.enter(go_on)

    assert time.monotonic() - asked_at_s > 0.29
    assert told == [0.3]


def test_who_would_wait_too_long_for_a_slot_goes_back_to_the_queue() -> None:
    class Budget(NoBudget):
        def next_turn(self, calls_per_s: float | None) -> Turn:
            return Turn(held_s=120.0)

    with pytest.raises(RetryableError) as caught:
        gate(Budget()).enter(go_on)

    assert 119 < (caught.value.retry_after_s or 0) <= 132


def test_calls_are_apart_as_the_rate_says_whatever_the_budget_gives() -> None:
    shared = gate(calls_per_s=50.0, concurrency=4)
    began_s = time.monotonic()
    for _ in range(6):
        shared.enter(go_on)
        shared.left()

    assert time.monotonic() - began_s >= 5 / 50


def test_who_waits_for_a_place_leaves_when_there_is_nothing_to_wait_for() -> None:
    class Ended(Exception):
        pass

    shared, looks = gate(concurrency=1), 0
    shared.enter(go_on)

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise Ended

    with pytest.raises(Ended):
        shared.enter(look)
    shared.left()
    shared.enter(go_on)  # the place is free again


def test_a_rise_lets_in_all_who_wait() -> None:
    shared, inside = gate(concurrency=8), threading.Semaphore(0)

    def call() -> None:
        shared.enter(go_on)
        inside.release()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        assert inside.acquire(timeout=10)
    shared._limit.now = 8
    shared.left()
    for _ in range(6):
        assert inside.acquire(timeout=10)
    for thread in threads:
        thread.join(10)
