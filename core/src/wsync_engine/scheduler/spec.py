"""What a person declares of a schedule, and what is refused of it: values in, values out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal
from uuid import UUID

import orjson

from wsync_engine.model.durations import duration_text
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.scheduler.limits import INSTANTS, refuse_new_values, refuse_values
from wsync_engine.scheduler.timing import Timing, check_timing
from wsync_sdk.errors import ConfigError

__all__ = [
    "ScheduleSpec",
    "anchored",
    "check_change",
    "check_params",
    "check_values",
    "checked_timing",
    "in_utc",
    "is_declared",
    "refuse_contradictions",
    "refuse_new_contradictions",
    "shared_and_own",
]


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
    if not isinstance(given, Mapping):
        raise ConfigError("parameters are no mapping", next_step="pass values by the parameters' names, or leave them out")
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
    try:
        if (
            (start is None or start.tzinfo is UTC)
            and (end is None or end.tzinfo is UTC)
            and (once is None or once.tzinfo is UTC)
            and (anchor is None or anchor.tzinfo is UTC)
        ):
            return spec
    except AttributeError:
        pass  # no instant at all: `_utc` says so
    converted: dict[str, Any] = {name: _utc(spec, name, at) for name, at in zip(INSTANTS, instants, strict=True) if at is not None}
    return replace(spec, **converted)


def _utc(spec: ScheduleSpec, name: str, at: object) -> datetime:
    if not isinstance(at, datetime):
        raise ConfigError(f"schedule `{spec.name}`: `{name}` is no instant", next_step="pass an aware datetime, for example in UTC")
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

    :raises ConfigError: the overlap policy or the timing is wrong.
    """
    if spec.overlap not in _POLICIES:
        raise ConfigError(f"there is no overlap policy `{spec.overlap}`", next_step=f"there are: {', '.join(_POLICIES)}")
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
    if _unused[spec.kind](spec) != _NOTHING[spec.kind] or spec.attempt_timeout_ms > spec.total_timeout_ms:
        for _, refusal in _contradictions(spec):
            raise refusal


def refuse_new_contradictions(spec: ScheduleSpec, old: Mapping[str, Any]) -> None:
    """As `refuse_contradictions`, but for those that a stored schedule has already: what an older engine took is no reason to refuse another
    change.
    """
    for names, refusal in _contradictions(spec):
        if any(getattr(spec, name) != old[name] for name in names):
            raise refusal


def _contradictions(spec: ScheduleSpec) -> Iterator[tuple[tuple[str, ...], ConfigError]]:
    """The fields that contradict one another, and what to say of them."""
    for name in _UNUSED[spec.kind]:
        if getattr(spec, name) is not None:
            what = f"schedule `{spec.name}`: `{name}` goes with {_GOES_WITH[name]}, not with the kind `{spec.kind}`"
            yield ("kind", name), ConfigError(what, next_step=f"leave `{name}` out, or set another `kind`")
    if spec.attempt_timeout_ms > spec.total_timeout_ms:
        attempt, total = duration_text(spec.attempt_timeout_ms), duration_text(spec.total_timeout_ms)
        what = f"schedule `{spec.name}`: `attempt_timeout_ms` ({attempt}) is longer than `total_timeout_ms` ({total})"
        advice = "shorten `attempt_timeout_ms`, or raise `total_timeout_ms`"
        yield ("attempt_timeout_ms", "total_timeout_ms"), ConfigError(what, next_step=advice)


def check_values(specs: Sequence[ScheduleSpec], shared: Mapping[str, Any], own: Mapping[str, Sequence[Any]]) -> None:
    """Refuse values that a field can't have.

    :param shared: as `shared_and_own` has it. :param own: likewise.
    :raises ConfigError: names schedule and field.
    """
    refuse_values([spec.name for spec in specs], {**{name: [value] for name, value in shared.items()}, **own})


def check_change(spec: ScheduleSpec, old: Mapping[str, Any]) -> None:
    """As `check_values`, for a change of the schedule `old` to `spec`, and of no field that stays as it was. A change leaves the name."""
    refuse_new_values(spec.name, {name: getattr(spec, name) for name in _FIELDS if name not in {"name", "params"}}, old)


def shared_and_own(specs: Sequence[ScheduleSpec]) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """(the values that all have, of each other field the values in the order of `specs`): what is the same in all is written and read once.

    :param specs: at least one.
    """
    columns = dict(zip(_FIELDS, zip(*map(_values, specs), strict=True), strict=True))
    shared = {name: column[0] for name, column in columns.items() if column.count(column[0]) == len(column)}
    # So far True and 1 are the same, and 1.0, and -0.0 is 0.0.
    if shared.get("params") and len({orjson.dumps(params, default=dict) for params in columns["params"]}) > 1:
        del shared["params"]
    return shared, {name: column for name, column in columns.items() if name not in shared}


_POLICIES = tuple(policy.value for policy in OverlapPolicy)
_GOES_WITH = {
    "cron": "the kind `cron`",
    "zone": "`cron`",
    "every_ms": "the kind `interval`",
    "anchor_at": "`every_ms`",
    "once_at": "the kind `once`",
}
_UNUSED = {
    "cron": ("every_ms", "anchor_at", "once_at"),
    "interval": ("cron", "zone", "once_at"),
    "once": ("cron", "zone", "every_ms", "anchor_at"),
}
_unused = {kind: attrgetter(*names) for kind, names in _UNUSED.items()}
_NOTHING = {kind: (None,) * len(names) for kind, names in _UNUSED.items()}
_FIELDS = tuple(item.name for item in fields(ScheduleSpec))
_values = attrgetter(*_FIELDS)
_instants = attrgetter(*INSTANTS)
