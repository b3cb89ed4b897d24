"""Where a run stands among those of its sync: they are executed one after the other, first made first."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg

from wsync_sdk import RetryableError

__all__ = ["await_earlier"]

PLACE_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
_AHEAD = (  # (those before it in line, of them those that are executed)
    "SELECT count(*), count(*) FILTER (WHERE state <> 'queued') FROM ("
    " SELECT run_id, state FROM wsync.run WHERE sync_id = %(sync_id)s AND NOT exclusive AND NOT dry_run AND helps IS NULL AND state IN ('queued', 'running', 'cancelling')"
    " UNION ALL SELECT x.run_id, x.state FROM wsync.run r JOIN wsync.run x USING (overlap_key)"
    " WHERE r.run_id = %(run_id)s AND x.exclusive AND x.state IN ('queued', 'running', 'cancelling')) AS line WHERE run_id < %(run_id)s"
)


def await_earlier(cursor: psycopg.Cursor[Any], sync_id: UUID, run_id: UUID) -> None:
    """See that no earlier run of the sync is executed; in the tenant's transaction.

    :raises RetryableError: one is. It says to ask the less often, the more are before this one.
    """
    ahead, executed = cursor.execute(_AHEAD, {"sync_id": sync_id, "run_id": run_id}).fetchone() or (0, 0)
    if executed:
        message = "an earlier run of the sync is executed"
        wait_s = min(LONGEST_WAIT_S, PLACE_WAIT_S * ahead)
        raise RetryableError(message, next_step="nothing: this one goes on after it", retry_after_s=wait_s)
