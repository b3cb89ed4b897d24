"""JSON pointers, RFC 6901: how a config says where in a reply something is. Pure."""

from __future__ import annotations

import re

__all__ = ["MISSING", "Json", "at", "parsed"]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
_INDEX = re.compile(r"0|[1-9][0-9]*")


class _Missing:
    """What a pointer gives that leads nowhere; null is a value."""


MISSING = _Missing()


def parsed(pointer: str) -> tuple[str, ...]:
    """The pointer's steps; none for the whole document.

    :raises ValueError: it is no pointer.
    """
    if not pointer:
        return ()
    if not pointer.startswith("/") or re.search(r"~(?![01])", pointer):
        raise ValueError("a JSON pointer is empty or begins with `/`, and `~` is written `~0`")
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/"))


def at(document: Json, steps: tuple[str, ...]) -> Json | _Missing:
    """The value there, or MISSING."""
    for step in steps:
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list) and _INDEX.fullmatch(step) and int(step) < len(document):
            document = document[int(step)]
        else:
            return MISSING
    return document
