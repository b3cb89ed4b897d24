"""Which rejections are of certain keys: their payloads say, as far as they fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from uuid import UUID

import duckdb
import pyarrow as pa

from wsync_engine.pipeline.manifest import KeyColumn
from wsync_engine.pipeline.subscriber_keys import create_key_table, has_key, parsed_keys
from wsync_sdk import ConfigError

__all__ = ["with_keys"]


def with_keys(rejections: Iterable[tuple[UUID, Sequence[Sequence[str]] | None, bytes]], typed: Sequence[str]) -> list[UUID]:
    """Those of the rejections that are of one of these keys.

    :param rejections: id, the key's names and types in its run, and the payload, opened. :param typed: see `parsed_keys`.
    """
    found = []
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for rejection_id, stored, payload in rejections:
            key = [KeyColumn(name=name, type=kind) for name, kind in stored or ()]
            with suppress(ConfigError):  # what is no key of its run's type is not in it
                if key and _has_key(connection, key, payload, typed):
                    found.append(rejection_id)
    return found


def _has_key(connection: duckdb.DuckDBPyConnection, key: Sequence[KeyColumn], payload: bytes, typed: Sequence[str]) -> bool:
    with pa.ipc.open_stream(payload) as reader:
        row = reader.read_all()
    if not {column.name for column in key} <= set(row.schema.names):
        return False
    connection.execute("DROP TABLE IF EXISTS forgotten")
    create_key_table(connection, "forgotten", key, parsed_keys(typed, key))
    connection.register("refused", row.select([column.name for column in key]))
    return connection.execute(f"SELECT 1 FROM refused f WHERE {has_key(key, 'forgotten', 'f')}").fetchone() is not None
