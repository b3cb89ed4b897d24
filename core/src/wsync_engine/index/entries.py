"""What the index keeps about a schedule and about a run that is ready."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

__all__ = ["Claimed", "Difference", "DueEntry", "ReadyRun", "due_member", "instant_of", "ms_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ms_of(at: datetime) -> int:
    """Milliseconds since 1970, rounded up: the index never calls due what is not yet."""
    return -((_EPOCH - at) // timedelta(milliseconds=1))


def instant_of(at_ms: int) -> datetime:
    """The instant of milliseconds since 1970."""
    return _EPOCH + timedelta(milliseconds=at_ms)


def due_member(due_id: UUID, *, is_backfill: bool) -> bytes:
    """How the index names a schedule (16 bytes) or a backfill (`b` and 16 bytes)."""
    return b"b" + due_id.bytes if is_backfill else due_id.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DueEntry:
    """A schedule's or a backfill's next due time under its rev; `due_at` None: not due (paused, exhausted).

    `is_gone`: deleted, its rev may be forgotten. `is_backfill`: `schedule_id` is a backfill's.
    """

    schedule_id: UUID
    rev: int
    due_at: datetime | None
    is_gone: bool = False
    is_backfill: bool = False

    def arguments(self) -> tuple[bytes, int, int]:
        """As the scripts take it."""
        member = due_member(self.schedule_id, is_backfill=self.is_backfill)
        if self.is_gone:
            return member, self.rev, -2
        return member, self.rev, -1 if self.due_at is None else ms_of(self.due_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRun:
    """A queued run; the same run has the same member in every process, so that pushing it twice is once."""

    tenant_id: UUID
    run_id: UUID
    priority: int
    due_at: datetime
    ready_at: datetime

    @property
    def member(self) -> str:
        """`tenant|priority due13|run|resources`; the last part is for caps and empty so far. The scripts read it by position."""
        due_ms = min(max(ms_of(self.due_at), 0), 10**13 - 1)
        return f"{self.tenant_id.hex}|{self.priority}{due_ms:013d}|{self.run_id.hex}|"

    @staticmethod
    def run_of(member: bytes) -> tuple[UUID, UUID]:
        """(tenant, run) of a member."""
        text = member.decode("ascii")
        return UUID(hex=text[:32]), UUID(hex=text[48:80])


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Schedules and backfills that are ours for the fire lease, as (id, rev); `next_wake_ms` None: nothing to wait for. By the clock of Redis."""

    now_ms: int
    next_wake_ms: int | None
    entries: tuple[tuple[UUID, int], ...]
    backfills: tuple[tuple[UUID, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where the index departs from what Postgres says of a schedule."""

    schedule_id: UUID
    kind: Literal["missing", "older", "newer"]
    stored_rev: int
