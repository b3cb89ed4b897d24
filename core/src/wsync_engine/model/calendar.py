"""The instants that can be counted with."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["is_in_calendar"]

FIRST_YEAR = 2
"""One earlier, and an instant just before it, or its time in another zone, would have no date; the year 9999 is somebody's `for ever`."""


def is_in_calendar(instant: datetime) -> bool:
    """Whether an aware instant can be told in UTC, and has something before it."""
    try:
        return instant.astimezone(UTC).year >= FIRST_YEAR
    except OverflowError:
        return False
