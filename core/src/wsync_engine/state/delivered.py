"""The change logs of former runs, as they were delivered. Each function runs inside the caller's transaction of one tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from wsync_engine.state.statements import load_statements

__all__ = ["FormerRun", "delivered_between", "former_runs"]

_SQL = load_statements("delivered")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerRun:
    """A run with its change log, if it has one; `delivery` None: it was never let deliver."""

    run_id: UUID
    state: str
    delivery: int | None
    dry_run: bool
    adopt: bool
    change_log: dict[str, Any] | None
    base_version: int | None


def former_runs(conn: psycopg.Connection[Any], tenant_id: UUID, sync_id: UUID, run_ids: Sequence[UUID]) -> list[FormerRun]:
    """Those of the runs that are the sync's, each once, in the order in which they were delivered."""
    columns = {"tenant_id": tenant_id, "sync_id": sync_id, "run_ids": list(run_ids)}
    with conn.cursor(row_factory=class_row(FormerRun)) as cursor:
        return cursor.execute(_SQL["delivered_logs"], columns).fetchall()


def delivered_between(conn: psycopg.Connection[Any], tenant_id: UUID, sync_id: UUID, since: datetime, until: datetime | None) -> list[UUID]:
    """The sync's runs that delivered to its own destination and ended in that time, `until` excluded."""
    columns = {"tenant_id": tenant_id, "sync_id": sync_id, "since": since, "until": until}
    return [row[0] for row in conn.execute(_SQL["delivered_between"], columns).fetchall()]
