"""What a reply's status means. Pure: knows HTTP's numbers, no library.

Statuses and Retry-After: RFC 9110, sections 10.2.3 and 15 (read 2026-11-20); 425: RFC 8470; 429: RFC 6585.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from wsync_sdk import ConfigError, FatalError, RetryableError, RowError, WsyncError

__all__ = ["Body", "Reply", "error_of_status", "is_among", "retry_after_s"]

_AGAIN = frozenset({408, 425, 429})
_CREDENTIAL = frozenset({401, 403, 407})
_GONE = frozenset({404, 405, 410, 501})
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


def is_among(status: int, statuses: Sequence[int | str]) -> bool:
    """Is it one of these, which are numbers or classes like 2xx?"""
    return any(str(one) in (str(status), f"{status // 100}xx") for one in statuses)


def error_of_status(doing: str, reply: Reply, *, now: datetime) -> WsyncError:
    """The error of a status that is no success.

    :param doing: what was called, for messages. :param now: for a Retry-After that is a date, where the reply has no date of its own.
    """
    status, message = reply.status, f"{doing}: the endpoint answers {reply.status}"
    if status in _GONE:
        return FatalError(message, next_step="see whether the endpoint was moved or takes another method, then correct `url` or `method`")
    if status in _AGAIN or status >= 500:
        return RetryableError(message, retry_after_s=retry_after_s(reply.headers, now), next_step="nothing to do: it is tried again")
    if status in _CREDENTIAL:
        return ConfigError(message, next_step="correct the credential in `secret_headers`, or grant it what it lacks")
    if status < 400:
        return ConfigError(f"{message}, which is not followed", next_step="write the address that it leads to as `url`")
    return RowError(message, code=f"http_{status}", next_step="correct the row where it comes from, or the mapping")


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
