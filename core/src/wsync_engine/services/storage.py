"""Which storage is the installation's: snapshots lie in it, so a worker with another one would take every sync for lost, or start it anew."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from wsync_engine.scheduler.rows import select
from wsync_engine.state.statements import load_statements
from wsync_engine.storage import storage_id
from wsync_sdk.errors import ConfigError

__all__ = ["claim_storage", "known_storage_id"]

_SQL = load_statements("setting")
KEY = "storage_id"


def claim_storage(conn: psycopg.Connection[Any], url: str, *, is_new: bool = False) -> None:
    """Compare the storage with the one that the installation began with; the first worker decides which that is.

    :param conn: the engine's login. :param is_new: take this one from now on; snapshots that lie in the former one are lost to it.
    :raises ConfigError: it is another one; nothing was changed.
    """
    ours = storage_id(url)
    value = {"key": KEY, "value": Jsonb(ours)}
    if is_new:
        conn.execute(_SQL["setting_write"], value)
        return
    if select(conn, _SQL["setting_claim"], value)[0]["value"] != ours:
        raise ConfigError(
            "this is not the storage that the installation's snapshots are in",
            next_step="set WSYNC_STORAGE_URL to the storage that all workers share; if that is gone for good, start once with `--new-storage`",
        )


def known_storage_id(conn: psycopg.Connection[Any]) -> str | None:
    """The id of the installation's storage; None: no worker has started yet."""
    row = conn.execute(_SQL["setting_read"], {"key": KEY}).fetchone()
    return None if row is None else row[0]
