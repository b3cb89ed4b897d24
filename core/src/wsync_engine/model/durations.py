"""Durations as people write them."""

from __future__ import annotations

__all__ = ["LONGEST_MS", "duration_text"]

LONGEST_MS = 36_500 * 86_400_000
"""A hundred years: more than anybody means, and little enough to count with."""
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))


def duration_text(ms: int) -> str:
    """The shortest whole number with its unit, as `wsync.yaml` takes it: 90000 → `90s`, 86400000 → `1d`."""
    unit, factor = next((unit, factor) for unit, factor in _UNITS if ms % factor == 0 and (ms or unit == "s"))
    return f"{ms // factor}{unit}"
