"""Times that are due and undecided when nobody is going to ask for them any more: they are counted as missed, and an event says why.

A pause, a deletion or a change decides them in its own transaction, under the clock's lock, as a fire would: else they would vanish.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import psycopg
import structlog

from wsync_engine.scheduler.rows import Event, Row, instant, select, statements, timing_of, write_events
from wsync_engine.scheduler.timing import Timing, given_up

__all__ = ["give_up", "give_up_all"]

_SQL = statements("schedule")
_log = structlog.get_logger()


def give_up_all(conn: psycopg.Connection[Any], clock: Row, *, reason: Literal["paused", "deleted"], actor: str) -> None:
    """Count all overdue times of a schedule that fires no more. The caller holds its clock, and sets it afterwards."""
    now = instant(select(conn, _SQL["time_now"], {})[0], "now")
    for old in select(conn, _SQL["schedule_definitions"], {"schedule_ids": [clock["schedule_id"]]}):
        give_up(conn, clock, timing_of(old), None, now=now, reason=reason, actor=actor)


def give_up(conn: psycopg.Connection[Any], clock: Row, old: Timing, new: Timing | None, *, now: datetime, reason: str, actor: str) -> Row:
    """Count the overdue times that `new` does not ask for any more; returns the clock as it is then. The caller holds it.

    :param new: None: nothing is asked for.
    """
    if clock["next_nominal_at"] is None or clock["next_nominal_at"] > now:
        return clock
    ids = {"tenant_id": clock["tenant_id"], "schedule_id": clock["schedule_id"]}
    try:
        gone = given_up(old, new, next_nominal_at=clock["next_nominal_at"], now=now)
    except Exception as exc:  # a zone that is not there any more, say: then nobody can tell its times, and this may be what mends it
        _log.warning("schedule.uncounted", schedule=str(clock["schedule_id"]), error=type(exc).__name__)
        return clock
    if not gone.count:
        return clock
    conn.execute(_SQL["clock_give_up"], {"schedule_id": clock["schedule_id"], "count": gone.count, "last_at": gone.last_at})
    write_events(conn, [Event(kind="schedule.missed", detail={"count": gone.count, "reason": reason, "actor": actor}, **ids)])
    return {**clock, "last_nominal_at": gone.last_at or clock["last_nominal_at"]}
