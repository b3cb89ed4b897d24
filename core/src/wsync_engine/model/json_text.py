"""Rows as JSON for people and their tools: one form of each value, on the command line and in files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = ["json_text"]


def json_text(value: Any) -> str:
    """One line of JSON; NaN and the infinities, for which JSON has nothing, by their names, bytes in hexadecimal."""
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_named(value), default=_plain, ensure_ascii=False, allow_nan=False)


def _named(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: _named(item) for name, item in value.items()}
    return [_named(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> str:
    if isinstance(value, date | time):  # an instant is a date, too
        return value.isoformat()
    if isinstance(value, UUID | Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"no JSON form of {type(value).__name__}")
