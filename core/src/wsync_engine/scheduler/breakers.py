"""Circuit breakers: a destination that fails again and again is left alone for a while, so that its runs wait without using slots or attempts.

One for each credential that sinks are called with. Closed, runs go. After some failures in a row it opens: none starts. When its time is over it is
half open: one at a time may try. A row that is taken or refused closes it; a failure opens it again, for twice as long. If nobody had to try, it
closes on trial: the next failure alone opens it. Postgres holds the state, the index follows as with caps; what is lost on the way costs time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.entries import Cap
from wsync_engine.scheduler.rows import Event, Row, select, statements, write_events
from wsync_engine.telemetry import metrics

__all__ = ["advance_breakers", "close_breakers", "count_breakers", "note_failure"]

FIRST_OPEN_S = 30.0
LONGEST_OPEN_S = 600.0
_SQL = statements("breaker")
_log = structlog.get_logger()


def note_failure(
    conn: psycopg.Connection[Any], tenant_id: UUID, credential_id: UUID, *, reason: str, most: int, retry_after_s: float | None = None
) -> list[Cap]:
    """A run's attempt ended because its destination failed. Returns the cap to announce where the breaker opened.

    :param reason: in words, without secrets. :param most: so many in a row open it. :param retry_after_s: what the destination asked for.
    """
    ids = {"tenant_id": tenant_id, "credential_id": credential_id}
    times = {"first_s": FIRST_OPEN_S, "longest_s": LONGEST_OPEN_S, "retry_after_s": retry_after_s or 0.0, "most": most}
    with conn.transaction():
        select(conn, _SQL["breaker_fail"], {**ids, "reason": reason})
        return _announced(conn, select(conn, _SQL["breaker_open"], {**ids, **times}))


def close_breakers(conn: psycopg.Connection[Any], tenant_id: UUID, credential_ids: Sequence[UUID], *, is_trusted: bool) -> list[Cap]:
    """The destination answered, or a person saw to it. Returns the caps to announce.

    :param conn: the engine's, or in the tenant's transaction. :param is_trusted: forget all failures; else the next one opens it again.
    """
    columns = {"tenant_id": tenant_id, "credential_ids": list(credential_ids), "is_trusted": is_trusted}
    with conn.transaction():
        rows = select(conn, _SQL["breaker_close"], columns)
        return _announced(conn, [row for row in rows if row.pop("former_state") != "closed"])


def advance_breakers(conn: psycopg.Connection[Any]) -> None:
    """What time changes, of all tenants; comparing the caps tells the index."""
    with conn.transaction():
        _announced(conn, select(conn, _SQL["breaker_advance"], {}))


def count_breakers(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """How many are `open` and `half_open` in the installation."""
    return {state: int(count) for state, count in select(conn, _SQL["breaker_count"], {})[0].items()}


def _announced(conn: psycopg.Connection[Any], changed: Sequence[Row]) -> list[Cap]:
    """Events, log lines and counts of breakers whose state changed; gives their caps."""
    events = []
    for row in changed:
        ids = {"credential": str(row["credential_id"]), "retry_at": None if row["retry_at"] is None else row["retry_at"].isoformat()}
        events.append(Event(kind=f"breaker.{row['state']}", tenant_id=row["tenant_id"], detail={**ids, "reason": row["reason"]}))
        log = _log.warning if row["state"] == "open" else _log.info
        log(f"breaker.{row['state']}", tenant_id=str(row["tenant_id"]), **ids)
        metrics.BREAKER_CHANGES.labels(row["state"]).inc()
    write_events(conn, events)
    return [
        Cap(
            tenant_id=row["tenant_id"],
            kind="B",
            resource_id=row["credential_id"],
            max_running=row["max_running"],
            version=row["version"],
        )
        for row in changed
    ]
