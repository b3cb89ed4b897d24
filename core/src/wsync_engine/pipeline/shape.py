"""The shape of what is sent: the fields, and the kind of their values. Kept with the snapshot, so that a run sees what changed since.

A kind is what a payload depends on: int4 and int8, varchar and text are one kind, and a change from one to the other sends no row again. Where a kind changed,
or where a column came or went that is sent under its own name, every row is another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsync_engine.model.declaration import sync_spec_to_json
from wsync_engine.model.sync import SyncSpec
from wsync_sdk import ConfigError

__all__ = ["KeyColumn", "Shape", "changes_between", "key_casts", "kind_of", "shape_of"]

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_KINDS = {
    **dict.fromkeys((*_INTEGERS, *(f"U{name}" for name in _INTEGERS)), "integer"),
    "FLOAT": "real",
    "DOUBLE": "double precision",
    "VARCHAR": "text",
    "BLOB": "binary",
    "TIMESTAMP WITH TIME ZONE": "timestamp with zone",
}
_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyColumn:
    """One field of the key, as the snapshot's files hold it; `type` is DuckDB's name."""

    name: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one mapping made of one result.

    :param declared: fingerprint of query and mapping; shapes of two declarations differ because somebody said so. :param kinds: by the field's dotted path.
    """

    declared: str
    kinds: Mapping[str, str]


def kind_of(type_: str, *, is_json: bool) -> str:
    """The kind of a field's values, in words; `type_` is DuckDB's."""
    if is_json:
        return "json"
    if type_.endswith("[]"):
        return f"list of {kind_of(type_.removesuffix('[]'), is_json=False)}"
    if decimal := _DECIMAL.fullmatch(type_):
        return f"decimal with {decimal[2]} places"
    return _KINDS.get(type_, "timestamp" if type_.startswith("TIMESTAMP") else type_.lower())


def shape_of(spec: SyncSpec, kinds: Mapping[str, str]) -> Shape:
    """The shape of a sync's mapped result."""
    stored = sync_spec_to_json(spec)
    declared = json.dumps([stored["query"], stored["table"], stored["mapping"]], sort_keys=True)
    return Shape(declared=hashlib.sha256(declared.encode()).hexdigest()[:32], kinds=kinds)


def changes_between(former: Shape | None, now: Shape | None) -> list[str]:
    """What the result changed by itself, in words; empty where nobody knows what was, or where query or mapping were changed."""
    if former is None or now is None or former.declared != now.declared:
        return []
    words = [
        f"`{path}` was {former.kinds[path]}, is {now.kinds[path]}"
        for path in now.kinds
        if path in former.kinds and former.kinds[path] != now.kinds[path]
    ]
    words += [f"`{path}` is new" for path in now.kinds if path not in former.kinds]
    words += [f"`{path}` is gone" for path in former.kinds if path not in now.kinds]
    more = [f"{len(words) - _MOST_NAMED} more"] if len(words) > _MOST_NAMED else []
    return [*words[:_MOST_NAMED], *more]


def key_casts(former: Sequence[KeyColumn], now: Sequence[KeyColumn]) -> dict[str, str]:
    """The type that each field of a snapshot's key is cast to, where it became a wider one of its kind.

    :raises ConfigError: the key is another one: nobody knows which of its values were sent.
    """
    if [column.name for column in former] != [column.name for column in now]:
        was, is_ = (", ".join(f"`{column.name}`" for column in key) for key in (former, now))
        raise ConfigError(
            f"the key is {is_}, and that of the snapshot is {was}",
            next_step="give the sync its former key again, or declare one of another name: it offers everything",
        )
    casts = {}
    for before, after in zip(former, now, strict=True):
        if before.type == after.type:
            continue
        if not _is_wider(before.type, after.type):
            raise ConfigError(
                f"the key `{after.name}` is {after.type}, and that of the snapshot is {before.type}",
                next_step="map the key with a `cast` to its former type, or declare a sync of another name: it offers everything",
            )
        casts[after.name] = after.type
    return casts


def _is_wider(before: str, after: str) -> bool:
    if before in _INTEGERS and after in _INTEGERS:
        return _INTEGERS.index(after) > _INTEGERS.index(before)
    was, is_ = _DECIMAL.fullmatch(before), _DECIMAL.fullmatch(after)
    return was is not None and is_ is not None and was[2] == is_[2] and int(is_[1]) > int(was[1])
