"""What a worker's runs see of their destinations: that one answers, or that it fails. Circuit breakers are made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.index.entries import Cap
from wsync_engine.scheduler.breakers import close_breakers, note_failure
from wsync_engine.worker.messages import Ended, Tick
from wsync_engine.worker.slots import Tenure

__all__ = ["Seen", "note_seen", "seen_at_end", "seen_so_far"]

APART_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one execution saw of its destination. `failure`: why it ended, empty: the destination answers. `retry_after_s`: what it asked for."""

    tenant_id: UUID
    credential_id: UUID
    failure: str = ""
    retry_after_s: float | None = None


def seen_so_far(tenure: Tenure, tick: Tick, now_s: float) -> Iterator[Seen]:
    """That its destination answers, now and then: others may be waiting to hear of it, and the run may take hours."""
    if tick.answers > tenure.answers and now_s >= tenure.answered_at_s + APART_S:
        tenure.answers, tenure.answered_at_s = tick.answers, now_s
        yield _seen(tenure)


def seen_at_end(tenure: Tenure, ended: Ended) -> Iterator[Seen]:
    """What the execution's end says of its destination, if anything: what it did since the last time, in order."""
    if ended.answers > tenure.answers:
        yield _seen(tenure)
    if ended.has_failed:
        yield replace(_seen(tenure), failure=ended.error.message, retry_after_s=ended.retry_after_s)


def _seen(tenure: Tenure) -> Seen:
    return Seen(tenant_id=tenure.assignment.tenant_id, credential_id=tenure.assignment.credential_id)


def note_seen(conn: psycopg.Connection[Any], seen: Seen, *, most_failures: int) -> list[Cap]:
    """Store it; gives the caps that changed by it. The engine's login."""
    ids = (seen.tenant_id, seen.credential_id)
    if seen.failure:
        return note_failure(conn, *ids, reason=seen.failure, most=most_failures, retry_after_s=seen.retry_after_s)
    return close_breakers(conn, seen.tenant_id, [seen.credential_id], is_trusted=True)
