"""How many calls a destination is sent at once: few at first, more while that makes it faster, half as many when it fails.

Two numbers of calls at once are compared by the medians of their latencies. By Little's law throughput is calls at once over latency, so going from
`a` to `b` makes it faster by `b / a * latency_a / latency_b`. As long as latency holds, that is all of `b / a`; where calls only wait for one another at
the destination it is nothing, and the lower number is kept. Medians are of full lanes only: a lane that is short of work says nothing about more.
Decides only; no clock, no I/O. docs/decisions/0009 has the figures of what else was tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

__all__ = ["AdaptiveLimit"]

FIRST = 2
LEAST_SAMPLES = 4
"""So many latencies make a median; while the limit rises, as many as there are calls at once."""
GAIN_SHARE = 0.15
"""More calls at once are kept if they bring at least this share of what they could."""
SLOWER = 2.0
"""A settled destination that takes so many times as long is asked whether fewer calls at once would do."""
FIRST_REST = 8
LONGEST_REST = 64
"""Windows between two trials of another limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Another limit than before is tried: `former` calls at once took `latency_s`."""

    former: int
    latency_s: float


class AdaptiveLimit:
    """Between 1 and `most` calls at once. One thread at a time.

    :param most: the stream's own limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.now = min(FIRST, most)
        self._latencies_s: list[float] = []
        self._trial: _Trial | None = None
        self._settled_s: float | None = None
        """Latency of the limit that was settled on; None: on the rise."""
        self._failed_at = most + 1
        self._rest = 0
        self._next_rest = FIRST_REST
        self._goes_up = False
        self._passed_over = 0
        self._changed_at_s = -math.inf

    def answered(self, *, began_s: float, ended_s: float, was_full: bool) -> None:
        """A call was answered, whatever it said of its rows. `was_full`: as many calls ran beside it as may."""
        if not was_full or began_s < self._changed_at_s or self._most == 1:
            return
        if self._passed_over > 0:  # it met a destination that the limit before had left emptier, or fuller
            self._passed_over -= 1
            return
        self._latencies_s.append(ended_s - began_s)
        if len(self._latencies_s) >= (self.now if self._settled_s is None else max(LEAST_SAMPLES, self.now)):
            latency_s = max(median(self._latencies_s), 1e-6)
            self._latencies_s.clear()
            self._judge(latency_s, ended_s)

    def failed(self, *, began_s: float, ended_s: float) -> None:
        """A call was throttled, refused for now, or had no answer in time: half as many, once for all calls that ran then."""
        if began_s < self._changed_at_s:
            return
        if self._trial is not None or self._settled_s is not None:  # else it fails at whatever number: that says nothing of this one
            self._failed_at = max(2, self.now)
            self._next_rest = min(LONGEST_REST, self._next_rest * 2)
        self._set(max(1, self.now // 2), ended_s)
        self._trial = self._settled_s = None

    def _judge(self, latency_s: float, now_s: float) -> None:
        """A window is full: keep a trial or go back, and begin the next one when it is time."""
        trial, self._trial = self._trial, None
        if trial is None:
            self._judge_settled(latency_s, now_s)
        elif not self._is_worth_it(trial, latency_s):
            self._set(trial.former, now_s)
            self._settle(trial.latency_s, is_as_before=True)
        else:
            self._failed_at = self._most + 1 if self.now >= self._failed_at else self._failed_at
            if self._settled_s is None:
                self._rise(latency_s, now_s)
            else:
                self._settle(latency_s, is_as_before=False)

    def _rise(self, latency_s: float, now_s: float) -> None:
        """From the beginning, or from where a failure left it: up to the limit, or to just below where it failed."""
        higher = self._higher()
        if self.now < higher < self._failed_at:
            self._try(higher, latency_s, now_s)
        else:
            self._settle(latency_s, is_as_before=higher >= self._failed_at)

    def _judge_settled(self, latency_s: float, now_s: float) -> None:
        if self._settled_s is None:
            self._rise(latency_s, now_s)
            return
        self._rest -= 1
        is_slower = latency_s > SLOWER * self._settled_s and self.now > 1
        if not is_slower and self._rest > 0:
            return
        self._goes_up = not is_slower and (not self._goes_up or self.now == 1) and self.now < self._most
        self._try(self._higher() if self._goes_up else max(1, self.now // 2), latency_s, now_s)

    def _is_worth_it(self, trial: _Trial, latency_s: float) -> bool:
        """Whether the limit that is tried is better than the former one."""
        gain = self.now / trial.former * trial.latency_s / latency_s
        if self.now < trial.former:  # worth it where the former one, which is higher, is not
            return 1 / gain < 1 + GAIN_SHARE * (trial.former / self.now - 1)
        return gain >= 1 + GAIN_SHARE * (self.now / trial.former - 1)

    def _higher(self) -> int:
        """Twice as many until the number at which a call failed once, then one more at a time."""
        doubled = min(self.now * 2, self._most)
        return doubled if doubled < self._failed_at else min(self.now + 1, self._most)

    def _try(self, limit: int, latency_s: float, now_s: float) -> None:
        self._trial = _Trial(former=self.now, latency_s=latency_s)
        self._set(limit, now_s)

    def _settle(self, latency_s: float, *, is_as_before: bool) -> None:
        """Stay for a while; longer each time that another limit was no better."""
        self._settled_s = latency_s
        self._rest = self._next_rest
        self._next_rest = min(LONGEST_REST, self._next_rest * 2) if is_as_before else FIRST_REST

    def _set(self, limit: int, now_s: float) -> None:
        self.now = limit
        self._changed_at_s = now_s
        self._latencies_s.clear()
        self._passed_over = limit
