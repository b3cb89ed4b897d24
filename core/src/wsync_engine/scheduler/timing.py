"""What a schedule decides at an instant: which nominal times fire, which are missed or coalesced, and when it is due next.

Pure: values in, values out. Time is Postgres' and passed in. Every nominal time gets exactly one decision, because a decision
starts at the stored next one and names the next to come; the caller stores both in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal
from uuid import UUID

from wsync_engine.model.durations import LONGEST_MS
from wsync_engine.scheduler.cron import count_fires, last_fire, next_fires, parse_cron
from wsync_engine.scheduler.interval import interval_fires, jitter
from wsync_engine.scheduler.zones import zone_named
from wsync_sdk.errors import ConfigError

__all__ = [
    "Decision",
    "GivenUp",
    "Nominal",
    "Timing",
    "check_timing",
    "decide",
    "first_nominal",
    "given_up",
    "is_same_rule",
    "nominal_times",
]

MAX_FIRES = 100
"""Nominal times fired in one transaction; the rest stays due."""
MAX_STEPS = 5_000
"""Nominal times looked at in one transaction, so that a year's outage of a per-second schedule stalls nobody."""
EARLY = timedelta(seconds=2)
"""A claim this much ahead of Postgres' clock is accepted: Redis decided that it is due."""
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The part of a schedule that says when; fields as in the table `wsync.schedule`."""

    schedule_id: UUID
    kind: Literal["cron", "interval", "once"]
    cron: str | None = None
    zone: str | None = None
    every_ms: int | None = None
    anchor_at: datetime | None = None
    once_at: datetime | None = None
    jitter_ms: int = 0
    start_at: datetime | None = None
    end_at: datetime | None = None
    max_runs: int | None = None
    catchup_ms: int = 3_600_000
    catchup_mode: Literal["latest", "all"] = "latest"


@dataclass(frozen=True, slots=True, order=True)
class Nominal:
    """An instant the schedule asks for, and the instant it is due: that plus jitter."""

    nominal_at: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of the nominal times that have passed. `next` is None when there is none to come."""

    fire: tuple[Nominal, ...]
    missed: int
    coalesced: int
    last_nominal_at: datetime | None
    next: Nominal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """Nominal times that nobody asks for any more; `last_at` is the latest of them that no kept one precedes."""

    count: int = 0
    last_at: datetime | None = None


def check_timing(timing: Timing) -> None:
    """Refuse what could never be computed.

    :raises ConfigError: the expression, zone, interval or window is wrong.
    """
    if timing.kind == "cron":
        parse_cron(timing.cron or "")
        zone_named(timing.zone or "")
    if timing.kind == "interval" and (timing.every_ms is None or timing.every_ms < 1_000 or timing.anchor_at is None):
        raise ConfigError("an interval schedule needs an anchor and at least one second", next_step="set `every` to 1s or more")
    if timing.every_ms is not None and timing.every_ms > LONGEST_MS:
        raise ConfigError("the interval is longer than a hundred years", next_step="shorten `every`")
    if timing.kind == "once" and timing.once_at is None:
        raise ConfigError("a `once` schedule needs its instant", next_step="set `at`")
    if timing.start_at and timing.end_at and timing.end_at < timing.start_at:
        raise ConfigError("`end` is before `start`", next_step="change `start` or `end`")


def first_nominal(timing: Timing, *, after: datetime, due_after: datetime) -> Nominal | None:
    """The first nominal time later than `after` that is due later than `due_after`: for a new, changed or resumed schedule."""
    if not timing.jitter_ms:  # then it is due when it is asked for
        return next((Nominal(at, at) for at in nominal_times(timing, max(after, due_after), 1)), None)
    for found in _nominals(timing, nominal_times(timing, after, 1)):
        if found.due_at > due_after:
            return found
    return None


def decide(timing: Timing, *, next_nominal_at: datetime, runs: int, now: datetime, early: timedelta = EARLY) -> Decision:
    """Decide every nominal time from `next_nominal_at` on that is due by `now`, in order.

    :param next_nominal_at: the stored next nominal time; it is decided if it is due.
    :param runs: scheduled runs made so far, for `max_runs`; fires beyond it are not proposed.
    """
    left = MAX_FIRES if timing.max_runs is None else min(MAX_FIRES, timing.max_runs - runs)
    if left <= 0:
        return Decision(fire=(), missed=0, coalesced=0, last_nominal_at=None, next=None)
    window_start = now - timedelta(milliseconds=timing.catchup_ms)
    open_times: list[Nominal] = []
    missed = 0
    last, following = None, None
    for steps, found in enumerate(_nominals(timing, [next_nominal_at])):
        full = timing.catchup_mode == "all" and len(open_times) >= left
        # Only the claimed time itself may be early: what follows it has its own claim to come.
        if found.due_at > (now if steps else now + early) or steps >= MAX_STEPS or full:
            following = found
            break
        last = found.nominal_at
        if found.due_at < window_start:
            missed += 1
        else:
            open_times.append(found)
    # In `latest` the last one fires; as long as later ones wait behind the step limit, it is not the last.
    unfinished = following is not None and following.due_at <= now
    keep = len(open_times) if timing.catchup_mode == "all" else int(not unfinished)
    fire = tuple(open_times[max(0, len(open_times) - keep) :])
    return Decision(fire=fire, missed=missed, coalesced=len(open_times) - len(fire), last_nominal_at=last, next=following)


def is_same_rule(one: Timing, other: Timing) -> bool:
    """Whether two timings ask for the same instants, but for where they begin and end."""
    return all(getattr(one, name) == getattr(other, name) for name in ("kind", "cron", "zone", "every_ms", "anchor_at", "once_at"))


def given_up(old: Timing, new: Timing | None, *, next_nominal_at: datetime, now: datetime) -> GivenUp:
    """What is given up of the times from `next_nominal_at` on that are due by `now` and undecided, when `new` takes the place of `old`: under
    another rule all of them, under the same one those that lie before its start or after its end now. They are counted, not looked at: there
    may be millions.

    :param new: None: nothing is asked for any more. :param next_nominal_at: the stored next nominal time of `old`.
    """
    first = next_nominal_at.astimezone(UTC)  # in a zone, what is added to it would be wall-clock time
    last = _last_due(old, first, now)
    if last is None:
        return GivenUp()
    due = _count(old, first, last)
    if new is None or not is_same_rule(old, new):
        return GivenUp(count=due, last_at=last)
    if (old.start_at, old.end_at) == (new.start_at, new.end_at):
        return GivenUp()
    before_at = None if new.start_at is None else _last(old, first, min(last, new.start_at - timedelta(microseconds=1)))
    before = 0 if before_at is None else _count(old, first, before_at)
    after = 0 if new.end_at is None else due - max(before, _count(old, first, min(last, new.end_at)))
    return GivenUp(count=before + after, last_at=last if before + after == due else before_at)


def _last_due(timing: Timing, first: datetime, now: datetime) -> datetime | None:
    """Times whose successor has come are due: jitter never reaches so far. So only the last one that has come may not be."""
    last = _last(timing, first, now)
    if last is None or _nominal(timing, last).due_at <= now:
        return last
    return _last(timing, first, last - timedelta(microseconds=1))


def _nominal(timing: Timing, at: datetime) -> Nominal:
    return next(_nominals(timing, [at]))


def _last(timing: Timing, first: datetime, until: datetime) -> datetime | None:
    """The last nominal time from `first`, which is one, to `until`."""
    until = until if timing.end_at is None else min(until, timing.end_at)
    if until < first:
        return None
    match timing.kind:
        case "interval":
            every = timedelta(milliseconds=timing.every_ms or 0)
            return first + (until - first) // every * every
        case "cron":
            return last_fire(timing.cron or "", timing.zone or "", first, until) or first
        case _:
            return first


def _count(timing: Timing, first: datetime, until: datetime) -> int:
    """How many nominal times there are from `first`, which is one, to `until`."""
    if until < first:
        return 0
    match timing.kind:
        case "interval":
            return (until - first) // timedelta(milliseconds=timing.every_ms or 0) + 1
        case "cron":
            return count_fires(timing.cron or "", timing.zone or "", first, until) + 1
        case _:
            return 1


def nominal_times(timing: Timing, after: datetime, n: int) -> list[datetime]:
    """Up to `n` nominal times strictly after `after`, inside start (inclusive) and end (inclusive)."""
    if timing.start_at is not None:
        after = max(after, timing.start_at - timedelta(microseconds=1))
    if timing.kind == "cron":
        times = _cron_fires(timing.cron or "", timing.zone or "", after, n)
    elif timing.kind == "interval" and timing.anchor_at is not None:
        times = interval_fires(timing.anchor_at, timedelta(milliseconds=timing.every_ms or 0), after, n)
    else:
        times = [timing.once_at.astimezone(UTC)] if timing.once_at is not None and timing.once_at > after else []
    return [x for x in times if timing.end_at is None or x <= timing.end_at]


@lru_cache(maxsize=8_192)
def _cron_fires(cron: str, zone: str, after: datetime, n: int) -> list[datetime]:
    """Thousands of schedules share an expression, and are asked for the same instant when they are made and when they fire."""
    return next_fires(cron, zone, after, n)


def _nominals(timing: Timing, ahead: list[datetime]) -> Iterator[Nominal]:
    """Nominal times with their due times, from the given one on. Looks ahead no further than it must: jitter needs the next time."""
    batch = 1  # most decisions need one time and its successor; an outage needs many
    while ahead:
        if len(ahead) == 1 and timing.jitter_ms:
            ahead = ahead + nominal_times(timing, ahead[0], batch + 1)
            batch = _BATCH
        nominal_at, *ahead = ahead
        gap = ahead[0] - nominal_at if ahead else None
        yield Nominal(nominal_at, nominal_at + jitter(timing.schedule_id, nominal_at, timing.jitter_ms, gap))
        if not ahead:
            ahead = nominal_times(timing, nominal_at, batch)
            batch = _BATCH
