"""What keeps the index honest: loading it anew, and the sweeps that repair what was lost on the way. Postgres wins, merged by rev."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.due_index import BATCH, Index
from wsync_engine.index.entries import DueEntry, ReadyRun
from wsync_engine.scheduler.breakers import advance_breakers
from wsync_engine.scheduler.caps import compare_caps, load_caps
from wsync_engine.scheduler.overlap import promote_orphans
from wsync_engine.scheduler.rows import Row, instant, ready_run, select, statements
from wsync_engine.scheduler.runs import executed_among
from wsync_engine.telemetry import metrics

__all__ = ["load_index", "sweep"]

SWEEP_WINDOW = timedelta(seconds=15)
WAITING_SINCE = timedelta(seconds=2)
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9999, 12, 31, tzinfo=UTC)
_SQL = statements("sweep")
_SCHEDULE = statements("schedule")
_FIRE = statements("fire")
_log = structlog.get_logger()


def load_index(conn: psycopg.Connection[Any], index: Index) -> bool:
    """Load what Postgres says into a new incarnation; False: someone else is at it. First caps and what runs, then what is queued, then what is due.

    Nothing is flushed and traffic goes on meanwhile: schedules fire, runs are dispatched once the queues are there.
    """
    if not index.begin_load():
        return False
    try:
        schedules = _load(conn, index)
    finally:
        index.end_load()
    _log.info("index.loaded", shard=index.shard, schedules=schedules)
    return True


def _load(conn: psycopg.Connection[Any], index: Index) -> int:
    shard, schedules = index.shard, 0
    load_caps(conn, index)
    for page in _active_pages(conn, shard):
        index.hold([ready_run(row) for row in page])
        index.continue_load()
    for page in _pages(conn, "run_waiting", {"shard": shard, "until_at": _LATEST}, "ready_at", "run_id"):
        index.commit_fire([], [ready_run(row) for row in page])
        index.continue_load()
    index.allow_dispatch()
    for page in _pages(conn, "clock_all", {"shard": shard}, "next_due_at", "schedule_id"):
        schedules += index.upsert_due([_entry(row) for row in page])
        index.continue_load()
    for page in _pages(conn, "backfill_active", {"shard": shard}, "next_due_at", "backfill_id"):
        index.upsert_due([_backfill_entry(row) for row in page])
    return schedules


def sweep(conn: psycopg.Connection[Any], index: Index) -> int:
    """Compare caps, what runs, what is due soon and what is ready with the index, and repair it; returns the repairs, 0 in health or if another sweeps.

    Always goes through all pages: a page that can't be repaired must not hide the rest.
    """
    shard = index.shard
    # Committed before the index hears of it: undone with a sweep that fails, its version would be given to something else. Nor must who waits
    # for a breaker's row wait for all of the sweep.
    advance_breakers(conn)
    with conn.transaction():
        if not select(conn, _SQL["shard_lock"], {"shard": shard})[0]["is_mine"]:
            return 0
        repairs = compare_caps(conn, index)
        for page in _active_pages(conn, shard):
            repairs += _hold_lost(conn, index, [ready_run(row) for row in page])
        now = instant(select(conn, _SCHEDULE["time_now"], {})[0], "now")
        for page in _pages(conn, "clock_soon", {"shard": shard, "until_at": now + SWEEP_WINDOW}, "next_due_at", "schedule_id"):
            repairs += _repair(conn, index, page)
        for page in _pages(conn, "backfill_active", {"shard": shard}, "next_due_at", "backfill_id"):
            repairs += _repair_backfills(conn, index, page)
        for page in _pages(conn, "run_waiting", {"shard": shard, "until_at": now - WAITING_SINCE}, "ready_at", "run_id"):
            index.commit_fire([], [ready_run(row) for row in page])  # a no-op for those that are there
        orphans = promote_orphans(conn, shard=shard)
    metrics.REPAIRS.labels("orphan").inc(len(orphans))
    metrics.REPAIRS.labels("due").inc(repairs)
    if orphans:  # after the commit: a run must not be dispatched before it can be claimed
        index.commit_fire([], orphans)
        _log.warning("runs.promoted", shard=shard, runs=len(orphans))
    if repairs:
        _log.warning("index.repaired", shard=shard, entries=repairs)
    return repairs


def _hold_lost(conn: psycopg.Connection[Any], index: Index, running: list[ReadyRun]) -> int:
    lost = index.unheld(running)
    if not lost:
        return 0
    # Most of them have ended since they were read, and gave back what they held.
    still = executed_among(conn, [run.run_id for run in lost])
    return index.hold([run for run in lost if run.run_id in still])


def _repair(conn: psycopg.Connection[Any], index: Index, page: list[Row]) -> int:
    differences = index.check([(row["schedule_id"], row["rev"]) for row in page])
    rows = {row["schedule_id"]: row for row in page}
    older = [_entry(rows[x.schedule_id]) for x in differences if x.kind == "older"]
    ahead = [x for x in differences if x.kind != "older"]
    if ahead:
        ids = [x.schedule_id for x in ahead]
        select(conn, _FIRE["clock_wait_lock"], {"schedule_ids": ids})  # in id order, as fires do
        columns = {"schedule_ids": ids, "revs": [x.stored_rev for x in ahead], "is_missings": [x.kind == "missing" for x in ahead]}
        older += [_entry(row) for row in select(conn, _SQL["clock_outrun"], columns)]
    index.upsert_due(older)
    return len(older)


def _repair_backfills(conn: psycopg.Connection[Any], index: Index, page: list[Row]) -> int:
    differences = index.check([(row["backfill_id"], row["rev"]) for row in page], is_backfill=True)
    rows = {row["backfill_id"]: row for row in page}
    older = [_backfill_entry(rows[x.schedule_id]) for x in differences if x.kind == "older"]
    ahead = [x for x in differences if x.kind != "older"]
    if ahead:
        columns = {"backfill_ids": [x.schedule_id for x in ahead], "revs": [x.stored_rev for x in ahead]}
        older += [_backfill_entry(row) for row in select(conn, _SQL["backfill_outrun"], columns)]
    index.upsert_due(older)
    return len(older)


def _backfill_entry(row: Row) -> DueEntry:
    return DueEntry(schedule_id=row["backfill_id"], rev=row["rev"], due_at=row["next_due_at"], is_backfill=True)


def _entry(row: Row) -> DueEntry:
    return DueEntry(schedule_id=row["schedule_id"], rev=row["rev"], due_at=row["next_due_at"])


def _pages(conn: psycopg.Connection[Any], name: str, columns: dict[str, Any], at: str, key: str) -> Iterator[list[Row]]:
    after_at, after_id = _EARLIEST, UUID(int=0)
    while page := _page(conn, name, {**columns, "after_at": after_at, "after_id": after_id, "count": BATCH}):
        yield page
        after_at, after_id = instant(page[-1], at), page[-1][key]


def _active_pages(conn: psycopg.Connection[Any], shard: int) -> Iterator[list[Row]]:
    after_id = UUID(int=0)
    while page := select(conn, _SQL["run_active"], {"shard": shard, "after_id": after_id, "count": BATCH}):
        yield page
        after_id = page[-1]["run_id"]


def _page(conn: psycopg.Connection[Any], name: str, columns: dict[str, Any]) -> list[Row]:
    """One page, read in the order of its index: of a table that was filled a moment ago the planner knows nothing, and would sort all of it."""
    with conn.transaction():
        select(conn, _SQL["plan_in_order"], {})
        return select(conn, _SQL[name], columns)
