"""What a worker needs of the machine it runs on: clocks, chance, wake-ups, and the processes of its children. All of it can be given another way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Protocol

from wsync_engine.index.connection import Client
from wsync_engine.worker import fork_server
from wsync_engine.worker.child import ChildSetup
from wsync_engine.worker.fence import boot_time_s
from wsync_engine.worker.live import WakeListener
from wsync_engine.worker.slots import Slot
from wsync_engine.worker.task_groups import TaskGroups

__all__ = ["Clocks", "Host", "Listener"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Time of this machine, and chance. `draw`: uniform between two numbers.

    :param monotonic_s: for waiting. :param boot_time_s: the children's too, see `fence`.
    """

    monotonic_s: Callable[[], float] = time.monotonic
    boot_time_s: Callable[[], float] = boot_time_s
    draw: Callable[[float, float], float] = random.uniform


class Listener(Protocol):
    """Wake-ups for a worker: from its channel in the index, from its own threads and signal handlers."""

    def wake(self, *, shall_beat: bool = False) -> None:
        """From any thread."""

    def clear(self) -> bool:
        """Forget the wake-ups so far; True: one of them asked for a heartbeat."""

    def close(self) -> None:
        """No more wake-ups."""


class Host:
    """This machine, with children as processes. `groups`: where the children's memory is limited."""

    clocks = Clocks()

    def __init__(self, groups: TaskGroups | None = None) -> None:
        self._groups = groups

    def start(self) -> None:
        """Before anything that a child should not inherit; called by the thread that the children are to die with."""
        fork_server.start()

    def listen(self, client: Client, channel: str) -> Listener:
        """Wake-ups from now on."""
        return WakeListener(client, channel)

    def new_slot(self, setup: ChildSetup) -> Slot:
        """A slot with a child of its own."""
        return Slot(setup, monotonic_s=self.clocks.monotonic_s, groups=self._groups)

    def wait(self, listener: Listener, slots: Sequence[Slot], timeout_s: float) -> bool:
        """Until there is a wake-up, a child says something or dies, or the time is over; True: there is a wake-up."""
        assert isinstance(listener, WakeListener)
        living = [slot for slot in slots if slot.is_alive]  # the dead ones would be ready for ever
        ready = wait([listener.reading, *[x for slot in living for x in (slot.pipe, slot.process.sentinel)]], timeout_s)
        return listener.reading in ready
