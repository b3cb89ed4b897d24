"""What is done to the processes and servers, drawn from a seed: the same seed draws the same faults at the same times."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from redis.exceptions import RedisError

from .chaos_lines import Line
from .chaos_world import LEASE_S, Role, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One of them, `at_s` after the start; `draw` picks whom it meets."""

    at_s: float
    kind: str
    draw: float


def drawn_faults(seed: int, length_s: float, kinds: dict[str, int]) -> list[Fault]:
    """Faults over `length_s`, one in about 1.4 s; `kinds` are names with weights."""
    draw = random.Random(seed)
    faults, at_s = [], draw.uniform(1.0, 2.0)
    while at_s < length_s:
        (kind,) = draw.choices(list(kinds), list(kinds.values()))
        faults.append(Fault(at_s=at_s, kind=kind, draw=draw.random()))
        at_s += draw.uniform(0.6, 2.2)
    return faults


KINDS = {
    "kill_scheduler": 2,
    "kill_worker": 2,
    "kill_child": 3,
    "stop_scheduler": 1,
    "stop_worker": 2,
    "stop_child": 2,
    "flush": 2,
    "kill_valkey": 1,
    "restart_postgres": 1,
    "cut_line": 3,
    "silence_line": 2,
    "cut_warehouse": 2,
    "lose_replies": 3,
    "set_clock": 2,
}
"""All there are, with their weights."""
LONGER_THAN_A_LEASE_S = LEASE_S * 1.4
WRONG_BY_S = (-86_400.0, -3_600.0, -5.0, 5.0, 3_600.0, 86_400.0)


class Faults:
    """Does them; for one thread. What stands still or is cut off goes on by itself after a while."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.done: list[str] = []
        self._later: list[threading.Timer] = []

    def strike(self, faults: list[Fault]) -> None:
        """Each at its time."""
        started_s = time.monotonic()
        pause = threading.Event()
        for fault in faults:
            pause.wait(max(0.0, started_s + fault.at_s - time.monotonic()))
            getattr(self, fault.kind)(fault)
            self.done.append(f"{time.monotonic() - started_s:.1f} {fault.kind}")
        for timer in self._later:
            timer.join()

    def _after(self, seconds: float, work: Callable[..., None], *arguments: object) -> None:
        timer = threading.Timer(seconds, work, arguments)
        timer.start()
        self._later.append(timer)

    def _any(self, fault: Fault) -> Role:
        return self.world.roles[int(fault.draw * 4)]

    def _worker(self, fault: Fault) -> Role:
        return self.world.roles[2 + int(fault.draw * 2)]

    def _child(self, fault: Fault) -> psutil.Process | None:
        children = self.world.children(self._worker(fault))
        return children[int(fault.draw * 997) % len(children)] if children else None

    def kill_scheduler(self, fault: Fault) -> None:
        self.world.kill(self.world.roles[int(fault.draw * 2)])

    def kill_worker(self, fault: Fault) -> None:
        self.world.kill(self._worker(fault))

    def kill_child(self, fault: Fault) -> None:
        if (child := self._child(fault)) is not None:
            self.world.signal(child, signal.SIGKILL)

    def stop_scheduler(self, fault: Fault) -> None:
        self._stop(self.world.roles[int(fault.draw * 2)].process)

    def stop_worker(self, fault: Fault) -> None:
        self._stop(self._worker(fault).process)

    def stop_child(self, fault: Fault) -> None:
        if (child := self._child(fault)) is not None:
            self._stop(child)

    def _stop(self, process: psutil.Process | subprocess.Popen[bytes]) -> None:
        self.world.signal(process, signal.SIGSTOP)
        self._after(LONGER_THAN_A_LEASE_S, self.world.signal, process, signal.SIGCONT)

    def set_clock(self, fault: Fault) -> None:
        """A process whose wall clock jumps soon after its start."""
        self.world.kill(self._any(fault), clock_offset_s=WRONG_BY_S[int(fault.draw * 997) % len(WRONG_BY_S)])

    def kill_valkey(self, fault: Fault) -> None:
        self.world.restart_valkey()

    def restart_postgres(self, fault: Fault) -> None:
        self.world.restart_postgres()

    def cut_line(self, fault: Fault) -> None:
        line = self._line(fault)
        line.cut(stays_down=fault.draw > 0.5)
        self._after(fault.draw * 4, line.restore)

    def silence_line(self, fault: Fault) -> None:
        line = self._line(fault)
        if fault.draw > 0.3:
            line.silence()
        else:
            line.slow_down(0.1)
        self._after(1 + fault.draw * 4, line.restore)

    def _line(self, fault: Fault) -> Line:
        role = self._any(fault)
        return role.postgres if int(fault.draw * 997) % 2 else role.redis

    def cut_warehouse(self, fault: Fault) -> None:
        self.world.warehouse_line.cut()

    def lose_replies(self, fault: Fault) -> None:
        self.world.endpoint.replies_to_lose = 3

    def flush(self, fault: Fault) -> None:
        try:
            with self.world.redis() as client:
                client.flushall()
        except RedisError:
            pass  # it is being restarted: it holds nothing anyway
