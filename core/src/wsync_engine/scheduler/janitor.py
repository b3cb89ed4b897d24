"""Keeps the tables small: makes and drops daily partitions, moves ended runs into the history, ends what nobody decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from wsync_engine.scheduler.rows import select, statements
from wsync_engine.state.statements import load_statements

__all__ = ["Retention", "tidy"]

PAGE = 1_000
ARCHIVE_AFTER_HOURS = 24
BLOCKED_DAYS = 7
DAYS_AHEAD = 7
_SQL = statements("janitor")
_PARTITION = load_statements("partition")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """For how many days ended runs and events are kept."""

    runs_days: int = 90
    events_days: int = 30


def tidy(conn: psycopg.Connection[Any], retention: Retention) -> bool:
    """One round; False: another process is at it. Each step is a transaction of its own and may be cut off anywhere.

    :param conn: the engine's, autocommit, idle.
    """
    with conn.transaction():
        if not select(conn, _SQL["janitor_lock"], {})[0]["is_mine"]:
            return False
        select(conn, _PARTITION["partition_make"], {"days_ahead": DAYS_AHEAD})
    expired = _pages(conn, "blocked_expire", {"blocked_days": BLOCKED_DAYS})
    archived = _pages(conn, "run_archive", {"hours": ARCHIVE_AFTER_HOURS})
    select(conn, _SQL["helper_forget"], {})
    select(conn, _SQL["worker_forget"], {})
    _drop(conn, retention)
    stray = select(conn, _PARTITION["partition_default_rows"], {})[0]["stray"]
    if stray:
        _log.error(
            "partition.default_not_empty",
            rows=stray,
            next_step="nothing: for a week no scheduler had made their days' partitions; they go when they are old",
        )
    if archived or expired:
        _log.info("runs.tidied", archived=archived, expired=expired)
    return True


def _pages(conn: psycopg.Connection[Any], name: str, columns: dict[str, int]) -> int:
    total = 0
    while done := len(select(conn, _SQL[name], {**columns, "count": PAGE})):
        total += done
        if done < PAGE:
            break
    return total


def _drop(conn: psycopg.Connection[Any], retention: Retention) -> None:
    days = {"runs_days": retention.runs_days, "events_days": retention.events_days}
    try:
        for name in ("partitions_drop", "history_delete", "event_delete"):
            select(conn, _SQL[name], days)
    except psycopg.errors.LockNotAvailable:
        _log.info("partition.in_use")  # the next round drops it
