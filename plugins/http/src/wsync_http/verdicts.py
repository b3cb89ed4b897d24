"""From a reply's body to a verdict for each row of a request. Pure.

A row counts as accepted only if the reply says so: with `lists: all` by its own item, with `lists: errors` by a list that is there and accounts for every
refusal. An item that does not tell its row may mean any row, so the rows of which nothing else is known are then unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wsync_http.config import Condition, Results
from wsync_http.pointer import MISSING, Json, at, parsed

__all__ = ["Refusal", "Unreadable", "Verdicts", "verdicts"]

_CODE_LENGTH = 64
_MESSAGE_LENGTH = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A row that the endpoint refused, in its words; `message` may still hold what the row holds."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Of the rows 0..n-1 of a request: those refused and those unknown; all others were accepted."""

    refused: dict[int, Refusal]
    unknown: frozenset[int] = frozenset()


class Unreadable(Exception):
    """The reply does not say what became of the rows; the message is why, without anything of the reply."""


def verdicts(body: bytes, results: Results, rows: int) -> Verdicts:
    """Read the list of results.

    :raises Unreadable: the body is no JSON, or has no such list.
    """
    found = _items(body, results)
    if found is None:
        return Verdicts(refused={})
    named: dict[int, Refusal | None] = {}
    contradicted: set[int] = set()
    has_stray = False
    for place, item in enumerate(found):
        row = _row(item, place, results, rows)
        if row is None:
            has_stray = True
            continue
        verdict = _refusal(item, results)
        if row in named and (named[row] is None) != (verdict is None):
            contradicted.add(row)
        named.setdefault(row, verdict)
    unnamed = frozenset(range(rows)) - named.keys() if results.lists == "all" or has_stray else frozenset()
    refused = {row: verdict for row, verdict in named.items() if verdict is not None and row not in contradicted}
    return Verdicts(refused=refused, unknown=unnamed | contradicted)


def _items(body: bytes, results: Results) -> list[Json] | None:
    """The list; None where its absence means that nothing was refused."""
    may_lack = results.when_missing == "accept"
    if not body.strip() and may_lack:
        return None
    try:
        document: Json = json.loads(body)
    except (ValueError, RecursionError):
        raise Unreadable("its reply is not JSON") from None
    found = at(document, parsed(results.items))
    if may_lack and (found is MISSING or found is None):
        return None
    if not isinstance(found, list):
        raise Unreadable(f"its reply has no list at `{results.items}`")
    return found


def _row(item: Json, place: int, results: Results, rows: int) -> int | None:
    """The row an item is about; None if it does not tell, or tells one that was not sent."""
    if results.index is None:
        return place if place < rows else None
    value = at(item, parsed(results.index))
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    row = value - results.first_index
    return row if 0 <= row < rows else None


def _refusal(item: Json, results: Results) -> Refusal | None:
    if results.accepted is not None and _holds(item, results.accepted):
        return None
    if results.refused is not None and not _holds(item, results.refused):
        return None
    return Refusal(
        code=_code(_text(item, results.code)),
        message=_text(item, results.message)[:_MESSAGE_LENGTH] or "refused by the endpoint",
        retryable=results.retryable is not None and _holds(item, results.retryable),
    )


def _holds(item: Json, condition: Condition) -> bool:
    value = at(item, parsed(condition.at))
    if condition.values is None:
        return value is not MISSING and value not in (None, False, "", [], {})
    # Python's True is 1: the types must agree too, but 200 and 200.0 are one number.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in condition.values)


def _text(item: Json, pointer: str | None) -> str:
    value = MISSING if pointer is None else at(item, parsed(pointer))
    return " ".join(str(value).split()) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _code(text: str) -> str:
    words: Sequence[str] = re.findall(r"[a-z0-9.-]+", text.lower())
    return "_".join(words)[:_CODE_LENGTH] or "refused"
