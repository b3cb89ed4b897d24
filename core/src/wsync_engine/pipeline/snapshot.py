"""The snapshot a run starts from: the manifest as stored, its files looked at, and a resync that was asked for applied.

A sync counts how often a resync was asked for, its manifest up to which of these it has been done. While the first is ahead, every entry is read as
`unsure`, so a request survives a run that is under way, dies or sends only half: the next one goes on with it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from wsync_engine.pipeline.canonical import ALGORITHM
from wsync_engine.pipeline.local_database import LOST_NEXT_STEP, Budget, SnapshotLost, is_damage, opened
from wsync_engine.pipeline.manifest import Manifest
from wsync_engine.pipeline.sql import text
from wsync_engine.state.records import SnapshotRow
from wsync_engine.storage import LocalStorage

__all__ = ["current_manifest", "is_resync_wanted"]


def is_resync_wanted(row: SnapshotRow) -> bool:
    """Whether a resync was asked for that no run has folded yet."""
    done: int = (row.manifest or {}).get("resync", 0)
    return row.resync > done


def current_manifest(
    row: SnapshotRow, storage: LocalStorage, *, seed: str, is_adopting: bool, scratch: Path, budget: Budget
) -> tuple[Manifest, int]:
    """What the run's result is compared with, and how many of its files are lost.

    :returns: files are lost only to a resync or an adoption: their entries are forgotten then, else they block the sync.
    :raises SnapshotLost: files are missing or damaged (`snapshot_lost`).
    """
    if row.manifest is None:
        return Manifest(version=row.version, partitions=1, files=(None,), algorithm=ALGORITHM, seed=seed, resync=row.resync), 0
    manifest = Manifest.from_json(row.version, row.manifest)
    if manifest.resync < row.forgotten:  # another destination's: what that one holds says nothing of this one
        return replace(manifest, files=(None,) * manifest.partitions, rows=0, key=(), resync=row.resync, delivery=0), 0
    paths = {name: storage.absolute(name) for name in manifest.files if name is not None}
    if not is_resync_wanted(row) and not is_adopting:
        lost = {name for name, path in paths.items() if not _has_footer(path)}
        lost |= {name for name in manifest.carried if name is not None and not storage.absolute(name).is_file()}
        if lost:
            raise SnapshotLost(
                f"snapshot_lost: {len(lost)} of the snapshot's files are missing or damaged",
                next_step=LOST_NEXT_STEP,
            )
        return manifest, 0
    lost = {name for name, path in paths.items() if not _is_whole(path, scratch, budget)}
    files = tuple(None if name in lost else name for name in manifest.files)
    return replace(manifest, files=files, resync=row.resync, is_unsure=is_resync_wanted(row)), len(lost)


def _has_footer(path: Path) -> bool:
    """A look at the file's end: cheap enough for every run."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def _is_whole(path: Path, scratch: Path, budget: Budget) -> bool:
    """Read all of it: nobody is asked again."""
    if not _has_footer(path):
        return False
    with opened(scratch, budget) as connection:
        try:
            connection.execute(f"SELECT max(hash(COLUMNS(*))) FROM read_parquet({text(str(path))}, hive_partitioning = false)").fetchone()
        except duckdb.Error as exc:
            if is_damage(exc):
                return False
            raise
    return True
