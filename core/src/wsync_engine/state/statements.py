"""Named SQL statements from `sql/<table>.sql`: `-- name: noun_verb` opens one, `:name` is a parameter, values are always bound.

A colon is no parameter in a string, a quoted name, a comment, a dollar-quoted body, a cast (`::`) or an assignment (`:=`).
An array slice needs spaces (`a[1 : n]`, with a parameter `a[1 : :n]`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["SQL_FOLDER", "load_statements", "parse_statements", "psycopg_form"]

SQL_FOLDER = Path(__file__).with_name("sql")
_NAME = re.compile(r"^--[ \t]*name:[ \t]*(\S*)[ \t]*$", re.MULTILINE)
_NOUN_VERB = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*.*?\*/ )
    | (?P<verbatim>
          [eE]'(?:[^'\\]|''|\\.)*'              # a string in which a backslash escapes
        | '(?:[^']|'')*'
        | "(?:[^"]|"")*"
        | \$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$
        | :: | :=
      )
    | : (?P<parameter> [A-Za-z_]\w* )
    | (?P<percent> % )
    """,
    re.VERBOSE | re.DOTALL,
)


@cache
def load_statements(table: str, folder: Path = SQL_FOLDER) -> Mapping[str, bytes]:
    """The statements of one table's file by name, in psycopg's form. Execute them with a mapping, be it empty: `%` is escaped.

    Bytes, because psycopg takes no `str` that is not a literal; nothing is ever put into them.
    """
    return parse_statements((folder / f"{table}.sql").read_text(encoding="utf-8"))


def parse_statements(text: str) -> Mapping[str, bytes]:
    """Split a file's text at its `-- name:` lines.

    :raises ValueError: text before the first name, a name that is not `noun_verb`, or one that comes twice.
    """
    head, *parts = _NAME.split(text)
    if _TOKEN.sub("", head).strip():
        raise ValueError("a statement stands before the first `-- name:` line")
    statements: dict[str, bytes] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if not _NOUN_VERB.fullmatch(name):
            raise ValueError(f"not a statement's name: {name!r} (noun_verb)")
        if name in statements:
            raise ValueError(f"two statements are called {name}")
        # The name goes along: `pg_stat_activity` and slow-query logs then show which statement it is.
        statements[name] = f"/* {name} */ {psycopg_form(body).strip().removesuffix(';')}".encode()
    return statements


def psycopg_form(sql: str) -> str:
    """`:name` becomes `%(name)s`, `%` becomes `%%`, comments go."""
    return _TOKEN.sub(_psycopg_token, sql)


def _psycopg_token(match: re.Match[str]) -> str:
    if match["comment"]:
        return " "
    if match["parameter"]:
        return f"%({match['parameter']})s"
    return match[0].replace("%", "%%")
