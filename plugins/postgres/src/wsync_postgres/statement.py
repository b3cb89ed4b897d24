"""A person's query made into one statement with its parameters in place. Pure: no driver, no I/O.

The scanner knows what Postgres' own knows of quotes and comments (PostgreSQL 18, "Lexical Structure", read 2026-11-24), so a colon, a semicolon
or a parenthesis inside them means nothing. It is the first of three locks against a query that writes; the others are the extended protocol,
which takes one statement, and the read-only transaction.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from wsync_sdk import ConfigError, ParameterValue

__all__ = ["Statement", "prepare"]

FIRST_WORDS = frozenset({"select", "with", "table", "values"})

# Two literals with only white space between them, a newline in it, are one literal: E'a'\n'\'' goes on with the rules of E''.
_JOINT = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:\s|--[^\n\r]*+[\n\r])*+"
_ESCAPED = r"'(?:[^'\\]|\\.|'')*+'"
_PLAIN = r"'(?:[^']|'')*+'"
_TOKEN = re.compile(
    rf"""
      (?P<space>\s+|--[^\n\r]*)
    | (?P<comment>/\*)
    | (?P<quoted>[eE]{_ESCAPED}(?:{_JOINT}{_ESCAPED})*+ | (?:[uU]&|[bBxXnN])?{_PLAIN}(?:{_JOINT}{_PLAIN})*+ | (?:[uU]&)?"(?:[^"]|"")*+")
    | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$)
    | (?P<cast>::|:=)
    | :(?P<parameter>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ONE_SELECT = "write one SELECT, WITH, VALUES or TABLE statement"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    kind: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One query, ready to be put into parentheses.

    :param text: the query with its parameters rendered. :param source: as the person wrote it.
    :param marks: pairs (position in text, position in source), rising, from which any position can be traced back.
    """

    text: str
    source: str
    marks: tuple[tuple[int, int], ...] = ((0, 0),)

    def place(self, position: int) -> str:
        """Where the 0-based `position` of `text` is in `source`, in a person's words; empty if outside."""
        if not 0 <= position <= len(self.text):
            return ""
        rendered, written = self.marks[bisect_right([mark[0] for mark in self.marks], position) - 1]
        before = self.source[: written + position - rendered]
        return f"line {before.count(chr(10)) + 1}, column {len(before) - (before.rfind(chr(10)) + 1) + 1}"


def prepare(sql: str, parameters: Mapping[str, ParameterValue], literal: Callable[[ParameterValue], str]) -> Statement:
    """The query as one statement, each `:name` replaced by `literal(value)`.

    :raises ConfigError: not one query; a parameter without a value, or a value without a parameter; unbalanced quotes or parentheses.
    """
    if "\0" in sql:
        raise ConfigError("the query has a NUL character", next_step="remove it")
    tokens = _without_end(list(_scan(sql)))
    _check_shape(tokens)
    _check_names({token.text for token in tokens if token.kind == "parameter"}, set(parameters))
    parts: list[str] = []
    marks: list[tuple[int, int]] = [(0, 0)]
    length = 0
    for token in tokens:
        is_parameter = token.kind == "parameter"
        part = literal(parameters[token.text]) if is_parameter else sql[token.start : token.end]
        parts.append(part)
        length += len(part)
        if is_parameter:
            marks.append((length, token.end))
    return Statement(text="".join(parts), source=sql, marks=tuple(marks))


def _scan(sql: str) -> Iterator[_Token]:
    position = 0
    while position < len(sql):
        match = _TOKEN.match(sql, position)
        if match is None:  # pragma: no cover - the last alternative takes any character
            raise ConfigError("the query can't be read", next_step=_ONE_SELECT)
        kind = match.lastgroup or "other"
        end = match.end()
        if kind == "comment":
            end = _comment_end(sql, position)
        elif kind == "dollar":
            end = _dollar_end(sql, match.group(), end)
        elif match.group() in {"'", '"'}:
            raise ConfigError("a quote in the query is not closed", next_step=f"close the quote that opens at character {position + 1}")
        yield _Token(kind=kind, start=position, end=end, text=match.group(kind))
        position = end


def _comment_end(sql: str, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    raise ConfigError("a comment in the query is not closed", next_step=f"close the comment that opens at character {start + 1}")


def _dollar_end(sql: str, tag: str, start: int) -> int:
    end = sql.find(tag, start)
    if end < 0:
        raise ConfigError("a dollar quote in the query is not closed", next_step="close it with the tag that opened it")
    return end + len(tag)


def _without_end(tokens: list[_Token]) -> list[_Token]:
    """Without one closing semicolon, and what is blank around it."""
    while tokens and tokens[-1].kind in {"space", "comment"}:
        tokens.pop()
    if tokens and tokens[-1].text == ";":
        tokens.pop()
    return tokens


def _check_shape(tokens: list[_Token]) -> None:
    words = [token for token in tokens if token.kind not in {"space", "comment"} and token.text != "("]
    if not words or words[0].text.lower() not in FIRST_WORDS:
        raise ConfigError("the query is not a SELECT", next_step=_ONE_SELECT)
    depth = 0
    for token in tokens:
        if token.kind != "other":
            continue
        if token.text == ";":
            raise ConfigError("the query has more than one statement", next_step=_ONE_SELECT)
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth < 0:
            raise ConfigError("the query closes a parenthesis that it did not open", next_step=f"look at character {token.start + 1}")
    if depth:
        raise ConfigError("the query does not close a parenthesis", next_step="close it")


def _check_names(used: set[str], given: set[str]) -> None:
    if missing := sorted(used - given):
        raise ConfigError(f"the parameter `:{missing[0]}` has no value", next_step=f"give `{missing[0]}` under `parameters:`")
    if unknown := sorted(given - used):
        raise ConfigError(f"the query has no parameter `:{unknown[0]}`", next_step=f"remove `{unknown[0]}` or use it in the query")
