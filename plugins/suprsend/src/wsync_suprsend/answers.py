"""What SuprSend's answers mean for the rows of a request. Pure.

Bodies of errors may be JSON, a bare string, HTML or nothing. Of a body only a short code is shown as it is; its words are shown without the values of the
rows that were sent, and only where a request had a single row, so that a reader knows which row they are about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from wsync_sdk import ConfigError, FatalError, RetryableError, RowError, WsyncError
from wsync_sdk.http import Body, Reply, retry_after_s
from wsync_sdk.records import without

__all__ = ["Refusal", "Verdicts", "error_of", "verdicts_of"]

_AGAIN = frozenset({408, 425, 429})
_CREDENTIAL = frozenset({401, 403, 407})
_GONE = frozenset({404, 405, 410, 501})
_TRIED = "nothing to do: it is tried again"
_MESSAGE_LENGTH = 300
_CODE_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A row that SuprSend refused."""

    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Of the rows 0..n-1 of a request: those refused and those unknown; all others were accepted."""

    refused: dict[int, Refusal]
    unknown: frozenset[int] = frozenset()


def error_of(doing: str, reply: Reply, *, now: datetime, sent: Sequence[str] = ()) -> WsyncError:
    """The error of a status that is no success.

    :param doing: what was called, for messages. :param now: for a Retry-After that is a date, where the reply has no date of its own.
    :param sent: values that no message may hold; empty where SuprSend's words are not to be shown at all.
    """
    status, message = reply.status, f"{doing}: SuprSend answers {reply.status}"
    if status in _CREDENTIAL:
        step = "correct key and secret in the connection's config, or this machine's clock: a signature holds the time"
        return ConfigError(message, next_step=step)
    if status in _GONE:
        return FatalError(message, next_step="see whether the list is there and `base_url` is right")
    if status in _AGAIN or status >= 500:
        return RetryableError(message, retry_after_s=retry_after_s(reply.headers, now), next_step=_TRIED)
    if status < 400:
        return ConfigError(f"{message}, which is not followed", next_step="write the address that it leads to as `base_url`")
    words = _words(reply.body)
    said = f": {without(words[1], sent)}" if sent and words[1] else ""
    return RowError(f"{message}{said}", code=words[0] or f"http_{status}", next_step="correct the row where it comes from, or the mapping")


def verdicts_of(doing: str, reply: Reply, rows: int, *, now: datetime, sent: Callable[[int], Sequence[str]]) -> Verdicts:
    """What a reply says of the rows of its request: a success that is whole accepts all; 207 tells of each.

    :param sent: gives a row's values, which no message may hold.
    :raises WsyncError: see `error_of`.
    """
    if reply.status // 100 != 2:
        raise error_of(doing, reply, now=now, sent=sent(0) if rows == 1 else ())
    if reply.state is Body.BROKEN:
        raise RetryableError(f"{doing}: the reply ended in its middle", next_step=_TRIED)
    if "html" in reply.headers.get("content-type", "").lower():
        raise RetryableError(
            f"{doing}: the answer is a web page, so something else than SuprSend has answered",
            next_step="correct `base_url` if it is not by accident",
        )
    return _told(doing, reply, rows, sent) if reply.status == 207 else Verdicts(refused={})


def _told(doing: str, reply: Reply, rows: int, sent: Callable[[int], Sequence[str]]) -> Verdicts:
    """The verdicts of a 207, whose records stand in the request's order; a list of another length tells of no row."""
    records = _document(reply.body).get("records")
    if not isinstance(records, list) or len(records) != rows or not all(isinstance(record, dict) for record in records):
        raise RetryableError(f"{doing}: SuprSend answers 207 without a verdict for each row", next_step=_TRIED)
    refused: dict[int, Refusal] = {}
    unknown: set[int] = set()
    for row, record in enumerate(records):
        if record.get("status") == "success":
            continue
        if record.get("status") != "error":
            unknown.add(row)
            continue
        refused[row] = _refusal(record, sent(row))
    return Verdicts(refused=refused, unknown=frozenset(unknown))


def _refusal(record: dict[str, Any], values: Sequence[str]) -> Refusal:
    error = record.get("error")
    told: dict[str, Any] = error if isinstance(error, dict) else {}
    status = record.get("status_code")
    is_transient = isinstance(status, int) and (status in _AGAIN or status >= 500)
    message = without(_line(told.get("message")), values)
    return Refusal(
        code=_code(told.get("type")) or (f"http_{status}" if isinstance(status, int) else "refused"),
        message=message or "refused by SuprSend",
        retryable=is_transient,
    )


def _words(body: bytes) -> tuple[str, str]:
    """(code, message) of an error's body, as far as it has them."""
    document = _document(body)
    return _code(document.get("error_code") or document.get("type")), _line(document.get("message") or document.get("detail"))


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(value: object) -> str:
    return " ".join(value.split())[:_MESSAGE_LENGTH] if isinstance(value, str) else ""


def _code(value: object) -> str:
    words: Sequence[str] = re.findall(r"[a-z0-9.-]+", value.lower()) if isinstance(value, str) else ()
    return "_".join(words)[:_CODE_LENGTH]
