"""What part of a query's result a sync reads: the parameters that the engine itself binds, and what a stored cursor is good for.

`:cursor` and `:last_sync_time` stand for where the last run came to, so a query that names one of them gives a part of its rows only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict

from wsync_engine.model.sync import FromRun, Read, SyncSpec

__all__ = ["CURSOR", "LAST_SYNC_TIME", "engine_parameters", "named_parameters", "reading_fingerprint"]

CURSOR = "cursor"
LAST_SYNC_TIME = "last_sync_time"
# What no parameter is in, as far as the warehouses' dialects agree; the source's own scanner has the last word.
_PARAMETER = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | --[^\n]* | /\*.*?\*/ | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | :: | :(?P<name>[A-Za-z_]\w*)""",
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
