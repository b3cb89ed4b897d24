"""Which nominal times a schedule has, told without any of the engine's code: arithmetic on its declarations, and on when they held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a schedule declares about its times."""

    kind: str
    every: timedelta | None
    anchor_at: datetime | None
    step_minutes: int
    once_at: datetime | None
    end_at: datetime | None

    @staticmethod
    def of(row: dict[str, Any]) -> Declared:
        """Of a row of `wsync.schedule` as JSON."""
        cron = row["cron"] or ""
        return Declared(
            kind=row["kind"],
            every=timedelta(milliseconds=row["every_ms"]) if row["every_ms"] else None,
            anchor_at=_instant(row["anchor_at"]),
            step_minutes=2 if cron.startswith("*/2") else 1,
            once_at=_instant(row["once_at"]),
            end_at=_instant(row["end_at"]),
        )


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def times_between(declared: Declared, from_at: datetime, to_at: datetime) -> Sequence[datetime]:
    """The nominal times in [from_at, to_at)."""
    end = to_at if declared.end_at is None else min(to_at, declared.end_at + timedelta(microseconds=1))
    found = []
    if declared.kind == "once":
        assert declared.once_at is not None
        found = [declared.once_at]
    elif declared.kind == "interval":
        assert declared.every is not None
        assert declared.anchor_at is not None
        at = declared.anchor_at
        while at < end:
            found.append(at)
            at += declared.every
    else:
        at = from_at.replace(second=0, microsecond=0)
        while at < end:
            if at.minute % declared.step_minutes == 0:
                found.append(at)
            at += MINUTE
    return [at for at in found if from_at <= at < end]
