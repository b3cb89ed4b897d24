"""The independent judge of `next_fires`: every minute of a few days, looked at one by one."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


def number(text: str) -> int:
    if text.upper() in MONTHS:
        return MONTHS.index(text.upper()) + 1
    return DAYS.index(text.upper()) if text.upper() in DAYS else int(text)


def expand(text: str, low: int, high: int) -> set[int]:
    numbers: set[int] = set()
    for item in text.split(","):
        if item == "L" or "#" in item:
            continue
        span, _, step = item.partition("/")
        start, _, stop = span.partition("-")
        first, last = (low, high) if span == "*" else (number(start), number(stop or start))
        numbers |= {x for x in range(first, last + 1) if (x - first) % int(step or 1) == 0}
    return numbers


@dataclass
class Judge:
    """What one expression matches, spelled out without any of the engine's code."""

    expression: str

    def __post_init__(self) -> None:
        minute, hour, day, month, weekday = self.expression.split()
        self.wildcard = minute[0] == "*" or hour[0] == "*"
        self.minutes, self.hours, self.months = expand(minute, 0, 59), expand(hour, 0, 23), expand(month, 1, 12)
        self.days, self.last = expand(day, 1, 31), "L" in day.split(",")
        self.weekdays = {x % 7 for x in expand(weekday, 0, 7)}
        self.nth = {(number(d) % 7, int(k)) for d, k in (x.split("#") for x in weekday.split(",") if "#" in x)}
        self.both = day[0] == "*" or weekday[0] == "*"

    def matches(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:
            return False
        weekday = wall.isoweekday() % 7
        by_day = wall.day in self.days or (self.last and wall.day == calendar.monthrange(wall.year, wall.month)[1])
        by_weekday = weekday in self.weekdays or (weekday, (wall.day - 1) // 7 + 1) in self.nth
        return (by_day and by_weekday) if self.both else (by_day or by_weekday)


def wall_minutes(zone: ZoneInfo, start: datetime, stop: datetime) -> list[tuple[datetime, datetime]]:
    """(instant, wall clock) for every minute from `start` to `stop`."""
    minutes = int((stop - start) / MINUTE)
    instants = (start + MINUTE * k for k in range(minutes + 1))
    return [(instant, instant.astimezone(zone).replace(tzinfo=None, fold=0)) for instant in instants]


def brute_force(judge: Judge, walls: list[tuple[datetime, datetime]], after: datetime) -> list[datetime]:
    """All fires in those minutes that are later than `after`."""
    fires: set[datetime] = set()
    latest_wall = walls[0][1] - MINUTE
    for instant, wall in walls:
        if judge.wildcard:
            if judge.matches(wall):
                fires.add(instant)
            continue
        skipped = latest_wall + MINUTE
        while skipped <= wall:  # the minute itself, and any that the clock jumped over
            if judge.matches(skipped):
                fires.add(instant)
            skipped += MINUTE
        latest_wall = max(latest_wall, wall)
    return sorted(x for x in fires if x > after)


def transitions(zone: ZoneInfo, first_year: int, last_year: int) -> list[datetime]:
    """The minutes at which the zone's offset changes."""
    found = []
    at, stop = datetime(first_year, 1, 1, tzinfo=UTC), datetime(last_year + 1, 1, 1, tzinfo=UTC)
    while at < stop:
        step = timedelta(hours=12)
        if at.astimezone(zone).utcoffset() != (at + step).astimezone(zone).utcoffset():
            minute = at
            while minute.astimezone(zone).utcoffset() == at.astimezone(zone).utcoffset():
                minute += MINUTE
            found.append(minute)
        at += step
    return found
