"""Schedulers, workers and producers in many interleavings, with deaths, losses and stalls at every crash point: the invariants hold in each."""

from __future__ import annotations

from collections import Counter

import pytest

from .faults import PLACES
from .play import play
from .world import Ground

SEEDS = 300
MORE = 150
"""Histories that are added where a crash point was not reached yet: a change of the engine changes what a seed plays."""
HALVES = (range(0, SEEDS, 2), range(1, SEEDS, 2))


def missing(hit: Counter[str]) -> list[str]:
    return [point for point, place in PLACES.items() if place.is_simulated and not hit[point]]


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seeds", HALVES, ids=("even", "odd"))
def test_every_invariant_holds_in_every_history_and_every_crash_point_is_reached(ground: Ground, seeds: range) -> None:
    failed = {}
    hit: Counter[str] = Counter()
    for number, seed in enumerate((*seeds, *range(SEEDS + seeds.start, SEEDS + 2 * MORE, seeds.step))):
        if number >= len(seeds) and not missing(hit):
            break
        played = play(ground, seed)
        hit += played.hit
        if played.violations:
            failed[f"SEED={seed} make simulate"] = played.violations[0]

    assert failed == {}
    assert missing(hit) == []


def test_a_seed_is_always_the_same_history(ground: Ground) -> None:
    first, second = play(ground, 3), play(ground, 3)

    assert first.trace == second.trace
