"""YAML with places: plain values, and for each path the line it stands on. No tags, no duplicate keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

__all__ = ["Document", "Path", "Problem", "read_document"]

MOST_NODES = 100_000
"""Anchors are counted each time they are used: a few lines can stand for more than any memory holds."""
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake: where, what, and what to do."""

    path: Path
    what: str
    next_step: str
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The values, and the lines (from 1) of keys and items by path."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest thing around it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_document(text: str) -> Document:
    """Read the text; what is wrong with it as YAML is in `problems`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        what = f"not valid YAML: {exc.problem or 'it can not be read'}"
        return Document(
            value=None,
            problems=(
                Problem(
                    path=(),
                    what=what,
                    next_step="correct the syntax of this line; a value with signs such as * or @, as in a cron expression, stands in quotes",
                    line=line,
                ),
            ),
        )
    except yaml.YAMLError:
        problem = Problem(
            path=(), what="not valid YAML: it holds characters that are not text", next_step="save the file as UTF-8 text", line=1
        )
        return Document(value=None, problems=(problem,))
    reader = _Reader()
    value = None if root is None else reader.value(root, ())
    return Document(value=value, lines=reader.lines, problems=tuple(reader.problems))


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._loader = yaml.SafeLoader("")
        self._open: set[int] = set()
        self._nodes = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            if self._nodes == MOST_NODES + 1:
                self._problem(path, node, f"more than {MOST_NODES:,} values", "write fewer, or anchors that hold fewer")
            return None
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._problem(path, node, "an anchor that holds itself", "write the values out")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, place)) for place, item in enumerate(node.value)]
            return dict(self._entries(node, path)) if isinstance(node, yaml.MappingNode) else None
        finally:
            self._open.discard(id(node))

    def _entries(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            if not key or key == "<<":
                self._problem(path, key_node, "a key must be a plain word", "write `name: value`")
                continue
            if key in seen:
                self._problem((*path, key), key_node, f"`{key}` is there twice", "keep one of the two")
                continue
            seen.add(key)
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            yield key, self.value(value_node, (*path, key))

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.tag not in (
            "tag:yaml.org,2002:str",
            "tag:yaml.org,2002:int",
            "tag:yaml.org,2002:float",
            "tag:yaml.org,2002:bool",
            "tag:yaml.org,2002:null",
        ):
            if node.style is None and node.tag == "tag:yaml.org,2002:timestamp":
                return node.value  # a date is text here: what is JSON has no dates
            self._problem(path, node, "a YAML tag", "write a plain value")
            return None
        try:
            return self._loader.construct_object(node)
        except (ValueError, yaml.YAMLError):
            self._problem(path, node, "a value that can't be read", "put it into quotes")
            return None

    def _problem(self, path: Path, node: yaml.Node, what: str, next_step: str) -> None:
        self.problems.append(Problem(path=path, what=what, next_step=next_step, line=node.start_mark.line + 1))
