"""What a scheduler shows of its shard with each sweep: how much is due and in line, how old that is, and how far the clocks are apart."""

from __future__ import annotations

from typing import Any

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.scheduler.breakers import count_breakers
from wsync_engine.scheduler.rows import instant, select, statements
from wsync_engine.telemetry import metrics

__all__ = ["show_shard"]

_SQL = statements("sweep")


def show_shard(conn: psycopg.Connection[Any], index: Index) -> None:
    """Set the gauges of a shard."""
    shard = index.shard
    row = select(conn, _SQL["shard_ages"], {"shard": shard})[0]
    due, ready = index.sizes()
    metrics.DUE.labels(shard).set(due)
    for priority, runs in ready.items():
        name = metrics.priority_name(priority)
        metrics.READY.labels(shard, name).set(runs)
        metrics.READY_AGE.labels(shard, name).set(max(0.0, float(row[f"age_{name}_s"] or 0)))
    if shard == 0:  # they are the installation's
        for state, breakers in count_breakers(conn).items():
            metrics.BREAKERS.labels(state).set(breakers)
    metrics.CLOCK_SKEW.labels(shard).set(index.time_s() - instant(row, "now").timestamp())
