"""Ids: one type per noun, all of them UUIDv7, so that they sort by when they were made."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NewType
from uuid import UUID

__all__ = [
    "BackfillId",
    "ConnectionId",
    "CredentialId",
    "Epoch",
    "OverlapKey",
    "RejectionId",
    "RunId",
    "ScheduleId",
    "SyncId",
    "TaskId",
    "TenantId",
    "WorkerId",
    "created_s",
    "ids_from",
    "uuid7",
    "uuid7s",
]

TenantId = NewType("TenantId", UUID)
ConnectionId = NewType("ConnectionId", UUID)
CredentialId = NewType("CredentialId", UUID)
SyncId = NewType("SyncId", UUID)
ScheduleId = NewType("ScheduleId", UUID)
BackfillId = NewType("BackfillId", UUID)
RunId = NewType("RunId", UUID)
TaskId = NewType("TaskId", UUID)
RejectionId = NewType("RejectionId", UUID)
WorkerId = NewType("WorkerId", UUID)
OverlapKey = NewType("OverlapKey", UUID)
Epoch = NewType("Epoch", int)

_TAIL_BITS = 74  # 12 of rand_a and 62 of rand_b (RFC 9562, 5.7, read 2026-11-20)
_RAND_B = (1 << 62) - 1
_lock = threading.Lock()
_last_ms = 0
_last_tail = 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_source: tuple[Callable[[], int], Callable[[int], bytes]] = (_now_ms, os.urandom)


def uuid7() -> UUID:
    """A new UUIDv7, greater than all that this process made before. Any thread.

    Within one millisecond, or while the clock stands behind, the random part counts up (RFC 9562, 6.2, method 2).
    """
    return uuid7s(1)[0]


def uuid7s(count: int) -> list[UUID]:
    """As many calls of `uuid7`; one reading of the clock and of chance for all of them."""
    now_ms, random_bytes = _source
    with _lock:
        at_ms, steps = now_ms(), memoryview(random_bytes(4 * count)).cast("I")
        places = [_advance(at_ms, step) for step in steps]
    return [UUID(int=at_ms << 80 | 0x7 << 76 | tail >> 62 << 64 | 0b10 << 62 | tail & _RAND_B) for at_ms, tail in places]


def created_s(made: UUID) -> float:
    """When an id of `uuid7` was made, in seconds since 1970, by the clock of its process."""
    return (made.int >> 80) / 1_000


def _advance(now_ms: int, step: int) -> tuple[int, int]:
    """The next (milliseconds, random part), strictly above the last; the caller holds the lock."""
    global _last_ms, _last_tail  # noqa: PLW0603  the order holds per process
    if now_ms > _last_ms:
        _last_ms, _last_tail = now_ms, _new_tail()
    else:
        _last_tail += 1 + step
    if _last_tail >> _TAIL_BITS:
        _last_ms, _last_tail = _last_ms + 1, _new_tail()
    return _last_ms, _last_tail


def _new_tail() -> int:
    """Random; the top bit stays free, so that counting up has room for 2^41 ids within the millisecond."""
    return int.from_bytes(_source[1](10), "big") >> (80 - _TAIL_BITS + 1)


@contextmanager
def ids_from(now_ms: Callable[[], int], random_bytes: Callable[[int], bytes]) -> Iterator[None]:
    """Inside, all ids of this process come from another clock and other chance, for a simulation that is to repeat itself. Not nested."""
    global _source, _last_ms, _last_tail
    with _lock:
        before = _source, _last_ms, _last_tail
        _source, _last_ms, _last_tail = (now_ms, random_bytes), 0, 0
    try:
        yield
    finally:
        with _lock:
            _source, _last_ms, _last_tail = before


def _reset_after_fork() -> None:
    # The child inherits the parent's position; fresh random bits come at its next millisecond, until then a jump keeps them apart.
    global _last_tail, _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _last_tail = _new_tail()


os.register_at_fork(after_in_child=_reset_after_fork)
