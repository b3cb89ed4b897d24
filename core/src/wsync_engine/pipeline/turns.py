"""When a call of a run may start: so many at once, each at its place of the rate, none while the destination asked to be left alone.

All threads that send for one run share one `CallGate`; what other runs on the same credential leave to it comes through `CallBudget`.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

from wsync_engine.pipeline.call_budget import CallBudget
from wsync_engine.pipeline.concurrency import AdaptiveLimit
from wsync_sdk import RetryableError, StreamLimits

__all__ = ["CallGate", "Look"]

_LOOK_S = 0.2
"""How long a wait does not look whether it is worth going on."""
HOLD_SPREAD = 0.1
"""Who waits as asked waits up to this share longer, so that not all come back at one instant."""


Look = Callable[[], None]
"""Asked now and then by who waits; raises when there is nothing to wait for any more."""


class CallGate:
    """What the threads of one run pass before each call, and tell what became of it. Any thread.

    :param longest_wait_s: a longer one is not worth a slot.
    """

    def __init__(self, limits: StreamLimits, budget: CallBudget, *, longest_wait_s: float) -> None:
        self._limit = AdaptiveLimit(limits.concurrency)
        self._calls_per_s = limits.calls_per_s
        self._apart_s = 1 / limits.calls_per_s if limits.calls_per_s else 0.0
        self._budget = budget
        self._longest_wait_s = longest_wait_s
        self._inside = 0
        self._next_s = 0.0
        self._held_until_s = 0.0
        self._failed_at_s = -math.inf
        self.failures_in_a_row = 0
        """Since the destination last answered; calls that ran at the same time and failed count once."""
        self._lock = threading.Lock()
        self._place = threading.Condition(self._lock)

    @property
    def calls_at_once(self) -> int:
        """How many may be made at once now."""
        return self._limit.now

    def enter(self, look: Look) -> None:
        """Return when a call may start; then exactly one of `answered`, `failed` and `left` must follow.

        :raises RetryableError: the destination asked for a wait that is too long for a slot. Raises what `look` does.
        """
        with self._lock:
            while self._inside >= self._limit.now:
                look()
                self._place.wait(_LOOK_S)
            look()
            self._inside += 1
        try:
            while True:
                self.pause(self._reserve_s(look), look)
                if self._held_s() <= 0:
                    return
        except BaseException:
            self.left()
            raise

    def answered(self, began_s: float) -> None:
        """The destination took or refused what it was sent. `began_s`: when the call began, monotonic."""
        with self._lock:
            was_full = self._inside >= self._limit.now
            self._limit.answered(began_s=began_s, ended_s=time.monotonic(), was_full=was_full)
            self.failures_in_a_row = 0
            self._leave()

    def failed(self, began_s: float, retry_after_s: float | None) -> None:
        """The call had no answer, or one that asks for another try: fewer at once, and none for as long as it says."""
        with self._lock:
            now_s = time.monotonic()
            self._limit.failed(began_s=began_s, ended_s=now_s)
            if began_s >= self._failed_at_s:
                self._failed_at_s = now_s
                self.failures_in_a_row += 1
            self._leave()
        if retry_after_s:
            self._hold(retry_after_s)
            self._budget.asked_to_wait(retry_after_s)

    def back_off(self, seconds: float, look: Look) -> None:
        """Wait after a failure; where it is the destination that fails, and not these rows alone, nobody calls it until then."""
        if self.failures_in_a_row > 1:
            with self._lock:
                self._held_until_s = max(self._held_until_s, time.monotonic() + seconds)
        self.pause(seconds, look)

    def left(self) -> None:
        """There was no call, or nothing is known of it."""
        with self._lock:
            self._leave()

    def pause(self, seconds: float, look: Look) -> None:
        """Wait; raises what `look` does."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            look()
            time.sleep(min(left_s, _LOOK_S))

    # -- inside

    def _reserve_s(self, look: Look) -> float:
        """Take a place; how long it is until then, or until it is worth asking again."""
        held_s = self._held_s()
        if held_s > self._longest_wait_s:
            raise RetryableError("the destination asked to be left alone", next_step="nothing: it is tried again", retry_after_s=held_s)
        if held_s > 0:
            return held_s
        turn = self._budget.next_turn(self._calls_per_s)
        while turn.ask_again and turn.held_s <= 0:
            self.pause(turn.wait_s, look)
            turn = self._budget.next_turn(self._calls_per_s)
        if turn.held_s > 0:
            self._hold(turn.held_s)
            return 0.0
        with self._lock:  # never faster than the limit, whatever the others leave
            now_s = time.monotonic()
            at_s = max(now_s + turn.wait_s, self._next_s)
            self._next_s = at_s + self._apart_s
            return at_s - now_s

    def _hold(self, seconds: float) -> None:
        with self._lock:
            until_s = time.monotonic() + seconds * (1 + HOLD_SPREAD * random.random())
            self._held_until_s = max(self._held_until_s, until_s)

    def _held_s(self) -> float:
        return self._held_until_s - time.monotonic()

    def _leave(self) -> None:
        self._inside -= 1
        self._place.notify(max(0, self._limit.now - self._inside))
