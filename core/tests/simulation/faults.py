"""Every crash point of the engine's sequences, where it lies in the code, and what may happen there.

A seed's plan is a list of faults: at the n-th time that an effect passes a place, this happens. What is not planned does not happen. Some
points are no place for a fault but a crossing of two actors, or a lost message: they are noted when they occur (`note`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from .stores import Effect, Line

if TYPE_CHECKING:
    from .world import World


class Fault(Enum):
    KILL = "kill its process"
    KILL_CHILD = "kill the child"
    LOST = "lost on the way, not done"
    UNKNOWN = "done, the answer is lost"
    STALL = "the process stands still"
    CUT = "the process is cut off from Postgres"
    CUT_ALL = "the process is cut off from all stores"
    LOSE_COMMIT = "committed, then lost by a crash of Postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A crash point: `before` or `after` which effects it lies, and what may happen there.

    :param shown_by: the test with real processes that shows what a simulation can't, or shows it, too.
    """

    title: str
    before: Callable[[Effect], bool] | None = None
    after: Callable[[Effect], bool] | None = None
    faults: tuple[Fault, ...] = ()
    shown_by: str = ""

    @property
    def is_simulated(self) -> bool:
        return bool(self.faults) or self.shown_by == ""


FIRE = {"clock_try_lock", "clock_wait_lock"}
REAP = {"run_expired", "run_reap", "run_finish_lost"}
FINISH = {"run_finish", "run_requeue", "run_crashed", "update_wsync_run_set"}


def _is(role: str, *names: str) -> Callable[[Effect], bool]:
    return lambda effect: effect.role == role and effect.name in names


def _is_fire(effect: Effect) -> bool:
    return effect.role == "scheduler" and not FIRE.isdisjoint(effect.statements)


def _is_in_fire(effect: Effect) -> bool:
    return _is_fire(effect) and effect.name != "commit"


def _is_fires_commit(effect: Effect) -> bool:
    return _is_fire(effect) and effect.name == "commit"


def _is_advance(effect: Effect) -> bool:
    return _is_fires_commit(effect) and "clock_advance" in effect.statements


def _is_claim(effect: Effect) -> bool:
    return effect.role == "worker" and effect.name == "run_claim"


def _is_workers_end(effect: Effect) -> bool:
    return effect.role == "worker" and effect.name == "commit" and "run_lock" in effect.statements


def _is_in_write(effect: Effect) -> bool:
    return effect.role == "producer" and effect.store == "postgres" and len(effect.statements) > 1


def _is_announcement(effect: Effect) -> bool:
    return effect.role == "producer" and effect.name in {"upsert_due", "commit_fire"}


def _has_schedules(effect: Effect) -> bool:
    return effect.name == "claim_due" and len(effect.result) > 2


def _has_runs(effect: Effect) -> bool:
    return effect.name == "dispatch" and len(effect.result) > 2


def _is_ack(effect: Effect) -> bool:
    return effect.role == "child" and effect.name == "commit" and "insert_into_wsync_ack" in effect.statements


def _is_end(effect: Effect) -> bool:
    return effect.role in {"worker", "child"} and effect.name == "commit" and not FINISH.isdisjoint(effect.statements)


def _is_reap(effect: Effect) -> bool:
    return effect.role == "scheduler" and not REAP.isdisjoint((effect.name, *effect.statements))


def _is_heartbeat(effect: Effect) -> bool:
    return effect.role == "worker" and effect.name == "run_heartbeat"


def _is_before_call(effect: Effect) -> bool:
    return effect.role == "child" and effect.name == "prepare"


def _is_draining(effect: Effect) -> bool:
    return effect.role == "worker" and effect.process.is_draining


KILLS = (Fault.KILL,)
PLACES: dict[str, Place] = {
    "C1": Place(title="producer, before its commit", before=_is_in_write, faults=(Fault.KILL, Fault.LOST)),
    "C2": Place(title="producer, before or within its announcement", before=_is_announcement, faults=(Fault.KILL, Fault.LOST)),
    "C3": Place(title="producer, reply lost", after=_is_announcement, faults=(Fault.UNKNOWN,)),
    "C4": Place(title="an announcement that comes late", before=_is_announcement, faults=(Fault.STALL,)),
    "C5": Place(title="a change commits while the schedule is being fired"),
    "C6": Place(title="after a claim", after=_has_schedules, faults=(Fault.KILL, Fault.UNKNOWN)),
    "C7": Place(title="in the fire's transaction", before=_is_in_fire, faults=(Fault.KILL, Fault.LOST, Fault.STALL)),
    "C8": Place(title="the fire's commit, outcome unknown", after=_is_fires_commit, faults=(Fault.UNKNOWN,)),
    "C9": Place(title="after the fire's commit", before=_is("scheduler", "commit_fire"), faults=(Fault.KILL, Fault.LOST)),
    "C10": Place(title="the index was told, the reply is lost", after=_is("scheduler", "commit_fire"), faults=(Fault.UNKNOWN,)),
    "C11": Place(title="a wake-up is lost"),
    "C12": Place(title="Postgres loses the last asynchronous commit", after=_is_advance, faults=(Fault.LOSE_COMMIT,)),
    "C13": Place(title="a scheduler stands still past its lease", after=_has_schedules, faults=(Fault.STALL,)),
    "C14": Place(title="two schedulers hold the same schedule"),
    "C15": Place(title="a schedule that can't be computed"),
    "C16": Place(title="after a dispatch", after=_has_runs, faults=(Fault.KILL, Fault.UNKNOWN)),
    "C17": Place(title="the claim, outcome unknown", after=_is("worker", "run_claim"), faults=(Fault.UNKNOWN,)),
    "C18": Place(title="after the claim, before a child has the run", before=_is("worker", "assignment_load"), faults=KILLS),
    "C19": Place(title="a child dies", before=lambda effect: effect.role == "child", faults=(Fault.KILL_CHILD,)),
    "C20": Place(
        title="a worker is killed, with its children",
        before=_is_heartbeat,
        faults=KILLS,
        shown_by="core/tests/worker/test_worker.py::test_a_killed_worker_takes_its_children_along_and_another_one_finishes_after_the_lease",
    ),
    "C21": Place(title="a worker's host loses its network", before=_is_heartbeat, faults=(Fault.CUT_ALL,)),
    "C22": Place(title="a worker can't reach Postgres", before=_is_heartbeat, faults=(Fault.CUT,)),
    "C23": Place(
        title="a worker stands still past its leases", before=lambda x: _is_heartbeat(x) or _is_before_call(x), faults=(Fault.STALL,)
    ),
    "C24": Place(title="the ack is stored, the reply lost", after=_is_ack, faults=(Fault.UNKNOWN,)),
    "C25": Place(title="the destination has it, the ack is not stored", after=_is("child", "call"), faults=(Fault.KILL, Fault.KILL_CHILD)),
    "C26": Place(title="a run's end, outcome unknown", after=_is_end, faults=(Fault.UNKNOWN,)),
    "C27": Place(title="after a run's end, before its release", before=_is("worker", "release"), faults=(Fault.KILL, Fault.LOST)),
    "C28": Place(title="in the reaper", before=_is_reap, faults=KILLS),
    "C29": Place(title="the index is flushed"),
    "C30": Place(title="the index fails over and loses its last writes"),
    "C31": Place(
        title="Postgres fails over and loses a claim or an end",
        after=lambda x: _is_claim(x) or _is_workers_end(x),
        faults=(Fault.LOSE_COMMIT,),
    ),
    "C32": Place(title="a cancel's message is lost"),
    "C33": Place(title="the loader dies", before=_is("scheduler", "pexpire load", "delete load"), faults=KILLS),
    "C34": Place(title="a run ends while another one is about to wait for it"),
    "C35": Place(title="killed in its drain", before=_is_draining, faults=KILLS),
}
LOCAL = ("C5", "C11", "C14", "C15", "C29", "C30", "C32", "C34")
"""Points that are not planned at a place: the workload and the operator bring them about."""


@dataclass(slots=True, kw_only=True)
class Planned:
    point: str
    fault: Fault
    passes: int
    """How often the place is passed before it happens."""


class Faults:
    """One seed's plan, and what came of it."""

    def __init__(self, world: World, plan: list[Planned]) -> None:
        self._world = world
        self._plan = plan
        self.is_off = False
        self.hit: Counter[str] = Counter()
        self.happened: list[tuple[int, str]] = []

    @staticmethod
    def drawn(rng: random.Random, points: list[str]) -> list[Planned]:
        plan = []
        for point in points:
            place = PLACES[point]
            if place.faults:
                plan.append(Planned(point=point, fault=rng.choice(place.faults), passes=rng.choice((0, 0, 1, 1, 2))))
        return plan

    def note(self, point: str) -> None:
        """It occurred by itself."""
        self.hit[point] += 1
        self.happened.append((self._world.clock.now_ms, point))

    def before(self, effect: Effect) -> Fault | None:
        return self._find(effect, lambda place: place.before is not None and place.before(effect))

    def after(self, effect: Effect) -> Fault | None:
        return self._find(effect, lambda place: place.after is not None and place.after(effect))

    def loses_commit(self, line: Line, name: str) -> bool:
        """Whether this commit, or statement that is a transaction by itself, is one that a crash of Postgres takes back, together with all connections."""
        effect = Effect(process=line.process, role=line.role, store="postgres", name=name, statements=line.statements)
        for planned in [x for x in self._plan if x.fault is Fault.LOSE_COMMIT and not self.is_off]:
            after = PLACES[planned.point].after
            if self._world.is_losing or after is None or not after(effect):
                continue
            if self._happens(planned):
                self._world.lose_commit(line)
                return True
        return False

    def _find(self, effect: Effect, is_there: Callable[[Place], bool]) -> Fault | None:
        if self.is_off:
            return None
        for planned in self._plan:
            place = PLACES[planned.point]
            if planned.fault is Fault.LOSE_COMMIT or not is_there(place):
                continue
            if self._happens(planned):
                return planned.fault
        return None

    def _happens(self, planned: Planned) -> bool:
        """Its place is passed: whether it was passed often enough."""
        planned.passes -= 1
        if planned.passes >= 0:
            return False
        self._plan.remove(planned)
        self.note(planned.point)
        self._world.trace("fault", f"{planned.point} {PLACES[planned.point].title}: {planned.fault.value}")
        return True
