"""How near does the comparison of a result with its snapshot come to DuckDB's bare joins over the same Parquet files?

Usage: .venv/bin/python benchmarks/diff.py [--rows 10000000] [--rounds 3]

The stage holds 1 % changed and 1 % new rows, and 1 % of the snapshot's have left. A round compares all partitions as a `mirror` run does, counts, change
log and all, in a process of its own and within a task's memory; and has DuckDB join the same files, all at once and with all the memory there is: which
rows are new or differ, and which keys left. The last line is one JSON object: rows_per_s, limit_per_s (both medians, of the stage's rows), ratio (median
of the rounds' ratios), ratio_range and peak_rss_mib (of the comparing process).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from wsync_generated.source import SCHEMA, made_up

BATCH_ROWS = 65_536


class Range:
    """Rows of one revision, as a source reads them."""

    def __init__(self, first: int, rows: int, revision: int) -> None:
        self.first, self.rows, self.revision = first, rows, revision

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(self.first, self.first + self.rows, BATCH_ROWS):
            rows = min(BATCH_ROWS, self.first + self.rows - start)
            yield made_up(start, rows, revision=self.revision, changed_parts=100)


def stage(folder: Path, rows: Range, partitions: int) -> dict[int, list[Path]]:
    """Map, hash and write them, as an extract does."""
    from wsync_engine.model.sync import Mode, SyncSpec
    from wsync_engine.pipeline.local_database import Budget, opened
    from wsync_engine.pipeline.mapping import PARTITION, compile_mapping
    from wsync_engine.pipeline.source_columns import placed
    from wsync_engine.pipeline.sql import PARQUET

    spec = SyncSpec(name="b", source="w", sink="s", query="SELECT", key=("id",), stream="b", mode=Mode.MIRROR)
    mapping = compile_mapping(spec, SCHEMA, seed="seed", partitions=partitions)
    folder.mkdir()
    with opened(folder, Budget()) as connection:
        batches = (pa.RecordBatch.from_arrays(batch.columns, schema=placed(SCHEMA)) for batch in rows.batches())
        connection.register("source", pa.RecordBatchReader.from_batches(placed(SCHEMA), batches))
        connection.execute(
            f"COPY ({mapping.select}) TO '{folder}' ({PARQUET}, ROW_GROUP_SIZE 61440, PARTITION_BY ({PARTITION}),"
            " WRITE_PARTITION_COLUMNS true, OVERWRITE_OR_IGNORE true)"
        )
    return {part: sorted(folder.glob(f"{PARTITION}={part}/*.parquet")) for part in range(partitions)}


def prepare(folder: Path, rows: int) -> int:
    """Stage and snapshot, in as many partitions as a run would make; returns how many."""
    from wsync_engine.pipeline.local_database import Budget
    from wsync_engine.pipeline.manifest import Manifest, partitions_for

    empty = Manifest(version=0, partitions=1, files=(None,), algorithm="", seed="")
    partitions = partitions_for(rows, empty, rows_per_partition=Budget().rows_per_partition)
    one_percent = rows // 100
    before = stage(folder / "before", Range(0, rows, 0), partitions)
    stage(folder / "stage", Range(one_percent, rows, 1), partitions)
    connection = duckdb.connect()
    for part, files in before.items():
        connection.execute(
            "COPY (SELECT id, wsync_hash, false AS wsync_unsure, CAST(NULL AS UUID) AS wsync_rejected_hash, 0 AS wsync_rejections,"
            f" CAST(NULL AS BIGINT) AS wsync_offer_at FROM read_parquet({[str(file) for file in files]}, hive_partitioning = false))"
            f" TO '{folder / f'snapshot-{part}.parquet'}' (FORMAT parquet, PARQUET_VERSION V2, COMPRESSION snappy)"
        )
    return partitions


def compare(folder: Path, partitions: int) -> None:
    """The measured process."""
    from wsync_engine.model.ids import uuid7
    from wsync_engine.model.sync import Duplicates, Mode
    from wsync_engine.pipeline.diff import DiffCounts, DiffInput, diff_partition
    from wsync_engine.pipeline.local_database import Budget
    from wsync_engine.pipeline.manifest import KeyColumn, Manifest
    from wsync_engine.pipeline.mapping import PARTITION
    from wsync_engine.secrets.keyring import Keyring

    key = (KeyColumn(name="id", type="BIGINT"),)
    manifest = Manifest(version=1, partitions=partitions, files=(), algorithm="", seed="", key=key)
    sealer = Keyring.throwaway().tenant(uuid7()).sealer()
    counts = DiffCounts()
    began_s = time.monotonic()
    for part in range(partitions):
        task = DiffInput(
            partition=part,
            stage=sorted((folder / "stage").glob(f"{PARTITION}={part}/*.parquet")),
            snapshot=folder / f"snapshot-{part}.parquet",
            manifest=manifest,
            key=key,
            fields=tuple(SCHEMA.names),
            mode=Mode.MIRROR,
            duplicates=Duplicates(),
            offer_before_us=0,
            log=folder / f"log-{part}.parquet",
            gone=folder / f"gone-{part}.parquet",
            is_shared=False,
        )
        counts += diff_partition(task, sealer, withhold_deletes=False, scratch=folder, budget=Budget())
    wall_s = time.monotonic() - began_s
    status = Path("/proc/self/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"wall_s": wall_s, "peak_rss_mib": peak_kib / 1024, **counts.to_counts()}))


def bare_joins(folder: Path) -> tuple[float, int, int]:
    """(seconds, rows that are new or differ, keys that left)."""
    connection = duckdb.connect()
    connection.execute("SET threads = 2")
    connection.execute(f"CREATE VIEW stage AS FROM read_parquet('{folder}/stage/*/*.parquet', hive_partitioning = false)")
    connection.execute(f"CREATE VIEW snapshot AS FROM read_parquet('{folder}/snapshot-*.parquet')")
    began_s = time.monotonic()
    changed = connection.execute(
        "SELECT count(*) FROM stage s LEFT JOIN snapshot o USING (id) WHERE o.wsync_hash IS DISTINCT FROM s.wsync_hash"
    ).fetchone()
    left = connection.execute("SELECT count(*) FROM snapshot o ANTI JOIN stage s USING (id)").fetchone()
    assert changed is not None
    assert left is not None
    return time.monotonic() - began_s, changed[0], left[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        compare(Path(arguments.compare[0]), int(arguments.compare[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        partitions = prepare(Path(folder), arguments.rows)
        rounds = [one_round(Path(folder), partitions) for _ in range(arguments.rounds)]
    print(json.dumps({"rows": arguments.rows, "partitions": partitions, **summary(arguments.rows, rounds)}))


def one_round(folder: Path, partitions: int) -> tuple[float, float, float]:
    limit_s, changed, left = bare_joins(folder)
    command = [sys.executable, __file__, "--compare", str(folder), str(partitions)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert (found["upserts"], found["deletes"]) == (changed, left), (found, changed, left)
    print(f"bare joins {limit_s:.2f} s, comparison {found['wall_s']:.2f} s", file=sys.stderr)
    return limit_s, found["wall_s"], found["peak_rss_mib"]


def summary(rows: int, rounds: Sequence[tuple[float, float, float]]) -> dict[str, object]:
    ratios = [limit_s / ours_s for limit_s, ours_s, _ in rounds]
    return {
        "rows_per_s": round(rows / statistics.median(ours_s for _, ours_s, _ in rounds)),
        "limit_per_s": round(rows / statistics.median(limit_s for limit_s, _, _ in rounds)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "peak_rss_mib": round(max(peak_mib for _, _, peak_mib in rounds)),
    }


if __name__ == "__main__":
    main()
