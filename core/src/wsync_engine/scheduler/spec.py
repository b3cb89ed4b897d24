"""What a person declares of a schedule, and what is refused of it: values in, values out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal
from uuid import UUID

import orjson

from wsync_engine.model.durations import duration_text
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.scheduler.timing import Timing, check_timing
from wsync_sdk.errors import ConfigError

__all__ = [
    "INSTANTS",
    "ScheduleSpec",
    "anchored",
    "check_params",
    "checked_timing",
    "in_utc",
    "is_declared",
    "refuse_contradictions",
    "refuse_new_contradictions",
    "shared_and_own",
]

INSTANTS = ("anchor_at", "once_at", "start_at", "end_at")
"""The fields that are instants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """What a person declares; the names are the columns of `wsync.schedule`. An interval without an anchor begins when it is created."""

    name: str
    sync_id: UUID
    kind: Literal["cron", "interval", "once"]
    cron: str | None = None
    zone: str | None = None
    every_ms: int | None = None
    anchor_at: datetime | None = None
    once_at: datetime | None = None
    priority: int = 1
    jitter_ms: int = 0
    overlap: str = "skip"
    max_buffer: int = 100
    catchup_ms: int = 3_600_000
    catchup_mode: Literal["latest", "all"] = "latest"
    start_at: datetime | None = None
    end_at: datetime | None = None
    max_runs: int | None = None
    max_attempts: int = 3
    backoff_base_ms: int = 10_000
    backoff_cap_ms: int = 900_000
    attempt_timeout_ms: int = 21_600_000
    total_timeout_ms: int = 86_400_000
    stall_ms: int = 600_000
    pause_after_failures: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def check_params(declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse values for what the sync's query does not have, and values that can't be stored.

    :raises ConfigError: the sync declares no such parameter; the value is none of text, number and boolean.
    """
    for name, value in given.items():
        if name not in declared:
            known = ", ".join(f"`{x}`" for x in declared) or "none"
            raise ConfigError(
                f"the sync has no parameter `{name}`", next_step=f"declare it under the sync's `parameters`; there are: {known}"
            )
        if not _is_storable(value):
            raise ConfigError(
                f"parameter `{name}` has a value that a query can't be given",
                next_step="give a text, a whole number of 64 bits, a finite number or a boolean",
            )


def _is_storable(value: object) -> bool:
    match value:
        case bool() | None:
            return True
        case int():
            return -(2**63) <= value < 2**63
        case float():
            return math.isfinite(value)
        case str():
            return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return False


def in_utc(spec: ScheduleSpec) -> ScheduleSpec:
    """The spec with all its instants in UTC. In their zone, Python takes both passes of a repeated hour for the same one.

    :raises ConfigError: an instant has no zone, or has no date in UTC.
    """
    anchor, once, start, end = instants = _instants(spec)
    # Nearly all specs; spelled out, since a loop would cost as much as all the rest of a spec's checks.
    if (
        (start is None or start.tzinfo is UTC)
        and (end is None or end.tzinfo is UTC)
        and (once is None or once.tzinfo is UTC)
        and (anchor is None or anchor.tzinfo is UTC)
    ):
        return spec
    converted: dict[str, Any] = {name: _utc(spec, name, at) for name, at in zip(INSTANTS, instants, strict=True) if at is not None}
    return replace(spec, **converted)


def _utc(spec: ScheduleSpec, name: str, at: datetime) -> datetime:
    if at.utcoffset() is None:
        raise ConfigError(f"schedule `{spec.name}`: `{name}` has no zone", next_step="pass an aware datetime, for example in UTC")
    try:
        return at.astimezone(UTC)
    except OverflowError as exc:
        raise ConfigError(
            f"schedule `{spec.name}`: `{name}` is outside the calendar in UTC",
            next_step="leave it out, or name an instant that somebody lives to see",
        ) from exc


def anchored(spec: ScheduleSpec, now: datetime) -> ScheduleSpec:
    """An interval without an anchor begins now."""
    return replace(spec, anchor_at=now) if spec.kind == "interval" and spec.anchor_at is None else spec


def checked_timing(spec: ScheduleSpec, schedule_id: UUID) -> Timing:
    """The timing of what can be stored.

    :raises ConfigError: the name, the overlap policy or the timing is wrong.
    """
    if spec.overlap not in _POLICIES:
        raise ConfigError(f"there is no overlap policy `{spec.overlap}`", next_step=f"there are: {', '.join(_POLICIES)}")
    if not spec.name:
        raise ConfigError("a schedule needs a name", next_step="set `name`")
    timing = Timing(
        schedule_id=schedule_id,
        kind=spec.kind,
        cron=spec.cron,
        zone=spec.zone,
        every_ms=spec.every_ms,
        anchor_at=spec.anchor_at,
        once_at=spec.once_at,
        jitter_ms=spec.jitter_ms,
        start_at=spec.start_at,
        end_at=spec.end_at,
        max_runs=spec.max_runs,
        catchup_ms=spec.catchup_ms,
        catchup_mode=spec.catchup_mode,
    )
    check_timing(timing)
    return timing


def is_declared(spec: ScheduleSpec, old: Mapping[str, Any]) -> bool:
    """Whether a row of `wsync.schedule` is what `spec` would be stored as, but for the parameters, which Python can't tell. The phase of an
    interval is not asked for: registering again does not move it.

    :param spec: with its instants in UTC.
    """
    for name, value in zip(_FIELDS, _values(spec), strict=True):
        stored = old[name]
        if stored == value or name == "params" or (name == "anchor_at" and spec.kind == "interval"):
            continue
        # In the session's zone an instant of a repeated hour equals none of another zone.
        if not (isinstance(stored, datetime) and isinstance(value, datetime) and stored.astimezone(UTC) == value):
            return False
    return True


def refuse_contradictions(spec: ScheduleSpec) -> None:
    """Values that have no meaning beside others, and would be ignored."""
    if spec.zone is not None and spec.kind != "cron":
        raise ConfigError(
            f"schedule `{spec.name}`: `zone` goes with `cron`, not with the kind `{spec.kind}`", next_step="leave `zone` out, or set `cron`"
        )
    if spec.attempt_timeout_ms > spec.total_timeout_ms:
        attempt, total = duration_text(spec.attempt_timeout_ms), duration_text(spec.total_timeout_ms)
        raise ConfigError(
            f"schedule `{spec.name}`: `attempt_timeout_ms` ({attempt}) is longer than `total_timeout_ms` ({total})",
            next_step="shorten `attempt_timeout_ms`, or raise `total_timeout_ms`",
        )


def refuse_new_contradictions(spec: ScheduleSpec, old: Mapping[str, Any]) -> None:
    """As `refuse_contradictions`, but for those that a stored schedule has already: what an older engine took is no reason to refuse another
    change.
    """
    if any(getattr(spec, name) != old[name] for name in _JUDGED):
        refuse_contradictions(spec)


def shared_and_own(specs: Sequence[ScheduleSpec]) -> tuple[dict[str, Any], tuple[str, ...], list[tuple[Any, ...]]]:
    """(values that all have, names of the other fields, their values of each): what is the same in all of them is written and read once.

    :param specs: at least one.
    """
    rows = [_values(spec) for spec in specs]
    is_shared = [column.count(column[0]) == len(column) for column in zip(*rows, strict=True)]
    if specs[0].params and is_shared[_PARAMS]:  # so far True and 1 are the same, and 1.0, and -0.0 is 0.0
        is_shared[_PARAMS] = len({orjson.dumps(spec.params, default=dict) for spec in specs}) == 1
    shared = {name: value for name, value, same in zip(_FIELDS, rows[0], is_shared, strict=True) if same}
    own = [at for at, same in enumerate(is_shared) if not same]
    return shared, tuple(_FIELDS[at] for at in own), [tuple([row[at] for at in own]) for row in rows]


_POLICIES = tuple(policy.value for policy in OverlapPolicy)
_JUDGED = ("kind", "zone", "attempt_timeout_ms", "total_timeout_ms")
_FIELDS = tuple(item.name for item in fields(ScheduleSpec))
_PARAMS = _FIELDS.index("params")
_values = attrgetter(*_FIELDS)
_instants = attrgetter(*INSTANTS)
