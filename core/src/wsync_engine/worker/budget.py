"""A child's half of the rate budgets: places for calls, asked for ahead of need over the pipe, so that a call waits for no answer as a rule.

A child has no connection to the index; its supervisor asks for it (`turns.py`). Without an answer the run goes on at its own pace, which is never more
than its connection's limit: a budget that can't be shared for a while is better than a delivery that stands still.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from wsync_engine.pipeline.call_budget import Turn
from wsync_engine.worker.messages import TurnsGiven, TurnsWanted

__all__ = ["ChildBudget"]

PATIENCE_S = 1.0
"""So long a call waits for an answer; from then on the run keeps its own pace, until there is one."""
APART_S = 1.0
"""How often it is asked whether the destination wants to be left alone, where no rate is shared; and again while there is no answer."""
POLL_S = 0.01
MOST_AHEAD_S = 1.0
LATE_S = 0.25
"""A place that is not used for so long, or until the next one, is lost: two runs that catch up at once would be too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """`count` places, the first at `first_s`, by the clock of the host."""

    first_s: float
    count: int
    apart_s: float

    def without(self, count: int) -> _Places:
        """All but the first `count`."""
        return replace(self, first_s=self.first_s + count * self.apart_s, count=self.count - count)

    def expired(self, now_s: float) -> int:
        """How many can't be used any more."""
        late_s = now_s - self.first_s - max(LATE_S, self.apart_s)
        return 0 if late_s <= 0 else min(self.count, math.ceil(late_s / self.apart_s))


class ChildBudget:
    """A `CallBudget`. Any thread.

    :param say: sends to the supervisor. :param ask: the message, but for what is wanted. :param clock: of the host, as the supervisor's.
    """

    def __init__(self, ask: TurnsWanted, say: Callable[[TurnsWanted], None], *, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._places: deque[_Places] = deque()
        self._batch = 1
        self._has_run_out = False
        self._asked_at_s = -math.inf
        self._is_asking = False
        self._ask_from_s = -math.inf
        self._is_alone = False
        self._held_until_s = -math.inf

    def next_turn(self, calls_per_s: float | None) -> Turn:
        """As `CallBudget`: a place, or when to look again."""
        with self._lock:
            now_s = self._clock()
            if self._held_until_s > now_s:
                return Turn(held_s=self._held_until_s - now_s)
            if calls_per_s is None:
                if now_s >= self._asked_at_s + APART_S:
                    self._want(0, None, now_s)
                return Turn()
            return self._place(calls_per_s, now_s)

    def asked_to_wait(self, wait_s: float) -> None:
        """Tell the supervisor, and through it everyone on the credential."""
        self._say(replace(self._ask, hold_s=wait_s))

    def given(self, answer: TurnsGiven) -> None:
        """The supervisor's answer, or that another run was asked to wait."""
        with self._lock:
            self._held_until_s = max(self._held_until_s, answer.held_until_s)
            if not answer.is_reply:
                return
            self._is_asking = False
            self._is_alone = not answer.is_shared
            self._ask_from_s = answer.ask_from_s
            if answer.count:
                self._places.append(_Places(first_s=answer.first_s, count=answer.count, apart_s=answer.apart_s))

    # -- inside

    def _place(self, calls_per_s: float, now_s: float) -> Turn:
        first_s = self._take_first(now_s)
        if first_s is None:
            self._has_run_out = True
            turn = Turn(ask_again=True, wait_s=max(POLL_S, min(PATIENCE_S, self._ask_from_s - now_s)))
        else:
            turn = Turn(wait_s=max(0.0, first_s - now_s))
        if sum(places.count for places in self._places) < (self._batch + 1) // 2 and self._may_ask(now_s):
            if self._has_run_out:
                self._batch = max(1, min(self._batch * 2, int(calls_per_s * MOST_AHEAD_S)))
                self._has_run_out = False
            self._want(self._batch, calls_per_s, now_s)
        if first_s is None and self._is_asking and now_s > self._asked_at_s + PATIENCE_S:
            self._is_alone = True
        return Turn() if first_s is None and self._is_alone else turn

    def _take_first(self, now_s: float) -> float | None:
        """The first place that can still be used; fewer are asked for at once where some could not."""
        while self._places:
            places = self._places.popleft()
            expired = places.expired(now_s)
            if expired:
                self._batch = max(1, self._batch // 2)
            if expired < places.count:
                if places.count > expired + 1:
                    self._places.appendleft(places.without(expired + 1))
                return places.without(expired).first_s
        return None

    def _may_ask(self, now_s: float) -> bool:
        if self._is_alone or self._is_asking:
            return not self._is_asking and now_s >= self._asked_at_s + APART_S
        return now_s >= self._ask_from_s

    def _want(self, calls: int, calls_per_s: float | None, now_s: float) -> None:
        self._asked_at_s, self._is_asking = now_s, True
        self._say(replace(self._ask, calls=calls, calls_per_s=calls_per_s))
