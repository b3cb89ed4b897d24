"""How near does the HTTP sink's rendering come to arro3's bare `write_ndjson` of the same rows?

Usage: .venv/bin/python benchmarks/render_json.py [--rows 1000000] [--rounds 5]

Nine columns (bigint, three texts, int, bool, float, numeric, timestamptz), in windows of 32,768 rows as a delivery renders them, one thread; both in
turn. The last line is one JSON object: rows_per_s, limit_per_s (medians), ratio (median of the rounds' ratios), ratio_range, json_rows_per_s (with a jsonb
in place of the int) and peak_rss_mib.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import time
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pyarrow as pa
from arro3.io import write_ndjson

from wsync_http.records import Style, rendered
from wsync_sdk import OP
from wsync_sdk.records import JsonStyle

WINDOW = 32_768
STYLE = Style(json=JsonStyle(separator=b",", nulls_sent=True, non_finite_rejected=True, decimals_as_text=False))


def changes(rows: int, *, with_json: bool) -> pa.RecordBatch:
    numbers = np.arange(rows)
    fifth = pa.array([f'{{"n": {n}, "tags": ["a", "b"]}}' for n in range(rows)]) if with_json else pa.array((numbers % 90).astype(np.int32))
    metadata = {b"wsync.logical": b"json"} if with_json else None
    columns = [
        (pa.field(OP, pa.string()), pa.repeat("upsert", rows)),
        (pa.field("id", pa.int64()), pa.array(numbers)),
        (pa.field("email", pa.string()), pa.array([f"user{n}@example.com" for n in range(rows)])),
        (pa.field("full_name", pa.string()), pa.array([f"Zoë 日本 {n}" if n % 7 else None for n in range(rows)])),
        (pa.field("plan", pa.string()), pa.array([("free", "pro", "team", None)[n % 4] for n in range(rows)])),
        (pa.field("fifth", fifth.type, metadata=metadata), fifth),
        (pa.field("active", pa.bool_()), pa.array(numbers % 3 == 0)),
        (pa.field("score", pa.float64()), pa.array((numbers % 100_000) / 7.0)),
        (pa.field("balance", pa.decimal128(12, 2)), pa.array([Decimal(n % 10_000) / 100 for n in range(rows)], pa.decimal128(12, 2))),
        (
            pa.field("seen_at", pa.timestamp("us", "UTC")),
            pa.array(1_700_000_000_000_000 + numbers * 1_000_000).cast(pa.timestamp("us", "UTC")),
        ),
    ]
    return pa.RecordBatch.from_arrays([array for _, array in columns], schema=pa.schema([field for field, _ in columns]))


def timed(batch: pa.RecordBatch, render: Callable[[pa.RecordBatch], None]) -> float:
    started_s = time.perf_counter()
    for first in range(0, batch.num_rows, WINDOW):
        render(batch.slice(first, WINDOW))
    return time.perf_counter() - started_s


def ours(batch: pa.RecordBatch) -> None:
    rendered(batch, ["id"], STYLE, STYLE)


def bare(batch: pa.RecordBatch) -> None:
    write_ndjson(batch.select(range(1, batch.num_columns)), io.BytesIO(), explicit_nulls=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    plain, with_json = changes(options.rows, with_json=False), changes(options.rows, with_json=True)
    for warm_up in (ours, bare):
        timed(plain.slice(0, WINDOW), warm_up)
    rounds = [(timed(plain, ours), timed(plain, bare), timed(with_json, ours)) for _ in range(options.rounds)]
    ratios = sorted(limit / own for own, limit, _ in rounds)
    own, limit, nested = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(
        json.dumps(
            {
                "rows_per_s": round(options.rows / own),
                "limit_per_s": round(options.rows / limit),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
                "json_rows_per_s": round(options.rows / nested),
                "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
