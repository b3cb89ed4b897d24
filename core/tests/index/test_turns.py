"""Places for calls on one credential, from a real server, by its clock as it is set."""

from __future__ import annotations

from itertools import pairwise

import pytest
import redis

from wsync_engine.index.connection import connect
from wsync_engine.index.layout import rate_key
from wsync_engine.index.turns import AHEAD_S, LONGEST_HOLD_S, Turns
from wsync_sdk import RetryableError

from .conftest import Clock


@pytest.fixture
def turns(client: redis.Redis, clock: Clock) -> Turns:
    return Turns(client, clock=clock)


def instants(turns: Turns, clock: Clock, calls: int, calls_per_s: float, credential: str = "a") -> list[float]:
    """Of the places that are given now, in seconds since 1970."""
    places = turns.take(credential, calls, calls_per_s)
    return [clock() / 1e3 + places.first_s + number / calls_per_s for number in range(places.count)]


def test_places_of_all_who_ask_lie_one_after_the_other(turns: Turns, clock: Clock) -> None:
    found = [at_s for _ in range(3) for at_s in instants(turns, clock, 2, 5.0)]

    assert found == pytest.approx([clock() / 1e3 + number / 5 for number in range(6)])


def test_another_credential_has_places_of_its_own(turns: Turns, clock: Clock) -> None:
    instants(turns, clock, 5, 5.0)

    assert instants(turns, clock, 1, 5.0, "b") == pytest.approx([clock() / 1e3])


def test_each_call_takes_as_much_of_the_budget_as_its_own_limit_says(turns: Turns) -> None:
    turns.take("a", 1, 2.0)

    assert turns.take("a", 1, 10.0).first_s == pytest.approx(0.5)
    assert turns.take("a", 1, 2.0).first_s == pytest.approx(0.6)


def test_no_place_lies_far_ahead_and_who_gets_none_learns_when_to_ask_again(turns: Turns, clock: Clock) -> None:
    given = turns.take("a", 100, 10.0)
    none = turns.take("a", 1, 10.0)
    clock.move(none.again_s)

    assert (given.count, none.count) == (round(AHEAD_S * 10) + 1, 0)
    assert turns.take("a", 1, 10.0).count == 1


def test_places_that_nobody_used_are_not_made_up_for(turns: Turns, clock: Clock) -> None:
    turns.take("a", 1, 10.0)
    clock.move(3_600)

    assert instants(turns, clock, 3, 10.0) == pytest.approx([clock() / 1e3 + number / 10 for number in range(3)])


@pytest.mark.parametrize("calls_per_s", [0.01, 0.3, 7.0, 1_000.0])
def test_in_the_long_run_there_are_as_many_places_as_the_rate_says(turns: Turns, clock: Clock, calls_per_s: float) -> None:
    found: list[float] = []
    end_s = clock() / 1e3 + 50 / calls_per_s
    while clock() / 1e3 < end_s:
        found += instants(turns, clock, 4, calls_per_s)
        clock.move(1 / calls_per_s)

    assert all(later - sooner >= 0.999 / calls_per_s for sooner, later in pairwise(found))
    assert 49 <= sum(at_s < end_s for at_s in found) <= 51


def test_a_destination_that_asked_to_be_left_alone_is_for_as_long_as_it_said_longest(turns: Turns, clock: Clock) -> None:
    turns.take("a", 0, None, hold_s=30.0)
    turns.take("a", 0, None, hold_s=5.0)
    clock.move(10)

    assert turns.take("a", 0, None).held_s == pytest.approx(20)
    assert (turns.take("a", 1, 5.0).count, turns.take("b", 0, None).held_s) == (0, 0)
    clock.move(20)
    assert turns.take("a", 1, 5.0).held_s == 0


def test_nobody_is_held_up_longer_than_a_person_would_bear(turns: Turns) -> None:
    assert turns.take("a", 0, None, hold_s=86_400.0).held_s == pytest.approx(LONGEST_HOLD_S)


def test_what_is_kept_of_a_credential_goes_when_it_says_nothing_any_more(client: redis.Redis) -> None:
    by_the_servers_clock = Turns(client)
    by_the_servers_clock.take("a", 1, 10.0)
    assert 0 < client.pttl(rate_key("a")) <= 1_200

    by_the_servers_clock.take("a", 0, None, hold_s=30.0)
    by_the_servers_clock.take("a", 1, 10.0)

    assert 29_000 < client.pttl(rate_key("a")) <= 31_200


def test_a_server_that_is_not_there_is_a_retryable_error() -> None:
    with pytest.raises(RetryableError):
        Turns(connect("redis://127.0.0.1:1/0", timeout_s=0.5)).take("a", 1, 1.0)
