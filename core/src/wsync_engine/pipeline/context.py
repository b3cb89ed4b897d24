"""What the pipeline asks of whoever runs it: may I go on, may I write now, and here is how far I am."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from wsync_engine.pipeline.call_budget import CallBudget, NoBudget
from wsync_sdk import FatalError, RetryableError

__all__ = ["Cancelled", "Destination", "RunContext", "no_faults"]


_LOOK_S = 0.2
"""How long a pause does not look whether the run shall end."""


class Cancelled(FatalError):
    """Somebody asked for the run's end."""


def no_faults(step: str) -> None:
    """Called at each named step; tests stop there."""


@dataclass(slots=True, kw_only=True)
class Destination:
    """What became of calls to the sink in this execution. Any thread.

    :param answers: how often it said of some rows that it took or refused them. :param failures: of calls since then, that may pass.
    """

    answers: int = 0
    failures: list[RetryableError] = field(default_factory=list)

    def answered(self) -> None:
        """A call was answered."""
        self.answers, self.failures = self.answers + 1, []

    @contextmanager
    def called(self) -> Iterator[None]:
        """Around a call: remembers how it failed."""
        try:
            yield
        except RetryableError as exc:
            self.failures.append(exc)
            raise

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around a question: as `called`, but who says when to ask again is there."""
        try:
            yield
        except RetryableError as exc:
            if exc.retry_after_s is None:
                self.failures.append(exc)
            raise


@dataclass(slots=True, kw_only=True)
class RunContext:
    """The worker's side of a run in progress.

    :param is_cancelled: true once the run shall end.
    :param shall_yield: true once others wait for the slot. :param is_paused: true while others have the slot's turn. :param goes_back: true once the run shall be left to whoever takes it up again.
    :param await_right_to_write: returns when a sink call may start and end within the lease; blocks while that is unclear.
        Raises StateError when the lease is lost.
    :param destination: what the sink's calls came to, for those who share the destination.
    :param budget: the calls that all runs on the sink's credential share.
    :param progress: takes counters; cheap, called per batch and chunk. :param call_helpers: tells the index of helpers that were queued, as rows.
    :param faults: called with the name of each step a test may want to stop at.
    """

    tag: str
    is_cancelled: Callable[[], bool] = lambda: False
    shall_yield: Callable[[], bool] = lambda: False
    goes_back: Callable[[], bool] = lambda: False
    is_paused: Callable[[], bool] = lambda: False
    await_right_to_write: Callable[[], None] = lambda: None
    destination: Destination = field(default_factory=Destination)
    budget: CallBudget = field(default_factory=NoBudget)
    progress: Callable[[dict[str, int]], None] = lambda _: None
    call_helpers: Callable[[Sequence[Mapping[str, Any]]], None] = lambda _: None
    faults: Callable[[str], None] = no_faults
    counters: dict[str, int] = field(default_factory=dict)
    _beside: Mapping[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, rows: int) -> None:
        """Add to a counter and report; any thread."""
        with self._lock:
            self.counters[name] = self.counters.get(name, 0) + rows
            self._report()

    def count_beside(self, counters: Mapping[str, int]) -> None:
        """What helpers have counted so far is reported with what is counted here."""
        with self._lock:
            self._beside = dict(counters)
            self._report()

    def _report(self) -> None:
        names = [*self.counters, *(name for name in self._beside if name not in self.counters)]
        self.progress({name: self.counters.get(name, 0) + self._beside.get(name, 0) for name in names})

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the run's end.

        :raises Cancelled: it shall end.
        """
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left_s, _LOOK_S))

    def border(self) -> None:
        """A place where the run can be left and taken up again without losing work.

        :raises Cancelled: it shall end, or make room for others.
        """
        if self.shall_yield() and not self.is_cancelled():
            raise Cancelled("makes room", next_step="nothing: it goes on as soon as it is its turn")
        self.check()

    def check(self) -> None:
        """Stop here if the run shall end, and stand still here while it is paused.

        :raises Cancelled: it shall end.
        """
        while True:
            if self.is_cancelled():
                raise Cancelled("cancelled", next_step="`wsync-engine sync run` starts a new run")
            if not self.is_paused():
                return
            time.sleep(_LOOK_S)
