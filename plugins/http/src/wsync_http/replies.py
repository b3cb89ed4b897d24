"""What a reply's status means. Pure: knows HTTP's numbers, no library.

Statuses: RFC 9110, section 15 (read 2026-11-20); 425: RFC 8470; 429: RFC 6585.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from wsync_sdk import ConfigError, FatalError, RetryableError, RowError, WsyncError
from wsync_sdk.http import Reply, retry_after_s

__all__ = ["error_of_status", "is_among"]

_AGAIN = frozenset({408, 425, 429})
_CREDENTIAL = frozenset({401, 403, 407})
_GONE = frozenset({404, 405, 410, 501})


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
