"""Keys as people type them, as the snapshot holds them, and where they lie in it.

Between processes a key is a tuple of texts, one per key column in the key's order, each as DuckDB writes a value of the column's type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb

from wsync_engine.pipeline.canonical import canonical_value, partition_of_key
from wsync_engine.pipeline.local_database import Budget, opened
from wsync_engine.pipeline.manifest import KeyColumn, Manifest
from wsync_engine.pipeline.sql import identifier, path_list
from wsync_engine.storage import LocalStorage
from wsync_sdk import ConfigError

__all__ = ["KeyText", "create_key_table", "has_key", "known_keys", "parsed_keys"]

KeyText = tuple[str, ...]


def parsed_keys(typed: Sequence[str], columns: Sequence[KeyColumn]) -> list[KeyText]:
    """What people typed, each once: the value of a key of one column; `a=1,b=2` for one of several.

    :raises ConfigError: it does not fit the key's columns, or their types. No value is shown.
    """
    texts = [_split(one, columns) for one in typed]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return list(dict.fromkeys(_cast(connection, text, columns) for text in texts))


def _split(typed: str, columns: Sequence[KeyColumn]) -> KeyText:
    if len(columns) == 1:
        return (typed,)
    # A comma ends a value only where another column's name follows.
    names = "|".join(re.escape(column.name) for column in columns)
    parts = re.split(rf"(?:^|,)({names})=", typed)
    value_by_name = dict(zip(parts[1::2], parts[2::2], strict=True))
    if parts[0] or len(parts) != 1 + 2 * len(columns) or len(value_by_name) != len(columns):
        form = ",".join(f"{column.name}=VALUE" for column in columns)
        raise ConfigError(f"the key has {len(columns)} columns, each with one value", next_step=f"write --key {form}")
    return tuple(value_by_name[column.name] for column in columns)


def _cast(connection: duckdb.DuckDBPyConnection, texts: KeyText, columns: Sequence[KeyColumn]) -> KeyText:
    casts = ", ".join(f"CAST(TRY_CAST(? AS {column.type}) AS VARCHAR)" for column in columns)
    row = connection.execute(f"SELECT {casts}", list(texts)).fetchone()
    assert row is not None
    for column, value in zip(columns, row, strict=True):
        if value is None:
            raise ConfigError(f"`{column.name}`: a value of --key is no {column.type}", next_step="write it as the query gives it")
    return tuple(row)


def create_key_table(connection: duckdb.DuckDBPyConnection, table: str, columns: Sequence[KeyColumn], keys: Iterable[KeyText]) -> None:
    """A temporary table of keys, in the types of `columns`."""
    fields = ", ".join(f"{identifier(column.name)} {column.type}" for column in columns)
    connection.execute(f"CREATE TEMP TABLE {table} ({fields})")
    values = ", ".join(f"CAST(? AS {column.type})" for column in columns)
    rows = [list(key) for key in keys]
    if rows:
        connection.executemany(f"INSERT INTO {table} VALUES ({values})", rows)


def has_key(columns: Sequence[KeyColumn], table: str, of: str) -> str:
    """SQL: whether the row of `of` has one of the table's keys."""
    same = " AND ".join(f"k.{identifier(column.name)} = {of}.{identifier(column.name)}" for column in columns)
    return f"EXISTS (FROM {table} k WHERE {same})"


def known_keys(manifest: Manifest, storage: LocalStorage, keys: Sequence[KeyText], scratch: Path) -> set[KeyText]:
    """Those of the keys that the snapshot has an entry of; only the partitions that they are in are read.

    :raises SnapshotLost: a file is missing or damaged.
    """
    with opened(scratch, Budget()) as connection:
        create_key_table(connection, "asked", manifest.key, keys)
        texts = [f"coalesce({canonical_value(identifier(column.name), column.type)}, '')" for column in manifest.key]
        parts = connection.execute(f"SELECT DISTINCT {partition_of_key(texts, manifest.partitions)} FROM asked").fetchall()
        files = sorted({name for (part,) in parts if (name := manifest.files[part]) is not None})
        if not files:
            return set()
        shown = ", ".join(f"CAST(s.{identifier(column.name)} AS VARCHAR)" for column in manifest.key)
        paths = path_list(storage.absolute(name) for name in files)
        found = connection.execute(
            f"SELECT {shown} FROM read_parquet({paths}, hive_partitioning = false) s WHERE {has_key(manifest.key, 'asked', 's')}"
        ).fetchall()
        return {tuple(row) for row in found}
