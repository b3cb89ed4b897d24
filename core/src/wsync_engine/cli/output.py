"""Data on stdout, talk on stderr; `--json` prints one object per line, an error as one on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wsync_engine.model.json_text import json_text

if TYPE_CHECKING:
    from wsync_sdk.errors import WsyncError

__all__ = ["cell", "print_error", "print_objects", "say", "table"]


def say(text: str) -> None:
    """To the person, not to whoever reads our data."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  this is the command line


def print_objects(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line; NaN and the infinities, for which JSON has nothing, by their names."""
    for row in rows:
        print(json_text(row), flush=True)  # noqa: T201  this is the command line


def print_error(exc: WsyncError) -> None:
    """One JSON object on stderr: `error`, `where` (null where the error has no place) and `next_step`; `mistakes` where there are several."""
    mistakes = [_error(one) for one in getattr(exc, "mistakes", ())]
    say(json.dumps({**_error(exc), **({"mistakes": mistakes} if mistakes else {})}, ensure_ascii=False))


def _error(exc: WsyncError) -> dict[str, str | None]:
    return {"error": getattr(exc, "what", exc.message), "where": getattr(exc, "where", None), "next_step": exc.next_step}


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Aligned columns, as wide as they need be; the same off a terminal."""
    lines = [[column.replace("_", " ").upper() for column in columns], *([cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)  # noqa: T201


def cell(value: Any) -> str:
    """A value as a table shows it. What somebody wrote into a row must not move the cursor of a terminal, nor end a line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in _text(value))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, Mapping):
        return " ".join(f"{name}={item}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "-"
    return str(value)
