"""What a destination says of a row, without what the row holds: messages are logged, shown and mailed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["values_in", "without"]


def without(message: str, values: Sequence[str]) -> str:
    """The message with each of these values blotted out; short ones only where they stand alone."""
    for value in sorted({value for value in values if value.strip()}, key=len, reverse=True):
        pattern = re.escape(value) if len(value) > 3 else rf"(?<!\w){re.escape(value)}(?!\w)"
        message = re.sub(pattern, "***", message, flags=re.IGNORECASE)
    return message


def values_in(document: str) -> list[str]:
    """Every value in a JSON document, however deep, as a message might quote it: numbers as they were written."""
    return _texts(json.loads(document, parse_int=str, parse_float=str))


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    if value is None or isinstance(value, bool):
        return []
    return [str(value)]
