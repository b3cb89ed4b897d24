"""Which values the fields of a schedule may have. What the store would refuse, or nothing can be computed with, is refused here, by name.

Looked at by columns, not by schedules: of thousands that are created at once nearly all share nearly all values, and those are looked at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from wsync_engine.model.durations import LONGEST_MS
from wsync_sdk.errors import ConfigError

__all__ = ["INSTANTS", "refuse_new_values", "refuse_texts", "refuse_values"]

INSTANTS = ("anchor_at", "once_at", "start_at", "end_at")
"""The fields that are instants."""
_MOST = 2**31 - 1
_LETTERS = {"name": 200, "actor": 200, "idem_key": 200, "note": 2_000, "reason": 2_000}
"""The longest texts; what is looked up by an index must fit into its page."""
_MAY_BE_EMPTY = ("note", "reason")
_RANGES = {
    "every_ms": (1_000, LONGEST_MS),
    "priority": (0, 2),
    "jitter_ms": (0, 3_600_000),
    "max_buffer": (1, 1_000),
    "catchup_ms": (10_000, LONGEST_MS),
    "max_runs": (1, _MOST),
    "max_attempts": (1, _MOST),
    "backoff_base_ms": (0, _MOST),
    "backoff_cap_ms": (0, _MOST),
    "attempt_timeout_ms": (1, LONGEST_MS),
    "total_timeout_ms": (1, LONGEST_MS),
    "stall_ms": (1, _MOST),
    "pause_after_failures": (1, _MOST),
}
_OPTIONAL = frozenset({"every_ms", "max_runs", "pause_after_failures", *INSTANTS})
_WORDS = {"kind": ("cron", "interval", "once"), "catchup_mode": ("latest", "all")}
# Beyond them, what is a little earlier or later has no date. As an end, the last instant of the calendar means: never.
_FIRST, _LAST = datetime(2, 1, 1, tzinfo=UTC), datetime(9_998, 12, 31, tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)


def refuse_values(names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """Refuse what no schedule may have.

    :param names: of the schedules. :param columns: by field, the values in the order of `names`; one for all that have the same.
    :raises ConfigError: the first such value, with schedule and field.
    """
    for field, column in columns.items():
        if not _fits(field, column):
            for name, value in zip(names, column, strict=False):  # shorter where all have the same
                _refuse(name, field, value)


def refuse_texts(**texts: str | None) -> None:
    """Refuse what can't be stored as `actor`, `idem_key`, `note` or `reason`; None is no text, and the latter two may be empty.

    :raises ConfigError: names the first one that is wrong.
    """
    for field, text in texts.items():
        is_left_out = text is None or (text == "" and field in _MAY_BE_EMPTY)
        if not is_left_out and not _are_texts([text], _LETTERS[field]):
            raise ConfigError(f"`{field}` can't be {_shown(text)}", next_step=f"pass {_text_words(field)}")


def refuse_new_values(name: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """As `refuse_values`, but for what is stored so already: what an older engine took is no reason to refuse another change.

    :param name: of the schedule. :param new: values by field. :param old: a row of `wsync.schedule`, with its instants in UTC.
    """
    changed = {field: [value] for field, value in new.items() if type(value) is not type(old[field]) or value != old[field]}
    refuse_values([name], changed)


def _fits(field: str, column: Sequence[Any]) -> bool:
    if field == "name":
        return _are_texts(column, _LETTERS["name"])
    if field in _WORDS:
        return all(word in _WORDS[field] for word in _distinct(column))
    if field not in _RANGES and field not in INSTANTS:
        return True
    kinds = set(map(type, column))
    if field in _OPTIONAL and type(None) in kinds:
        kinds.discard(type(None))
        column = [value for value in column if value is not None]
    if not kinds:
        return True
    low, high = _bounds(field)
    return kinds == {type(low)} and low <= min(column) and max(column) <= high


def _bounds(field: str) -> tuple[Any, Any]:
    return _RANGES.get(field, (_FIRST, _NEVER if field == "end_at" else _LAST))


def _distinct(column: Sequence[Any]) -> Iterable[Any]:
    try:
        return set(column)
    except TypeError:
        return column


def _are_texts(column: Collection[Any], most: int) -> bool:
    """Looked at as one text, which costs next to nothing."""
    try:
        text = "".join(column)
        return "\0" not in text and (text.isascii() or bool(text.encode())) and all(column) and max(map(len, column)) <= most
    except (TypeError, UnicodeEncodeError):
        return False


def _refuse(name: str, field: str, value: object) -> None:
    """Whatever is wrong with one value; nothing may be."""
    if field == "name":
        if not isinstance(value, str) or not _are_texts([value], _LETTERS["name"]):
            raise ConfigError(f"a schedule can't be named {_shown(value)}", next_step=f"set `name` to {_text_words(field)}")
        return
    if field in _WORDS:
        if value not in _WORDS[field]:
            words = " or ".join(f"`{word}`" for word in _WORDS[field])
            raise ConfigError(f"schedule `{name}`: `{field}` can't be {value!r}", next_step=f"set `{field}` to {words}")
        return
    if value is None and field in _OPTIONAL:
        return
    low, high = _bounds(field)
    # A flag is a number to Python, but not to the store.
    if not isinstance(value, type(low)) or isinstance(value, bool) or not low <= value <= high:
        bounds = f"a whole number, {low} to {high}" if field in _RANGES else f"an instant in the years {low.year} to {high.year}"
        advice = f"set `{field}` to {bounds}" + (", or leave it out" if field in _OPTIONAL else "")
        raise ConfigError(f"schedule `{name}`: `{field}` can't be {_shown(value)}", next_step=advice)


def _text_words(field: str) -> str:
    return f"a text of 1 to {_LETTERS[field]} letters, without NUL characters and halves of surrogate pairs"


def _shown(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)[:40]
