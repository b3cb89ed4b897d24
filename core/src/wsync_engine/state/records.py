"""What is stored of a run, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from wsync_sdk import RowRange

__all__ = ["Ack", "Cipher", "NewRejection", "NewSnapshot", "PublishedSplit", "RunRecord", "Sealer", "SentChunk", "SnapshotRow"]


class Cipher(Protocol):
    """Encrypts for one tenant."""

    def encrypt(self, data: bytes) -> bytes:
        """Bytes that only `decrypt` with this tenant's key can read."""
        ...

    def decrypt(self, data: bytes) -> bytes:
        """What was encrypted."""
        ...

    def sealer(self) -> Sealer:
        """For a batch of small values."""
        ...


class Sealer(Protocol):
    """Encrypts many small values for one tenant."""

    def seal(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        """Each value in a form that only `open` with this tenant's key can read; None stays None."""
        ...

    def open(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        """What was sealed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as its row says; `None` where a phase has not come yet. `has_commit_started`: a version may be switched to, whoever was answered or not."""

    run_id: UUID
    sync_id: UUID
    state: str
    dry_run: bool
    adopt: bool
    offer_rejected: bool
    replay: dict[str, Any] | None
    plan: bytes | None
    plan_generation: int
    base_version: int | None
    delivery: int | None
    sink_token: bytes | None
    change_log: dict[str, Any] | None
    counts: dict[str, int]
    approved_by: str | None
    folded: bool
    comparison: dict[str, Any] | None
    fanned: bool
    has_commit_started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSplit:
    """A split whose staged files count. `files`: partition → stored paths. `cursor`: its highest value, as stored; `null_cursors`: rows without one."""

    part: int
    files: dict[int, list[str]]
    read_rows: int
    refused_rows: int
    unreadable_keys: int
    cursor: dict[str, Any] | None = None
    null_cursors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SentChunk:
    """A chunk that was, or may have been, sent."""

    partition: int
    range: RowRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """A verdict over rows of one partition: `accepted`, `rejected` or `unknown`."""

    partition: int
    range: RowRange
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRejection:
    """A refused row to be listed; `payload` is encrypted."""

    rejection_id: UUID
    partition: int
    row: int | None
    phase: str
    code: str
    message: str
    retryable: bool
    payload: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRow:
    """A sync's snapshot as stored; version 0 and no manifest before the first fold.

    :param resync: how often one was asked for. :param forgotten: manifests that have done fewer belong to a destination that the sync has left.
    :param delivery: number of the sync's last run that was let deliver. :param cursor: how far the result was read, of this version or an older one.
    :param key_resync: how often a resync of some keys was asked for; unsure_keys: which, encrypted, as far as it was not done.
    :param now: when this was looked up, by the state store's clock.
    """

    version: int
    manifest: dict[str, Any] | None
    resync: int
    forgotten: int
    delivery: int
    cursor: dict[str, Any] | None
    key_resync: int
    unsure_keys: bytes | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """What a fold makes of a snapshot. `base`: the version it comes from. `cursor`: how far the result was read, None where a whole one is read."""

    base: int
    manifest: Mapping[str, Any]
    cursor: Mapping[str, Any] | None = None
