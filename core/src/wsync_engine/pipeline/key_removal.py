"""Files without some keys: of the snapshot, of carried rows, of change logs whose runs are folded.

A file that has none of the keys stays as it is. Another one is written anew beside it: a snapshot's counts once its manifest is swapped in, a change log takes
the former one's place at once, as after the fold nobody knows its rows by their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from wsync_engine.model.ids import uuid7
from wsync_engine.pipeline.carried import open_sealed, seal
from wsync_engine.pipeline.diff import LOG_ROW_GROUP
from wsync_engine.pipeline.local_database import Budget, opened
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.pipeline.manifest import KeyColumn, Manifest
from wsync_engine.pipeline.sql import PARQUET, ROW_GROUP_BYTES, identifier, text
from wsync_engine.pipeline.subscriber_keys import create_key_table, has_key, parsed_keys
from wsync_engine.state.records import Cipher
from wsync_engine.storage import LocalStorage
from wsync_sdk import ConfigError

__all__ = ["Removed", "remove_from_log", "snapshot_without"]

_BUDGET = Budget(memory_bytes=512 * 1024 * 1024)
_LOG = f"{PARQUET}, ROW_GROUP_SIZE {LOG_ROW_GROUP}, ROW_GROUP_SIZE_BYTES {ROW_GROUP_BYTES}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """A snapshot without the keys: its manifest, and how many entries and carried rows it lacks."""

    manifest: Manifest
    entries: int
    carried_rows: int


def snapshot_without(
    manifest: Manifest, typed: Sequence[str], *, sync_id: str, storage: LocalStorage, cipher: Cipher, scratch: Path
) -> Removed:
    """Write the files that a snapshot without these keys has instead of its own.

    :param typed: see `parsed_keys`. :param scratch: a folder for what is opened meanwhile.
    :raises ConfigError: one of them is no key. :raises SnapshotLost: a file is missing or damaged.
    """
    rewritten: dict[str, tuple[str | None, int]] = {}
    for name in sorted(manifest.named):
        target = storage.snapshot_folder(sync_id) / f"{uuid7()}-{uuid7()}{Path(name).suffix}"
        source = storage.absolute(name)
        if name in manifest.carried:
            removed = _sealed_without(source, target, manifest.key, typed, cipher=cipher, scratch=scratch)
        else:
            removed = _file_without(source, target, manifest.key, typed, options=PARQUET, scratch=scratch)
        rewritten[name] = (storage.relative(target), removed) if removed else (name, 0)
    entries = sum(rewritten[name][1] for name in {name for name in manifest.files if name is not None})
    carried_rows = sum(rewritten[name][1] for name in {name for name in manifest.carried if name is not None})
    files = tuple(None if name is None else rewritten[name][0] for name in manifest.files)
    carried = tuple(None if name is None else rewritten[name][0] for name in manifest.carried)
    swapped = replace(manifest, files=files, carried=carried, rows=manifest.rows - entries)
    return Removed(manifest=swapped, entries=entries, carried_rows=carried_rows)


def remove_from_log(log: LogRecord, typed: Sequence[str], *, storage: LocalStorage, scratch: Path) -> int:
    """Write a folded run's change log anew without these keys; gives how many changes it lacks. Files that are gone have none."""
    total = 0
    for name in log.files:
        path = storage.absolute(name)
        draft = path.with_name(f".{path.name}.{uuid7()}")
        if not path.is_file():
            continue
        try:
            with suppress(ConfigError):  # what is no key of this log's type is not in it
                removed = _file_without(path, draft, log.key, typed, options=_LOG, scratch=scratch)
                if removed:
                    draft.replace(path)
                total += removed
        finally:
            draft.unlink(missing_ok=True)
    return total


def _file_without(source: Path, target: Path, key: Sequence[KeyColumn], typed: Sequence[str], *, options: str, scratch: Path) -> int:
    """Write `target` only if there is something to be left out; gives how many rows."""
    keys = parsed_keys(typed, key)
    with opened(scratch, _BUDGET) as connection:
        create_key_table(connection, "forgotten", key, keys)
        rows = f"read_parquet({text(str(source))}, hive_partitioning = false) f"
        is_forgotten = has_key(key, "forgotten", "f")
        found = _count(connection, f"{rows} WHERE {is_forgotten}")
        if found:
            order = ", ".join(identifier(column.name) for column in key)
            connection.execute(f"COPY (FROM {rows} WHERE NOT {is_forgotten} ORDER BY {order}) TO {text(str(target))} ({options})")
        return found


def _count(connection: duckdb.DuckDBPyConnection, rows: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {rows}").fetchone()
    assert row is not None
    return int(row[0])


def _sealed_without(source: Path, target: Path, key: Sequence[KeyColumn], typed: Sequence[str], *, cipher: Cipher, scratch: Path) -> int:
    plain, kept = scratch / f"carried-{uuid7()}.parquet", scratch / f"kept-{uuid7()}.parquet"
    try:
        open_sealed(source, plain, cipher.sealer())
        removed = _file_without(plain, kept, key, typed, options=PARQUET, scratch=scratch)
        if removed:
            seal(kept, target, cipher.sealer())
        return removed
    finally:
        plain.unlink(missing_ok=True)
        kept.unlink(missing_ok=True)
