"""What does a run cost in the index, from dispatch to release, and does any script hold the server for 10 ms?

Usage: benchmarks/index.py --runs 1000 100000 --tenants 1 1000
The limit beside it is what the server needs for as many PINGs as we make calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from wsync_engine.embedded.servers import EmbeddedServers
from wsync_engine.index.due_index import Index, connect
from wsync_engine.index.entries import Cap, ReadyRun
from wsync_engine.model.ids import uuid7

WORKER = UUID(int=1)
BATCH = 64
ROUNDS = 5


def runs_of(count: int, tenants: int) -> list[ReadyRun]:
    """Each tenant has its runs in all classes, over four connections."""
    now = datetime.now(UTC)
    return [
        ReadyRun(
            tenant_id=UUID(int=at % tenants + 1),
            run_id=uuid7(),
            sync_id=UUID(int=at % tenants * 100 + at % 50),
            connection_id=UUID(int=at % tenants * 100 + at % 4),
            credential_id=UUID(int=at % tenants * 100 + at % 5),
            priority=at % 3,
            due_at=now - timedelta(milliseconds=count - at),
            ready_at=now,
        )
        for at in range(count)
    ]


def loaded(client: Any, runs: list[ReadyRun]) -> Index:
    """An index with caps on every tenant, and the runs queued."""
    client.flushall()
    index = Index(client)
    index.begin_load()
    tenants = {run.tenant_id for run in runs}
    index.set_caps([Cap(tenant_id=x, kind="T", resource_id=x, max_running=1_000, weight=1 + x.int % 3) for x in tenants])
    index.commit_fire([], runs)
    index.allow_dispatch()
    index.end_load()
    return index


def round_of(index: Index, batches: int) -> dict[str, float]:
    """Microseconds per run of each step."""
    spent = dict.fromkeys(("dispatch", "renew", "release"), 0.0)
    done = 0
    for _ in range(batches):
        started_s = time.perf_counter()
        given = [run for _, run in index.dispatch(WORKER, BATCH)]
        dispatched_s = time.perf_counter()
        index.renew(given)
        renewed_s = time.perf_counter()
        index.release(given)
        spent["dispatch"] += dispatched_s - started_s
        spent["renew"] += renewed_s - dispatched_s
        spent["release"] += time.perf_counter() - renewed_s
        done += len(given)
    return {step: total_s / done * 1e6 for step, total_s in spent.items()}


def ping_us(client: Any, count: int) -> float:
    """One round trip."""
    started_s = time.perf_counter()
    for _ in range(count):
        client.ping()
    return (time.perf_counter() - started_s) / count * 1e6


def slowest_ms(client: Any) -> list[float]:
    """Median, 99th percentile and longest script of the slower half since the log was reset; the last has the machine's own pauses in it."""
    spent = sorted(entry["duration"] / 1_000 for entry in client.slowlog_get(1_000) if entry["command"].startswith(b"EVALSHA"))
    slower = spent[len(spent) // 2 :] or [0.0]
    return [round(slower[len(slower) * part // 100], 2) for part in (50, 99)] + [round(slower[-1], 2)]


def blocked_ms(client: Any, runs: list[ReadyRun]) -> list[float]:
    """As `slowest_ms`, while all runs of each tenant meet a full connection."""
    index = loaded(client, runs)
    connections = {(run.tenant_id, run.connection_id) for run in runs}
    index.set_caps([Cap(tenant_id=tenant, kind="N", resource_id=x, max_running=0, version=2) for tenant, x in connections])
    client.slowlog_reset()
    while index.dispatch(WORKER, BATCH):
        pass
    for _ in range(5):
        index.dispatch(WORKER, BATCH)
    return slowest_ms(client)


def measured(client: Any, count: int, tenants: int) -> dict[str, Any]:
    """One line of the table."""
    runs = runs_of(count, tenants)
    client.slowlog_reset()
    index = loaded(client, runs)
    load_script_ms = slowest_ms(client)
    round_of(index, 2)  # warm-up
    client.slowlog_reset()
    batches = max(1, min(20, (count - 2 * BATCH) // BATCH // ROUNDS))
    rounds = [(round_of(index, batches), ping_us(client, 200)) for _ in range(ROUNDS)]
    per_run = {step: round(median(spent[step] for spent, _ in rounds), 1) for step in rounds[0][0]}
    totals = sorted(sum(spent.values()) for spent, _ in rounds)
    return {
        "runs": count,
        "tenants": tenants,
        "us_per_run": per_run,
        "total_us": round(median(totals), 1),
        "range_us": [round(totals[0], 1), round(totals[-1], 1)],
        "ratio_to_pings": round(median(totals) * BATCH / 3 / median(ping for _, ping in rounds), 1),
        "load_script_ms": load_script_ms,
        "script_ms": slowest_ms(client),
        "blocked_script_ms": blocked_ms(client, runs),
    }


def main() -> None:
    """Measure, and print one JSON object a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 1_000])
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServers.start(Path(folder)) as servers:
        client = connect(servers.endpoints.redis_url)
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", 1_000)
        for count in told.runs:
            for tenants in told.tenants:
                print(json.dumps(measured(client, count, tenants)))


if __name__ == "__main__":
    main()
