"""What part of a query's result a sync reads: the parameters that the engine itself binds, and what a stored cursor is good for.

`:cursor` and `:last_sync_time` stand for where the last run came to, so a query that names one of them gives a part of its rows only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from dataclasses import asdict
from typing import NamedTuple

from wsync_engine.model.sync import FromRun, Mode, Read, SyncSpec
from wsync_sdk.errors import ConfigError

__all__ = [
    "CURSOR",
    "LAST_SYNC_TIME",
    "ReadingMistake",
    "check_reading",
    "engine_parameters",
    "named_parameters",
    "reading_fingerprint",
    "reading_mistake",
]

CURSOR = "cursor"
LAST_SYNC_TIME = "last_sync_time"
# What no parameter is in, as far as the warehouses' dialects agree; the source's own scanner has the last word.
_PARAMETER = re.compile(
    r"""(?<!\w)[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | --[^\n]* | /\*.*?\*/ | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | :: | :(?P<name>[A-Za-z_]\w*)""",
    re.VERBOSE | re.DOTALL,
)


def named_parameters(sql: str) -> frozenset[str]:
    """The names that stand behind a colon in a query, outside of quotes and comments."""
    return frozenset(match["name"] for match in _PARAMETER.finditer(sql) if match["name"])


def engine_parameters(spec: SyncSpec) -> frozenset[str]:
    """Which of the parameters CURSOR and LAST_SYNC_TIME the engine binds; one that the sync declares is the sync's own.

    With any of them a result is what changed, and says nothing of rows that it does not hold.
    """
    named = named_parameters(spec.query or "") - spec.parameters.keys()
    ours = {LAST_SYNC_TIME, CURSOR} if spec.read is Read.INCREMENTAL else {LAST_SYNC_TIME}
    return named & ours


class ReadingMistake(NamedTuple):
    """Settings that can't be meant together: the sync's field that says so, what is wrong, and what to do."""

    field: str
    what: str
    next_step: str


def reading_mistake(  # noqa: PLR0911 - a mistake per line
    *, read: Read, mode: Mode, query: str | None, cursor_column: str | None, declared: Set[str]
) -> ReadingMistake | None:
    """What is wrong with how a sync says what it reads.

    :param declared: names of the sync's own parameters.
    """
    named = named_parameters(query or "") - declared
    is_whole = mode in (Mode.MIRROR, Mode.REPLACE)
    if is_whole and LAST_SYNC_TIME in named:
        what = f"`{mode}` deletes what is not in the result, and a query by `:last_sync_time` gives a part of it"
        return ReadingMistake("mode", what, "use `mode: upsert` or `append`, or a query without `:last_sync_time`")
    if read is Read.FULL:
        if cursor_column is not None:
            return ReadingMistake("cursor", "`cursor` goes with `read: incremental`", "write `read: incremental`, or remove `cursor`")
        next_step = "write `read: incremental` with a `cursor`, or give `cursor` under `parameters`"
        return ReadingMistake("query", "`:cursor` goes with `read: incremental`", next_step) if CURSOR in named else None
    if is_whole:
        what = f"`{mode}` deletes what is not in the result, and an incremental read gives a part of it"
        return ReadingMistake("read", what, "use `mode: upsert` or `append`, or `read: full`")
    if query is None:
        return ReadingMistake("table", "a table is read whole", "write a `query` instead: SELECT … WHERE updated_at >= :cursor")
    if cursor_column is None:
        next_step = "add `cursor: {column: updated_at}`, with a column of the query"
        return ReadingMistake("read", "an incremental read needs a `cursor`", next_step)
    if CURSOR in declared:
        return ReadingMistake("parameters", "`:cursor` is where the last run came to", "give the parameter another name")
    if CURSOR not in named:
        what = "the query does not say `:cursor`, so that it would read everything each time"
        return ReadingMistake("query", what, f"add to the query: WHERE {cursor_column} >= :cursor")
    return None


def check_reading(spec: SyncSpec) -> None:
    """See that a sync says what it reads.

    :raises ConfigError: it does not.
    """
    column = None if spec.cursor is None else spec.cursor.column
    declared = spec.parameters.keys()
    mistake = reading_mistake(read=spec.read, mode=spec.mode, query=spec.query, cursor_column=column, declared=declared)
    if mistake is not None:
        raise ConfigError(f"sync `{spec.name}`: {mistake.what}", next_step=mistake.next_step)


def reading_fingerprint(spec: SyncSpec, parameters: Mapping[str, object]) -> str:
    """Equal for two runs where the second may begin at the cursor of the first: all that says which rows there are, and what becomes of them.

    :param parameters: of the query, as bound. Those that are the run's own differ from run to run, and don't count.
    """
    counted = {name: value for name, value in parameters.items() if not isinstance(spec.parameters.get(name), FromRun)}
    document = {
        "source": spec.source,
        "query": spec.query,
        "key": spec.key,
        "mapping": [asdict(entry) for entry in spec.mapping],
        "duplicates": asdict(spec.duplicates),
        "cursor": None if spec.cursor is None else [spec.cursor.column, spec.cursor.initial],
        "parameters": {name: [type(value).__name__, str(value)] for name, value in counted.items()},
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]
