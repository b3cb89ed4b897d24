"""May this child write now? Asked before each sink call, answered from the last acknowledged heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from wsync_sdk import StateError

__all__ = ["Fence", "boot_time_s"]


def boot_time_s() -> float:
    """Seconds that also pass while the machine is suspended; the same for all processes of a host."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Fence:
    """The right to write until a time by `clock`. Any thread."""

    def __init__(self, write_until_s: float, *, clock: Callable[[], float] = boot_time_s) -> None:
        self._write_until_s = write_until_s
        self._clock = clock
        self._changed = threading.Condition()
        self._is_lost = False
        self._is_open = False

    def renew(self, write_until_s: float) -> None:
        """A heartbeat was acknowledged."""
        with self._changed:
            self._write_until_s = max(self._write_until_s, write_until_s)
            self._changed.notify_all()

    def lose(self) -> None:
        """Another holder may have the run: nothing is written any more."""
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()

    def open_gate(self) -> None:
        """The run shall end: who waits here goes on to the check that ends it."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when a sink call may start; past the deadline that is when the supervisor has renewed it.

        :raises StateError: the run is no longer ours.
        """
        with self._changed:
            while not self.is_passable():
                self._changed.wait(0.5)

    def is_passable(self) -> bool:
        """Whether a sink call may start now, or the run shall end; raises as `wait`."""
        if self._is_lost:
            raise StateError("the run's lease was lost", next_step="nothing: another worker goes on with it")
        return self._is_open or self._clock() < self._write_until_s
