"""Schedulers, workers and producers in many interleavings, with deaths, losses and stalls at every crash point: the invariants hold in each."""

from __future__ import annotations

import pytest

from .play import play
from .world import Ground

SEEDS = 50
HALVES = (range(0, SEEDS, 2), range(1, SEEDS, 2))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seeds", HALVES, ids=("even", "odd"))
def test_every_invariant_holds_in_every_history(ground: Ground, seeds: range) -> None:
    failed = {}
    for seed in seeds:
        played = play(ground, seed)
        if played.violations:
            failed[f"SEED={seed} make simulate"] = played.violations[0]

    assert failed == {}


def test_a_seed_is_always_the_same_history(ground: Ground) -> None:
    first, second = play(ground, 3), play(ground, 3)

    assert first.trace == second.trace
