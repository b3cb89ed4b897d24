"""What a child does with the places that it is given, by a clock that is moved by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.worker.budget import APART_S, LATE_S, PATIENCE_S, ChildBudget
from wsync_engine.worker.messages import TurnsGiven, TurnsWanted

RUN = uuid7()


class Child:
    """A budget, what it said, and the time."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.said: list[TurnsWanted] = []
        self.budget = ChildBudget(TurnsWanted(run_id=RUN, epoch=1), self.said.append, clock=lambda: self.now_s)

    def answer(self, count: int = 0, *, first_s: float = 0.0, calls_per_s: float = 10.0, **answer: float | bool) -> None:
        given = TurnsGiven(run_id=RUN, epoch=1, count=count, first_s=self.now_s + first_s, apart_s=1 / calls_per_s)
        self.budget.given(replace(given, **answer))  # type: ignore[arg-type]

    def waits_s(self, turns: int, calls_per_s: float = 10.0) -> list[float]:
        found = [self.budget.next_turn(calls_per_s) for _ in range(turns)]
        assert not any(turn.ask_again for turn in found)
        return [round(turn.wait_s, 6) for turn in found]


@pytest.fixture
def child() -> Child:
    return Child()


def test_the_first_call_asks_and_goes_at_the_place_that_it_is_given(child: Child) -> None:
    assert child.budget.next_turn(10.0).ask_again
    child.answer(2, first_s=0.3)

    assert child.waits_s(2) == [0.3, 0.4]


def test_places_are_asked_for_before_the_last_one_is_gone_and_more_of_them_where_they_ran_out(child: Child) -> None:
    child.budget.next_turn(10.0)
    first = child.said[-1].calls
    child.answer(first)
    child.waits_s(first)
    asked_ahead = len(child.said)
    child.answer(first, first_s=0.2)
    child.waits_s(first)
    child.budget.next_turn(10.0)
    child.answer(1)
    child.waits_s(1)
    child.budget.next_turn(10.0)

    assert asked_ahead == 2, "while the last place was taken, not after it"
    assert child.said[-1].calls > first


def test_nothing_is_asked_twice_while_the_answer_is_on_its_way(child: Child) -> None:
    for _ in range(20):
        child.budget.next_turn(10.0)

    assert len(child.said) == 1


def test_a_place_that_was_not_used_in_time_is_lost(child: Child) -> None:
    child.budget.next_turn(10.0)
    child.answer(10)
    child.now_s += 0.5 + LATE_S + 0.01

    assert child.waits_s(1) == [0.0]
    child.now_s += 10
    assert child.budget.next_turn(10.0).ask_again


def test_places_with_others_between_them_are_all_used(child: Child) -> None:
    child.budget.next_turn(10.0)
    child.answer(2)
    child.answer(2, first_s=0.5)

    assert child.waits_s(4) == [0.0, 0.1, 0.5, 0.6]


def test_without_an_answer_the_run_keeps_its_own_pace_until_there_is_one(child: Child) -> None:
    assert child.budget.next_turn(10.0).ask_again
    child.now_s += PATIENCE_S + 0.01
    assert not child.budget.next_turn(10.0).ask_again

    child.answer(1, first_s=0.7)

    assert child.waits_s(1) == [0.7]


def test_where_the_index_is_away_the_run_goes_on_at_once_and_asks_again_later(child: Child) -> None:
    child.budget.next_turn(10.0)
    child.answer(is_shared=False)
    assert child.waits_s(5) == [0.0] * 5
    asked = len(child.said)

    child.now_s += APART_S
    child.waits_s(1)

    assert len(child.said) == asked + 1


def test_who_gets_no_place_asks_when_there_may_be_one(child: Child) -> None:
    child.budget.next_turn(0.1)
    child.answer(ask_from_s=child.now_s + 8.0)
    turn = child.budget.next_turn(0.1)
    assert (turn.ask_again, len(child.said)) == (True, 1)

    child.now_s += 8.0
    child.budget.next_turn(0.1)

    assert len(child.said) == 2


def test_what_another_run_was_asked_to_wait_holds_here_too(child: Child) -> None:
    child.answer(is_reply=False, held_until_s=child.now_s + 20)

    assert child.budget.next_turn(None).held_s == child.budget.next_turn(10.0).held_s == 20
    child.now_s += 20
    assert child.budget.next_turn(None).held_s == 0


def test_a_run_without_a_rate_never_waits_for_an_answer_and_asks_once_a_second(child: Child) -> None:
    for _ in range(50):
        turn = child.budget.next_turn(None)
        assert not turn.ask_again
        child.now_s += 0.05

    assert 2 <= len(child.said) <= 3
    assert {want.calls for want in child.said} == {0}


def test_what_this_run_is_asked_to_wait_is_said(child: Child) -> None:
    child.budget.asked_to_wait(7.0)

    assert [want.hold_s for want in child.said] == [7.0]
