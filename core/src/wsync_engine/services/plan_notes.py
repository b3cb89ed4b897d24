"""What a plan says besides the values that change: what a deletion takes along and what it leaves, that a schedule has no times left,
and that a sync reads everything again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from wsync_engine.model.declaration import sync_spec_from_json
from wsync_engine.model.ids import uuid7
from wsync_engine.model.reading import engine_parameters, reading_fingerprint
from wsync_engine.model.refusal import Misplaced
from wsync_engine.model.sync import SyncSpec
from wsync_engine.scheduler.rows import Row, timing_of
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.scheduler.timing import check_timing, first_nominal
from wsync_engine.services.changes import Change
from wsync_sdk.errors import StateError

__all__ = ["FIRES_NO_MORE", "READS_EVERYTHING", "noted_deletion", "noted_reading", "noted_times"]

FIRES_NO_MORE = "it fires no more: its times are past, or it has made all its runs"
READS_EVERYTHING = "its next run reads everything, once, and sends what differs from what was delivered"
_DELETED = {
    "connection": "its stored secrets are deleted at once",
    "sync": "what it delivered stays at the destination; its schedules go with it, and its open runs are cancelled;"
    " declared again later, it is a new sync and offers everything",
    "schedule": "no more runs by schedule; those that it made go on",
}
_DELETED_WITH_SYNC = "it goes with its sync"


def noted_deletion(change: Change, *, is_with_sync: bool = False) -> Change:
    """The change, and if it is a deletion, its consequences."""
    if change.kind != "delete":
        return change
    return replace(change, note=_DELETED_WITH_SYNC if is_with_sync else _DELETED[change.object])


def noted_reading(change: Change, stored: Mapping[str, Any] | None, spec: SyncSpec | None) -> Change:
    """The change of a sync to `spec`, and whether its stored cursor is worth nothing then.

    :param stored: the sync as it is stored, if it is.
    """
    if change.kind != "change" or stored is None or spec is None or not engine_parameters(spec):
        return change
    try:
        former: SyncSpec | None = sync_spec_from_json(stored)
    except StateError:  # of an engine that knows more
        former = None
    if former is not None and reading_fingerprint(former, former.parameters) == reading_fingerprint(spec, spec.parameters):
        return change
    return replace(change, note=READS_EVERYTHING)


def noted_times(change: Change, spec: ScheduleSpec, row: Row | None, now: datetime) -> Change:
    """The change of a schedule to `spec`, and whether it has times left. What does not change is not judged: a file that was applied
    stays good when its times have passed.

    :param row: as it is stored.
    :raises Misplaced: a new schedule would never fire.
    """
    if change.kind == "unchanged" or (row is not None and (row["paused"] or _has_times(spec, row, now))):
        return change
    if row is not None:
        return replace(change, note=FIRES_NO_MORE)
    if not _has_times(spec, None, now):
        field, what = _past(spec, now)
        raise Misplaced(
            f"syncs.{change.name}.schedule.{field}",
            f"{what}, so that the schedule would never fire",
            next_step=f"change `{field}`, or leave the schedule out: `wsync-engine sync run {change.name}` runs the sync now",
        )
    return change


def _has_times(spec: ScheduleSpec, row: Row | None, now: datetime) -> bool:
    if row is not None and spec.max_runs is not None and row["fired"] >= spec.max_runs:
        return False
    if spec.kind == "interval" and spec.anchor_at is None:
        spec = replace(spec, anchor_at=now)
    timing = timing_of({**asdict(spec), "schedule_id": uuid7() if row is None else row["schedule_id"]})
    check_timing(timing)
    return first_nominal(timing, after=now, due_after=now) is not None


def _past(spec: ScheduleSpec, now: datetime) -> tuple[str, str]:
    """The field that leaves no time, and why."""
    if spec.once_at is not None and spec.once_at <= now:
        return "at", f"{spec.once_at.isoformat()} is past"
    if spec.end_at is not None and spec.end_at <= now:
        return "end", f"{spec.end_at.isoformat()} is past"
    return ("end" if spec.end_at is not None else "start"), "it leaves no time"
