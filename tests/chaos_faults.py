"""What is done to the processes and servers, drawn from a seed: the same seed draws the same faults at the same times."""

from __future__ import annotations

import random
import signal
import threading
import time
from dataclasses import dataclass

from redis.exceptions import RedisError

from .chaos_world import World


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


class Faults:
    """Does them; for one thread."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.done: list[str] = []

    def strike(self, faults: list[Fault]) -> None:
        """Each at its time."""
        started_s = time.monotonic()
        pause = threading.Event()
        for fault in faults:
            pause.wait(max(0.0, started_s + fault.at_s - time.monotonic()))
            getattr(self, fault.kind)(fault)
            self.done.append(f"{time.monotonic() - started_s:.1f} {fault.kind}")

    def kill_scheduler(self, fault: Fault) -> None:
        self.world.kill(self.world.roles[int(fault.draw * 2)])

    def kill_worker(self, fault: Fault) -> None:
        self.world.kill(self.world.roles[2 + int(fault.draw * 2)])

    def kill_child(self, fault: Fault) -> None:
        children = self.world.children(self.world.roles[2 + int(fault.draw * 2)])
        if children:
            self.world.signal(children[int(fault.draw * 997) % len(children)], signal.SIGKILL)

    def flush(self, fault: Fault) -> None:
        try:
            with self.world.redis() as client:
                client.flushall()
        except RedisError:
            pass  # it is being restarted: it holds nothing anyway
