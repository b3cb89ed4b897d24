"""What the index keeps about a schedule, a run that is ready, and a cap."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

__all__ = ["Cap", "CappedKind", "Claimed", "DefaultCaps", "Difference", "DueEntry", "Kind", "ReadyRun", "due_member", "instant_of", "ms_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def ms_of(at: datetime) -> int:
    """Milliseconds since 1970, rounded up: the index never calls due what is not yet."""
    return -((_EPOCH - at) // _MS)


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
    """A queued run; the same run has the same member in every process, so that pushing it twice is once.

    :param connection_id: its source. :param credential_id: what it calls its sink with. :param queue: 0..15, which workers may take it.
    """

    tenant_id: UUID
    run_id: UUID
    sync_id: UUID
    connection_id: UUID
    credential_id: UUID
    priority: int
    due_at: datetime
    ready_at: datetime
    queue: int = 0

    @property
    def member(self) -> str:
        """`qp|tenant|due13|run|N…,S…,K…` with q = queue as a hex digit, p = priority; the scripts read it by position.

        One sorted set has the runs of all queues, classes and tenants: those of one of each lie together, the first due first.
        """
        due_ms = min(max(ms_of(self.due_at), 0), 10**13 - 1)
        resources = f"N{self.connection_id.hex},S{self.sync_id.hex},K{self.credential_id.hex}"
        return f"{self.queue:x}{self.priority}|{self.tenant_id.hex}|{due_ms:013d}|{self.run_id.hex}|{resources}"

    @staticmethod
    def run_of(member: bytes) -> tuple[UUID, UUID]:
        """(tenant, run) of a member."""
        text = member.decode("ascii")
        return UUID(hex=text[3:35]), UUID(hex=text[50:82])


CappedKind = Literal["T", "N", "S", "K"]
"""What an operator's cap is of: a tenant, a connection (its source), a sync, a credential."""
Kind = Literal[CappedKind, "B"]
"""`B`: a circuit breaker's cap, of a credential too; the lower one of the two holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """How many runs may hold a resource at once; 0: none. `weight` counts for a tenant only."""

    tenant_id: UUID
    kind: Kind
    resource_id: UUID
    max_running: int
    weight: int = 1
    version: int = 1

    @property
    def resource(self) -> str:
        """As the scripts name it."""
        return f"{self.kind}{self.resource_id.hex}"

    def arguments(self) -> tuple[str, str, int, int, int]:
        """As the scripts take it."""
        return self.tenant_id.hex, self.resource, self.max_running, self.weight, self.version


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultCaps:
    """What holds for a resource without a cap of its own; None: no limit."""

    tenant: int | None = None
    connection: int | None = None
    sync: int | None = None
    credential: int | None = None

    @property
    def argument(self) -> str:
        """As the scripts take it, e.g. `T10NS1K`."""
        caps = zip("TNSK", (self.tenant, self.connection, self.sync, self.credential), strict=True)
        return "".join(f"{kind}{'' if cap is None else cap}" for kind, cap in caps)


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
