"""The Lua scripts by name, loaded once; EVALSHA first, EVAL when the server has forgotten (a restart, a promotion)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha1
from pathlib import Path
from typing import Any

from redis.exceptions import NoScriptError

from wsync_engine.index.connection import Client, execute

__all__ = ["run_script"]

_FOLDER = Path(__file__).with_name("lua")
_OF_SCHEDULES = {"upsert_due", "claim_due", "check"}
_ALONE = {"take_turns"}
"""They know of no incarnation: what they keep is nothing that Postgres could load."""


@lru_cache(maxsize=64)
def _source(name: str) -> tuple[str, str]:
    parts = [name] if name in _ALONE else ["prelude", name] if name in _OF_SCHEDULES else ["prelude", "runs", name]
    source = "\n".join((_FOLDER / f"{part}.lua").read_text("utf-8") for part in parts)
    return source, sha1(source.encode(), usedforsecurity=False).hexdigest()


def run_script(client: Client, name: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
    """What the script returns, undecoded; errors of the server are left to the caller."""
    source, digest = _source(name)
    try:
        return execute(client, keys[0], "EVALSHA", digest, len(keys), *keys, *arguments)
    except NoScriptError:
        return execute(client, keys[0], "EVAL", source, len(keys), *keys, *arguments)
