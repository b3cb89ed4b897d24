"""A slot: one warm child process and the run it executes."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Literal

import psutil
import structlog

from wsync_engine.worker import fork_server
from wsync_engine.worker.child import ChildSetup, child_main
from wsync_engine.worker.messages import (
    Assignment,
    Called,
    Cancel,
    Drain,
    Ended,
    Lost,
    Pause,
    Renewed,
    Resume,
    Tick,
    TurnsGiven,
    TurnsWanted,
    Yield,
)
from wsync_engine.worker.task_groups import TaskGroups

__all__ = ["Slot", "StopReason", "Tenure"]

_log = structlog.get_logger()
StopReason = Literal["cancelled", "timeout", "stalled", "drain", "memory", "lost"]


@dataclass(slots=True, kw_only=True)
class Tenure:
    """A run in a slot.

    :param ends_at_s: when its time is over, monotonic. :param stopping: why it shall end, once it shall.
    :param priority: of its run. :param started_at_s: when it got the slot, monotonic. :param is_yielding: it was asked to make room,
        at `yields_at_s`. :param paused_at_s: since when it stands still because it has come to no border. :param has_paused: it has done so before.
    :param answers: how often its destination took or refused rows, as far as was noted, at `answered_at_s`, monotonic. :param kill_at_s: when its process is killed, if it has not ended by then.
    :param moved_at_s: when its counters last changed; as long as it has none, when its child last spoke: a query may take its time until the first row.
    """

    assignment: Assignment
    ends_at_s: float
    stall_s: float
    moved_at_s: float
    priority: int
    started_at_s: float
    is_yielding: bool = False
    yields_at_s: float = 0.0
    paused_at_s: float | None = None
    has_paused: bool = False
    stopping: StopReason | None = None
    kill_at_s: float | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    answers: int = 0
    answered_at_s: float = -math.inf

    def take_counters(self, counters: Mapping[str, int], now_s: float) -> None:
        """What the child counted so far."""
        if not counters or counters != self.counters:
            self.moved_at_s = now_s
        self.counters = counters

    def resume(self, now_s: float) -> None:
        """It goes on, and a new turn begins; it is not charged for the time in which it stood still."""
        paused_s = now_s - (now_s if self.paused_at_s is None else self.paused_at_s)
        self.ends_at_s, self.moved_at_s = self.ends_at_s + paused_s, self.moved_at_s + paused_s
        self.started_at_s, self.paused_at_s, self.is_yielding, self.has_paused = now_s, None, False, True

    @property
    def is_lost(self) -> bool:
        """Another holder may have the run."""
        return self.stopping == "lost"


class Slot:
    """One warm child at a time; the supervisor's side. One thread. `monotonic_s`: the supervisor's clock. `groups`: where the children's memory is limited."""

    def __init__(self, setup: ChildSetup, *, monotonic_s: Callable[[], float] = time.monotonic, groups: TaskGroups | None = None) -> None:
        self._setup = setup
        self._groups = groups
        self._monotonic_s = monotonic_s
        self.tenure: Tenure | None = None
        self.runs_done = 0
        self.has_served = False
        self.started_at_s = 0.0
        self.start()

    def start(self) -> None:
        """Fork a child; the one before, if any, ends because its pipe closes. Where the fork server dies meanwhile, the slot stays without one."""
        if self.started_at_s:
            self.pipe.close()
            self._leave_group()
        self.started_at_s = self._monotonic_s()
        self.runs_done = 0
        context = fork_server.start()  # it may have died, and its children with it
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=child_main, args=(theirs, self._setup), daemon=True)
        try:
            self.process.start()
        except (EOFError, OSError) as exc:  # it looked alive a moment ago
            _log.warning("child.not_started", error=type(exc).__name__)
        finally:
            theirs.close()
        self._enter_group()

    def _enter_group(self) -> None:
        if self._groups is None or self.process.pid is None:
            return
        try:
            self._groups.add(self.process.pid)
        except OSError as exc:
            _log.warning("child.without_group", error=exc.strerror, next_step="its memory is looked at once a second")

    def _leave_group(self) -> None:
        if self._groups is not None and self.process.pid is not None:
            self._groups.remove(self.process.pid)

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the kernel ended the child because it took more than it may."""
        return self._groups is not None and self.process.pid is not None and self._groups.is_exceeded(self.process.pid)

    @property
    def is_free(self) -> bool:
        """Whether a run may be assigned."""
        return self.tenure is None and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether the child's process is there."""
        return self.process.is_alive()

    def end(self, timeout_s: float) -> None:
        """Kill the child, if there is one, wait for it and free the slot's pipe."""
        self.kill()
        if self.process.pid is not None:
            self.process.join(timeout_s)
        self.pipe.close()
        self._leave_group()

    def assign(self, assignment: Assignment, *, left_s: float, stall_s: float, priority: int) -> None:
        """Hand over a run, which may take `left_s`."""
        now_s = self._monotonic_s()
        self.tenure = Tenure(
            assignment=assignment, ends_at_s=now_s + left_s, stall_s=stall_s, moved_at_s=now_s, started_at_s=now_s, priority=priority
        )
        self.has_served = True
        self.tell(assignment)

    def tell(self, message: Assignment | Renewed | Cancel | Drain | Yield | Pause | Resume | Lost | TurnsGiven) -> None:
        """Send; a child that is gone is found out by its process."""
        with suppress(OSError):
            self.pipe.send(message)

    def messages(self) -> list[Tick | Called | Ended | TurnsWanted]:
        """What the child said since the last call."""
        found: list[Tick | Called | Ended | TurnsWanted] = []
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                found.append(self.pipe.recv())
        return found

    def rss_bytes(self) -> int:
        """Memory of the child now; 0 when it is gone."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def kill(self) -> None:
        """End the child and all that it started."""
        if self.process.pid is None or not self.is_alive:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            self.process.kill()

    @property
    def exit_signal(self) -> str:
        """The number of the signal that ended it, `none` when it ended by itself."""
        code = self.process.exitcode
        return str(-code) if code is not None and code < 0 else "none"

    def how_it_died(self) -> str:
        """In words."""
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"its process was killed by signal {-code}"
        return f"its process ended by itself with status {code}"
