"""When a cron expression fires, in UTC, in any zone, in any year: grammar, calendar, and our own walk through time.

Libraries judge daylight saving per value; the rule here is per field: a job whose minute or hour begins with `*` is a
wildcard job and lives by elapsed time, any other is a fixed job and lives by the wall clock (Debian's rule). The walk goes
through pieces of time in which the zone's offset is constant, so a gap or a fold can only lie between two of them.
It never reads a clock and never loops without getting later.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NoReturn
from zoneinfo import ZoneInfo

from wsync_engine.scheduler.zones import Piece, pieces_of_year, zone_named
from wsync_sdk.errors import ConfigError

__all__ = ["Cron", "count_fires", "last_fire", "next_fires", "parse_cron"]

FIRST_YEAR, LAST_YEAR = 2, 9_998
END_OF_CALENDAR = 10**12  # later than any day, minute or second that has a date
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_LENGTHS = {month: (28, 29) if month == 2 else (monthrange(2001, month)[1],) for month in range(1, 13)}
_LAST_DAY = date(LAST_YEAR, 12, 31).toordinal() - _EPOCH_ORDINAL
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_MONTHS = {
    name: number
    for number, name in enumerate(["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"], start=1)
}
_DAYS = {name: number for number, name in enumerate(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"])}
_VALUE = r"[0-9]+|[A-Za-z]{3}"
_ITEM = re.compile(rf"(?:(?P<star>\*)|(?P<low>{_VALUE})(?:-(?P<high>{_VALUE}))?)(?:/(?P<step>[0-9]+))?", re.ASCII)
_NTH = re.compile(rf"(?P<day>{_VALUE})#(?P<nth>[0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    name: str
    low: int
    high: int
    names: dict[str, int]


_FIELDS = (
    _Field(name="minute", low=0, high=59, names={}),
    _Field(name="hour", low=0, high=23, names={}),
    _Field(name="day of month", low=1, high=31, names={}),
    _Field(name="month", low=1, high=12, names=_MONTHS),
    _Field(name="day of week", low=0, high=7, names=_DAYS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """What one field, or an item of it, matches; `nth` holds (weekday, k) of `d#k`, `last` is day of month's `L`."""

    star: bool = False
    numbers: frozenset[int] = frozenset()
    nth: frozenset[tuple[int, int]] = frozenset()
    last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """A parsed expression. `minutes` are minutes of the day, rising; `masks` are month shapes → bit per matching day (bit 1 = day 1)."""

    wildcard: bool
    minutes: tuple[int, ...]
    months: frozenset[int]
    masks: dict[tuple[int, int], int]

    def day_mask(self, year: int, month: int) -> int:
        """Bits of the days of that month that match; 0 when the month itself does not."""
        if month not in self.months:
            return 0
        return self.masks[monthrange(year, month)]

    def next_local(self, minute: int) -> int:
        """First matching wall-clock minute ≥ `minute` (minutes since 1970-01-01 00:00 of the wall clock); huge past the last year."""
        day, minute_of_day = divmod(minute, 1_440)
        at = bisect_left(self.minutes, minute_of_day)
        found = self._next_day(day if at < len(self.minutes) else day + 1)
        return found * 1_440 + self.minutes[at if found == day else 0]

    def count_local(self, low: int, high: int) -> int:
        """How many wall-clock minutes match in `low`..`high`, both included: by months, whatever the distance."""
        if high < low:
            return 0
        (first_day, first_minute), (last_day, last_minute) = divmod(low, 1_440), divmod(high, 1_440)
        before = bisect_left(self.minutes, first_minute) * self._count_days(first_day, first_day)
        after = (len(self.minutes) - bisect_right(self.minutes, last_minute)) * self._count_days(last_day, last_day)
        return len(self.minutes) * self._count_days(first_day, last_day) - before - after

    def _count_days(self, first: int, last: int) -> int:
        start, end = (date.fromordinal(day + _EPOCH_ORDINAL) for day in (first, last))
        year, month = start.year, start.month
        mask = self.day_mask(year, month) >> start.day << start.day
        found = 0
        while (year, month) < (end.year, end.month):
            found += mask.bit_count()
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
            mask = self.day_mask(year, month)
        return found + (mask & ((2 << end.day) - 1)).bit_count()

    def _next_day(self, day: int) -> int:
        if day > _LAST_DAY:
            return END_OF_CALENDAR
        start = date.fromordinal(day + _EPOCH_ORDINAL)
        year, month = start.year, start.month
        mask = self.day_mask(year, month) >> start.day << start.day
        while not mask:
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
            if year > LAST_YEAR:
                return END_OF_CALENDAR
            mask = self.day_mask(year, month)
        return date(year, month, (mask & -mask).bit_length() - 1).toordinal() - _EPOCH_ORDINAL


def next_fires(expr: str, tz: str, after: datetime, n: int) -> list[datetime]:
    """The first `n` instants strictly after `after` at which `expr` fires in zone `tz`, rising, aware, in UTC.

    :param tz: an IANA name; unknown ones are refused.
    :param after: an aware instant; exact to the microsecond.
    :returns: `n` instants, fewer only at the end of the calendar (year 9998).
    :raises ConfigError: the expression is outside the grammar or matches no date, the zone is unknown, `after` is naive.
    """
    if after.tzinfo is None:
        raise ConfigError("`after` has no zone", next_step="pass an aware datetime, for example in UTC")
    fires = _walk(parse_cron(expr), tz, after)
    return [_EPOCH + timedelta(seconds=instant) for instant, _ in zip(fires, range(n), strict=False)]


def count_fires(expr: str, tz: str, after: datetime, until: datetime) -> int:
    """How many instants later than `after`, and not later than `until`, `next_fires` has: without looking at each, decades in milliseconds.

    :raises ConfigError: as `next_fires`.
    """
    after_us, until_us = ((at - _EPOCH) // timedelta(microseconds=1) for at in (after, until))
    return _count(parse_cron(expr), zone_named(tz), after_us, until_us // 1_000_000)


def last_fire(expr: str, tz: str, after: datetime, until: datetime) -> datetime | None:
    """The last of the instants that `count_fires` counts; found by halving."""
    cron, zone = parse_cron(expr), zone_named(tz)
    low_s, until_s = ((at - _EPOCH) // timedelta(seconds=1) for at in (after, until))
    after_us = (after - _EPOCH) // timedelta(microseconds=1)
    if not _count(cron, zone, after_us, until_s):
        return None
    high_s = until_s  # the last one is later than `low_s`, or at `after`'s own second, and not later than `high_s`
    while high_s - low_s > 1:
        middle_s = (low_s + high_s) // 2
        if _count(cron, zone, max(after_us, middle_s * 1_000_000), until_s):
            low_s = middle_s
        else:
            high_s = middle_s
    return _EPOCH + timedelta(seconds=high_s)


@lru_cache(maxsize=4_096)
def parse_cron(expr: str) -> Cron:
    """Parse and check an expression; cached, so a fire pays for it once per process.

    :raises ConfigError: names field, position and remedy.
    """
    parts = _split(expr)
    minute, hour, day, month, weekday = (_parse_field(spec, text, at) for spec, (text, at) in zip(_FIELDS, parts, strict=True))
    cron = Cron(
        wildcard=minute.star or hour.star,
        minutes=tuple(h * 60 + m for h in sorted(hour.numbers) for m in sorted(minute.numbers)),
        months=month.numbers,
        masks=_masks(day, weekday),
    )
    if not _can_match(cron):
        raise ConfigError(
            f"cron `{expr}` never fires: no date has that day of month, month and day of week (fields 3 to 5)",
            next_step="change the day of month, month or day of week",
        )
    return cron


def _can_match(cron: Cron) -> bool:
    # In the calendar's 400-year cycle every month begins on every weekday, February also in leap years: shapes decide.
    return any(cron.masks[first, length] for month in cron.months for length in _LENGTHS[month] for first in range(7))


@lru_cache(maxsize=1_024)
def _masks(day: _Values, weekday: _Values) -> dict[tuple[int, int], int]:
    """Of every shape that a month can have; most expressions ask for the same days, so that only their first one pays for it."""
    return {(first, length): _mask(day, weekday, first=first, length=length) for first in range(7) for length in (28, 29, 30, 31)}


def _mask(day: _Values, weekday: _Values, *, first: int, length: int) -> int:
    """Bits of matching days in a month of `length` days that begins on weekday `first` (0 = Monday)."""
    mask = 0
    for number in range(1, length + 1):
        is_weekday = (first + number) % 7  # 0 = Sunday
        by_day = number in day.numbers or (day.last and number == length)
        by_weekday = is_weekday in weekday.numbers or (is_weekday, (number + 6) // 7) in weekday.nth
        matches = (by_day and by_weekday) if day.star or weekday.star else (by_day or by_weekday)
        mask |= matches << number
    return mask


def _split(expr: str) -> list[tuple[str, int]]:
    text = expr.strip(" \t")
    if text.startswith("@"):
        if text not in _ALIASES:
            raise ConfigError(f"cron `{expr}`: unknown alias in field 1, position 1", next_step=f"use one of {', '.join(_ALIASES)}")
        text = _ALIASES[text]
        expr = text
    found = [(match.group(), match.start() + 1) for match in re.finditer(r"[^ \t]+", expr)]
    if len(found) != 5:
        where = f"field {min(len(found) + 1, 6)}, position {found[5][1] if len(found) > 5 else len(expr) + 1}"
        raise ConfigError(
            f"cron `{expr}`: {len(found)} fields instead of 5 ({where})",
            next_step="write minute, hour, day of month, month, day of week, separated by blanks",
        )
    return found


def _refuse(spec: _Field, item: str, at: int, problem: str, remedy: str) -> NoReturn:
    raise ConfigError(f"cron field `{spec.name}`, position {at}: `{item}` {problem}", next_step=remedy)


def _parse_field(spec: _Field, text: str, at: int) -> _Values:
    found = []
    for item in text.split(","):
        found.append(_parse_item(spec, item, at))
        at += len(item) + 1
    return _Values(
        star=text.startswith("*"),
        numbers=frozenset(number for values in found for number in values.numbers),
        nth=frozenset(nth for values in found for nth in values.nth),
        last=any(values.last for values in found),
    )


def _parse_item(spec: _Field, item: str, at: int) -> _Values:
    nth = _NTH.fullmatch(item) if spec.name == "day of week" else None
    if nth:
        k = _number(nth["nth"])
        if not 1 <= k <= 5:
            _refuse(spec, item, at, "asks for a week that no month has", "write `d#1` to `d#5`")
        return _Values(nth=frozenset({(_value(spec, nth["day"], item, at) % 7, k)}))
    if item == "L" and spec.name == "day of month":
        return _Values(last=True)
    return _Values(numbers=frozenset(_range(spec, item, at)))


def _range(spec: _Field, item: str, at: int) -> Iterator[int]:
    match = _ITEM.fullmatch(item)
    remedy = f"write `*`, `*/n`, a value {spec.low}-{spec.high}, a range `a-b` or `a-b/n`"
    if match is None:
        _refuse(spec, item, at, "is not understood" if item else "an item is missing", remedy)
    low, high, step = spec.low, spec.high, 1
    if match["star"] is None:
        low = _value(spec, match["low"], item, at)
        high = _value(spec, match["high"], item, at) if match["high"] else low
        if match["step"] and not match["high"]:
            _refuse(spec, item, at, "steps from a single value", f"write `{match['low']}-{spec.high}/{match['step']}`")
    if low > high:
        _refuse(spec, item, at, "runs backwards, and ranges do not wrap", f"write two items: `{low}-{spec.high},{spec.low}-{high}`")
    if match["step"]:
        step = _number(match["step"])
        if step < 1:
            _refuse(spec, item, at, "has a step of 0", "write a step of 1 or more")
    numbers = range(low, high + 1, step)
    return (number % 7 for number in numbers) if spec.name == "day of week" else iter(numbers)


def _number(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= 4 else 10_000  # larger than any bound, without parsing a megabyte of digits


def _value(spec: _Field, text: str, item: str, at: int) -> int:
    if text.isdigit():
        number = _number(text)
        if not spec.low <= number <= spec.high:
            _refuse(spec, item, at, f"is outside {spec.low}-{spec.high}", f"write a value {spec.low}-{spec.high}")
        return number
    if text.upper() not in spec.names:
        _refuse(spec, item, at, "has an unknown name", f"write {'one of ' + ', '.join(spec.names) if spec.names else 'a number'}")
    return spec.names[text.upper()]


def _walk(cron: Cron, tz: str, after: datetime) -> Iterator[int]:
    """Fires strictly after `after`, in seconds since 1970, rising."""
    zone = zone_named(tz)
    after_us = (after - _EPOCH) // timedelta(microseconds=1)
    first_year = year = max(after.astimezone(UTC).year, FIRST_YEAR)
    latest = after_us // 1_000_000  # a fire at this second or before is past, or was given already
    target = 0
    while year <= LAST_YEAR:
        for piece in pieces_of_year(zone, year):
            if piece.end_s <= latest:
                continue
            for instant, matched in _fires_in(cron, piece, after_us):
                target = matched
                if instant > latest:
                    latest = instant
                    yield instant
            if target > END_OF_CALENDAR:
                return
        year += 1
        if year > first_year + 1:  # by then `target` was sought from a piece's start: up to it there is nothing, fold or gap
            year = max(year, (_EPOCH + timedelta(minutes=target) - timedelta(days=2)).year)


def _fires_in(cron: Cron, piece: Piece, after_us: int) -> Iterator[tuple[int, int]]:
    """Pairs (instant, wall-clock minute) of one piece; the last pair is the match beyond it, given as an instant that is never later."""
    skipped = -(-(piece.start_s + piece.before_s) // 60)
    minute = -(-(piece.start_s + piece.offset_s) // 60)
    if not cron.wildcard and piece.start_s * 1_000_000 > after_us and cron.next_local(skipped) < minute:
        yield piece.start_s, minute  # a gap that swallowed at least one match
    if not cron.wildcard:
        minute = max(minute, skipped)  # a fold: its second pass belongs to wildcard jobs
    minute = cron.next_local(max(minute, (after_us + piece.offset_s * 1_000_000) // 60_000_000 + 1))
    while (instant := minute * 60 - piece.offset_s) < piece.end_s:
        yield instant, minute
        minute = cron.next_local(minute + 1)
    yield -END_OF_CALENDAR, minute


def _count(cron: Cron, zone: ZoneInfo, after_us: int, until_s: int) -> int:
    first_year = max((_EPOCH + timedelta(microseconds=after_us)).year, FIRST_YEAR)
    last_year = min((_EPOCH + timedelta(seconds=until_s)).year, LAST_YEAR)
    pieces = (piece for year in range(first_year, last_year + 1) for piece in pieces_of_year(zone, year))
    return sum(_count_in(cron, piece, after_us, until_s) for piece in pieces if piece.end_s * 1_000_000 > after_us)


def _count_in(cron: Cron, piece: Piece, after_us: int, until_s: int) -> int:
    """How many instants of one piece `_walk` would give, up to `until_s`."""
    if piece.start_s > until_s:
        return 0
    skipped = -(-(piece.start_s + piece.before_s) // 60)
    minute = -(-(piece.start_s + piece.offset_s) // 60)
    high = (min(piece.end_s - 1, until_s) + piece.offset_s) // 60
    is_begun = piece.start_s * 1_000_000 <= after_us
    is_swallowed = not cron.wildcard and not is_begun and cron.next_local(skipped) < minute
    # The one at the gap's end stands for those in the gap, too.
    is_given = is_swallowed and minute * 60 - piece.offset_s == piece.start_s and cron.next_local(minute) == minute
    if not cron.wildcard:
        minute = max(minute, skipped)
    low = max(minute, (after_us + piece.offset_s * 1_000_000) // 60_000_000 + 1)
    return cron.count_local(low, high) + (is_swallowed and not is_given)
