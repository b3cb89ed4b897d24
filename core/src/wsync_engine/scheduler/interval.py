"""Fires at fixed distances, and the jitter that spreads them: arithmetic on instants, nothing that daylight saving could move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from uuid import UUID

from wsync_sdk.errors import ConfigError

__all__ = ["interval_fires", "jitter", "next_interval_fires"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)
_GUARD = timedelta(seconds=1)


def next_interval_fires(anchor: datetime, interval_s: int, after: datetime, n: int) -> list[datetime]:
    """The first `n` instants `anchor + k * interval_s` (k = 0, 1, 2, …) strictly after `after`, in UTC.

    :raises ConfigError: the interval is not positive, or an instant has no zone.
    """
    return interval_fires(anchor, timedelta(seconds=interval_s), after, n)


def interval_fires(anchor: datetime, every: timedelta, after: datetime, n: int) -> list[datetime]:
    """As `next_interval_fires`, for a distance that need not be whole seconds; fewer only at the end of the calendar."""
    if every <= timedelta(0):
        raise ConfigError("the interval is not positive", next_step="write an interval of at least one second")
    if anchor.tzinfo is None or after.tzinfo is None:
        raise ConfigError("anchor or `after` has no zone", next_step="pass aware datetimes, for example in UTC")
    # In UTC first: subtracting two datetimes of one zone would count wall-clock time.
    start = anchor.astimezone(UTC)
    first = max(0, (after.astimezone(UTC) - start) // every + 1)
    try:
        return [start + every * k for k in range(first, first + n)]
    except OverflowError:  # nobody waits for the end of the calendar: only those before it
        left = (_LAST - start) // every
        return [start + every * k for k in range(first, min(first + n, left + 1))]


def jitter(schedule_id: UUID, nominal_at: datetime, jitter_ms: int, gap: timedelta | None) -> timedelta:
    """How long after `nominal_at` the schedule is due: the same in every process, and never past the next nominal time.

    :param gap: distance to the next nominal time, None when there is none.
    """
    bound_ms = jitter_ms
    if gap is not None:
        bound_ms = min(bound_ms, (gap - _GUARD) // timedelta(milliseconds=1))
    if bound_ms <= 0:
        return timedelta(0)
    nominal_us = (nominal_at - _EPOCH) // timedelta(microseconds=1)
    digest = blake2b(schedule_id.bytes + nominal_us.to_bytes(8, "big", signed=True), digest_size=8).digest()
    return timedelta(milliseconds=int.from_bytes(digest, "big") % bound_ms)
