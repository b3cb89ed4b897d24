"""The coming times of an expression that no schedule has yet."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from wsync_engine.config.schema import DurationMs
from wsync_engine.model.durations import LONGEST_MS, duration_text
from wsync_engine.scheduler.cron import next_fires
from wsync_engine.scheduler.interval import next_interval_fires
from wsync_sdk.errors import ConfigError

__all__ = ["preview_cron", "preview_every"]


def preview_cron(expression: str, timezone: str, count: int) -> list[datetime]:
    """The next times after now, in UTC.

    :raises ConfigError: the expression or the zone is wrong, or it never fires.
    """
    return next_fires(expression, timezone, datetime.now(UTC), count)


def preview_every(every: str, anchor: datetime | None, count: int) -> list[datetime]:
    """The next times after now of an interval as `wsync.yaml` writes it, in UTC.

    :raises ConfigError: it is no duration, or not of whole seconds.
    """
    now = datetime.now(UTC)
    try:
        every_ms: int = TypeAdapter(DurationMs).validate_python(every)
    except ValidationError:
        raise ConfigError(f"`{every}` is no duration", next_step="write a whole number with its unit: 30s, 15m, 6h, 1d") from None
    if every_ms % 1_000 or not 1_000 <= every_ms <= LONGEST_MS:
        raise ConfigError(f"`{every}` is no interval", next_step=f"write whole seconds, from 1s to {duration_text(LONGEST_MS)}")
    return next_interval_fires(anchor or now, every_ms // 1_000, now, count)
