"""Plays many seeds, or one with all that happened in it: `make simulate`, `SEED=7 make simulate`, `FIRST=3000 SEEDS=500 make simulate`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import structlog

from wsync_engine.embedded.servers import EmbeddedServers

from .conftest import make_ground
from .play import Played, play

SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # what goes wrong is meant to
    one = os.environ.get("SEED")
    first, count = int(os.environ.get("FIRST", "0")), int(os.environ.get("SEEDS", "3000"))
    seeds = [int(one)] if one is not None else list(range(first, first + count))
    hit: Counter[str] = Counter()
    failed = []
    began_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="wsync-simulation-", ignore_cleanup_errors=True) as folder,
        EmbeddedServers.start(Path(folder), postgres_settings=SETTINGS) as servers,
    ):
        ground = make_ground(servers, "simulation")
        for number, seed in enumerate(seeds, start=1):
            played = play(ground, seed)
            hit += played.hit
            failed += [seed] if played.violations else []
            _tell(played, is_traced=one is not None)
            if number % 100 == 0:
                _say(f"{number} histories, {len(failed)} failed, {time.monotonic() - began_s:.0f} s")
        ground.close()
    _say("reached: " + ", ".join(f"{point} {hit[point]}" for point in sorted(hit, key=lambda x: int(x[1:]))))
    _say(f"{len(seeds)} histories, {len(failed)} failed, {time.monotonic() - began_s:.1f} s")
    return 1 if failed else 0


def _tell(played: Played, *, is_traced: bool) -> None:
    if is_traced:
        _say("\n".join(played.trace))
        _say(f"{played.moves} moves, {played.runs} runs")
    if played.violations:
        _say(f"seed {played.seed}: " + "; ".join(played.violations))
        _say(f"next: `SEED={played.seed} make simulate`")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
