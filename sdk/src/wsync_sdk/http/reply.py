"""What came back from an HTTP call, and how long it asks to wait. Pure: knows HTTP's words, no library.

Retry-After: RFC 9110, section 10.2.3 (read 2026-11-20).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

__all__ = ["Body", "Reply", "retry_after_s"]

_MOST_WAIT_S = 86_400.0


class Body(Enum):
    """Whether a reply's body is all there."""

    WHOLE = "whole"
    BROKEN = "broken"
    OVERSIZED = "oversized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back. `headers` have lower-case names; `body` is what was read of it, decoded; neither is ever shown."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    state: Body = Body.WHOLE


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds that Retry-After asks for, at most a day; None where it says nothing that can be read."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _MOST_WAIT_S)
    until = _date(text)
    if until is None:
        return None
    # Against the server's own clock where it tells it: ours may be off.
    since = _date(headers.get("date", "")) or now
    return min(max(0.0, (until - since).total_seconds()), _MOST_WAIT_S)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
