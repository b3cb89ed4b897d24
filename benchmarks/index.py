"""What does a run cost in the index, from dispatch to release, and does any script hold the server for 10 ms?

Usage: benchmarks/index.py --runs 1000 100000 --tenants 1 1000
The limit beside it is what the server needs for as many PINGs as we make calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from wsync_engine.embedded.servers import EmbeddedServers
from wsync_engine.index.due_index import RUN_BATCH, Index, connect
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


def cpu_ms(client: Any, calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median and most of the server's processor time per script; other work on the machine does not count, as it would in the slow log."""
    spent = []
    for call in calls:
        before, scripts = _server_cpu_s(client), _scripts(client)
        call()
        spent.append((_server_cpu_s(client) - before) * 1_000 / max(1, _scripts(client) - scripts))
    return [round(median(spent), 2), round(max(spent), 2)]


def _server_cpu_s(client: Any) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


def _scripts(client: Any) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


def blocked_ms(client: Any, runs: list[ReadyRun]) -> list[float]:
    """As `cpu_ms`, while all runs of each tenant meet a full connection."""
    index = loaded(client, runs)
    connections = {(run.tenant_id, run.connection_id) for run in runs}
    index.set_caps([Cap(tenant_id=tenant, kind="N", resource_id=x, max_running=0, version=2) for tenant, x in connections])
    return cpu_ms(client, [lambda: index.dispatch(WORKER, BATCH)] * 10)


def script_ms(client: Any, runs: list[ReadyRun]) -> dict[str, list[float]]:
    """`cpu_ms` of each script that may be long."""
    index = loaded(client, runs)
    client.config_resetstat()
    given: list[list[UUID]] = []
    dispatches = [lambda: given.append([run for _, run in index.dispatch(WORKER, BATCH)])] * max(1, min(10, len(runs) // BATCH))
    found = {"dispatch": cpu_ms(client, dispatches)}
    found["release"] = cpu_ms(client, [partial(index.release, some) for some in given])
    pages = [runs[at : at + RUN_BATCH] for at in range(0, min(len(runs), 10 * RUN_BATCH), RUN_BATCH)]
    index = loaded(client, runs[-1:])
    found["push"] = cpu_ms(client, [partial(index.commit_fire, [], page) for page in pages])
    found["blocked"] = blocked_ms(client, runs)
    return found


def measured(client: Any, count: int, tenants: int) -> dict[str, Any]:
    """One line of the table."""
    runs = runs_of(count, tenants)
    index = loaded(client, runs)
    round_of(index, 2)  # warm-up
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
        "script_cpu_ms": script_ms(client, runs),
    }


def main() -> None:
    """Measure, and print one JSON object a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 1_000])
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServers.start(Path(folder)) as servers:
        client = connect(servers.endpoints.redis_url)
        for count in told.runs:
            for tenants in told.tenants:
                print(json.dumps(measured(client, count, tenants)))


if __name__ == "__main__":
    main()
