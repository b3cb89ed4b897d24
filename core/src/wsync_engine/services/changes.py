"""The difference between what is declared and what is stored, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Change", "FieldChange", "compared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One value that differs; `path` is dotted; None: not there. Values of secrets are never in it."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one object; `note`: what a person should know of it besides."""

    kind: Literal["create", "change", "delete", "unchanged"]
    object: Literal["tenant", "connection", "sync", "schedule"]
    name: str
    fields: tuple[FieldChange, ...] = ()
    note: str = ""


def compared(
    kind_of: Literal["connection", "sync", "schedule"], name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
) -> Change:
    """One object before and after; None: it is not there."""
    differences = tuple(_differences(_flat(old or {}), _flat(new or {})))
    if old is None:
        return Change(kind="create", object=kind_of, name=name, fields=differences)
    if new is None:
        return Change(kind="delete", object=kind_of, name=name)
    return Change(kind="change" if differences else "unchanged", object=kind_of, name=name, fields=differences)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[FieldChange]:
    for path in [*new, *(path for path in old if path not in new)]:
        if old.get(path) != new.get(path):
            yield FieldChange(path=path, old=old.get(path), new=new.get(path))


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):  # the mapping: by target
            flat |= _flat({item["target"]: {name: item[name] for name in item if name != "target"} for item in value}, f"{path}.")
        elif value is not None:
            flat[path] = value
    return flat
