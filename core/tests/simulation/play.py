"""One seed from its plan to its verdict: `play(ground, seed)`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from .clock import START
from .faults import PLACES, Faults, Planned
from .invariants import Watch
from .workload import Catalog, Operator, Producer
from .world import Ground, World

ACTIVE_S = 24
QUIET_S = 60
LONGEST_S = 420
POINTS = [point for point, place in PLACES.items() if place.faults]
TROUBLES = ("flush", "fail_over", "drain", "kill", "freeze", "spoil", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a seed. `violations` empty: all is well."""

    seed: int
    violations: tuple[str, ...]
    trace: tuple[str, ...]
    hit: Counter[str]
    events: Counter[str]
    moves: int
    runs: int


def plan_of(seed: int) -> Sequence[str]:
    """The crash points of a seed: one in turn, so that all get their share, and some by chance."""
    rng = random.Random(f"points {seed}")
    if seed % 10 == 0:
        return []
    return [POINTS[seed % len(POINTS)], *rng.sample(POINTS, rng.choice((0, 1, 1, 2)))]


def play(ground: Ground, seed: int) -> Played:
    """The same seed is always the same history."""
    world = World(ground, seed, lambda rng: _plan(rng, seed))
    watch = Watch(world)
    try:
        _live(world, seed)
        watch.check_end()
    except AssertionError as exc:
        watch.violations.append(f"{type(exc).__name__}: {exc}")
    finally:
        world.close()
    return Played(
        seed=seed,
        violations=tuple(watch.violations),
        trace=tuple(world.traced),
        hit=world.faults.hit,
        events=watch.events,
        moves=world.baton.moves,
        runs=watch.run_count,
    )


def _plan(rng: random.Random, seed: int) -> list[Planned]:
    return Faults.drawn(rng, list(plan_of(seed)))


def _live(world: World, seed: int) -> None:
    rng = world.rng
    # Most schedules end with the faults: what they left behind is to be seen, not the next hundred runs.
    world.end_at = START + timedelta(seconds=ACTIVE_S + rng.choice((5, 5, QUIET_S)))
    troubles = []
    if seed % 10:
        needed = ["drain"] if "C35" in plan_of(seed) else []
        for trouble in needed + rng.sample(TROUBLES, rng.choice((0, 1, 1, 2))):
            at_ms = rng.randint(3_000, ACTIVE_S * 1_000)
            troubles += [(at_ms, trouble), (at_ms - rng.randint(0, 8_000), "copy")] if trouble == "fail_over" else [(at_ms, trouble)]
    schedulers = rng.choice((1, 1, 1, 2, 3))
    if "C13" in plan_of(seed):
        schedulers = max(schedulers, 2)  # somebody has to overtake the one that stands still
    workers = rng.choice((1, 1, 1, 2, 3))
    if not {"C21", "C22", "C23", "C31"}.isdisjoint(plan_of(seed)):
        workers = max(workers, 2)  # and to take the runs of the one that is silent
    operator = Operator(world, schedulers=schedulers, workers=workers, troubles=troubles)
    catalog = Catalog()
    for number in range(rng.choice((1, 1, 2))):
        Producer(world, catalog, f"producer{number + 1}", actions=rng.randint(3, 8))
    world.run_until(ACTIVE_S * 1_000)
    peace_ms = world.make_peace()
    world.run_until(peace_ms)
    operator.keep_one_of_each()
    world.run_until(peace_ms + QUIET_S * 1_000)
    world.watch.check_quiet()
    while world.watch.has_open_runs() and world.clock.now_s < LONGEST_S:
        operator.decide_all()
        world.run_until(world.clock.now_ms + 10_000)
