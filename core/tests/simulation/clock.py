"""One time for all that is simulated; it stands while anybody has something to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)


class Clock:
    """Milliseconds since `START`."""

    def __init__(self) -> None:
        self.now_ms = 0

    @property
    def now_s(self) -> float:
        return self.now_ms / 1_000

    @property
    def now(self) -> datetime:
        return START + timedelta(milliseconds=self.now_ms)

    @property
    def epoch_ms(self) -> int:
        """Milliseconds since 1970."""
        return round(self.now.timestamp() * 1_000)

    def move_to(self, at_ms: int) -> None:
        self.now_ms = max(self.now_ms, at_ms)
