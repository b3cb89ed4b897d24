"""What must hold after the chaos: read from the tables, from what the sinks received, and counted anew from specs and the change history.

Each check returns what is wrong, in words; nothing is the good answer.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from wsync_engine.scheduler.rows import Row
from wsync_engine.scheduler.spec import ScheduleSpec

from .chaos_producers import COUNTERS, Plan, Producer, Step
from .chaos_world import TABLES, World

TERMINAL = ("succeeded", "partial", "failed", "cancelled")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_JITTER = timedelta(milliseconds=300)


# -- I2, by arithmetic on instants only


def period_of(spec: ScheduleSpec) -> timedelta:
    """All schedules of the producers are periodic from a whole minute on."""
    if spec.kind == "interval":
        return timedelta(milliseconds=spec.every_ms or 0)
    return timedelta(minutes=2 if (spec.cron or "").startswith("*/2") else 1)


def nominal_times(spec: ScheduleSpec, first: datetime, last: datetime) -> int:
    """How many the spec has from `first` to `last`, both included."""
    period = period_of(spec)
    anchor = spec.anchor_at or EPOCH
    assert (first - anchor) % period == timedelta(0), f"{first} is no time of {spec}"
    assert (last - anchor) % period == timedelta(0), f"{last} is no time of {spec}"
    return (last - first) // period + 1


def wrong_decisions(plan: Plan, end: Step) -> Iterator[str]:
    """Each stretch between two steps: what was counted in it is the number of nominal times that passed in it. And each step: what it counted
    itself are the times that were due and that nobody asks for any more.
    """
    steps = [*plan.steps, end]
    for before, after in pairwise(steps):
        yield from _wrong_given_up(plan, before, after)
        counted = _decisions(after.clock) - _decisions(before.left)
        spec = before.spec
        if spec is None or before.following is None:
            if counted:
                yield f"{plan.spec.name}: {counted} decisions while {before.kind}d"
            continue
        assert after.clock is not None
        following = after.clock["next_nominal_at"]
        passed = nominal_times(spec, before.following, following) - 1
        if counted != passed:
            yield f"{plan.spec.name}: {counted} decisions, {passed} nominal times from {before.following} to {following} ({before.kind}, {after.kind})"
        if passed and after.clock["last_nominal_at"] != following - period_of(spec):
            yield f"{plan.spec.name}: the last decision is {after.clock['last_nominal_at']}, the next {following}"


def _wrong_given_up(plan: Plan, before: Step, step: Step) -> Iterator[str]:
    """What `step` counted of the times that the spec of `before` had left when it came."""
    if step.clock is None or step.left is None or step.began_at is None:
        return
    counted = _decisions(step.left) - _decisions(step.clock)
    first, spec = step.clock["next_nominal_at"], before.spec
    if spec is None or first is None:
        if counted:
            yield f"{plan.spec.name}: {step.kind} counted {counted} times although none was to come"
        return
    # Times that the new spec has as well stay due, and are counted by a fire.
    is_kept = step.spec is not None and period_of(step.spec) == period_of(spec) and step.spec.kind == spec.kind
    following = first + counted * period_of(spec)
    if counted and (is_kept or step.left["last_nominal_at"] != following - period_of(spec) or following - period_of(spec) > step.at):
        yield f"{plan.spec.name}: {step.kind} counted {counted} times from {first}, the last of them {step.left['last_nominal_at']}"
    if not is_kept and following + LONGEST_JITTER < step.began_at:
        yield f"{plan.spec.name}: {step.kind} at {step.began_at} counted {counted} times from {first}, and not {following}"


def _decisions(clock: Row | None) -> int:
    return 0 if clock is None else sum(int(clock[name]) for name in COUNTERS)


def wrong_counts(world: World, plans: Sequence[Plan]) -> Iterator[str]:
    """Counters equal runs and events."""
    fired = dict(world.rows("SELECT schedule_id, count(*) FROM wsync.run WHERE trigger = 'schedule' GROUP BY 1"))
    told = Counter(
        {
            (schedule_id, kind.removeprefix("schedule.")): count
            for schedule_id, kind, count in world.rows(
                "SELECT schedule_id, kind, sum((detail ->> 'count')::int) FROM wsync.run_event"
                " WHERE kind IN ('schedule.skipped', 'schedule.missed', 'schedule.coalesced') GROUP BY 1, 2"
            )
        }
    )
    clocks = world.rows("SELECT schedule_id, fired, skipped, missed, coalesced FROM wsync.schedule_clock")
    names = {plan.schedule_id: plan.spec.name for plan in plans}
    for schedule_id, *counts in clocks:
        expected = [fired.get(schedule_id, 0), *(told[schedule_id, name] for name in COUNTERS[1:])]
        if counts != expected:
            yield f"{names.get(schedule_id)}: counted {counts}, there are {expected}"


# -- runs


def disordered_runs(world: World) -> list[tuple[Any, ...]]:
    """I1: in the order of their commits, which the clock row's lock makes that of `created_at`, nominal times rise."""
    return world.rows(
        "SELECT * FROM (SELECT schedule_id, nominal_at, created_at, lag(nominal_at) OVER w AS before FROM wsync.run WHERE trigger = 'schedule'"
        " WINDOW w AS (PARTITION BY schedule_id ORDER BY created_at, nominal_at)) AS r WHERE nominal_at <= before"
    )


def runs_while_paused(world: World, plans: Sequence[Plan]) -> Iterator[str]:
    """I5, by the times under the clock row's lock."""
    for plan in plans:
        ends = [*plan.steps[1:], None]
        for step, after in zip(plan.steps, ends, strict=True):
            if step.spec is not None:
                continue
            until = after.at if after is not None else datetime.now(UTC) + timedelta(days=1)
            found = world.rows(
                "SELECT run_id, created_at FROM wsync.run WHERE schedule_id = %s AND trigger = 'schedule' AND created_at BETWEEN %s AND %s",
                plan.schedule_id,
                step.at,
                until,
            )
            if found:
                yield f"{plan.spec.name}: {found} after {step.kind} at {step.at}"


def open_runs(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT run_id, state, ready_at, epoch FROM wsync.run WHERE NOT state::text = ANY(%s)", list(TERMINAL))


def wrong_epochs(world: World) -> list[tuple[Any, ...]]:
    """I7: each epoch is claimed once, epochs rise, and after the claim of one nothing is written under an older one."""
    twice = world.rows("SELECT run_id, epoch, count(*) FROM wsync.run_event WHERE kind = 'run.claimed' GROUP BY 1, 2 HAVING count(*) > 1")
    beyond = world.rows("SELECT run_id, e.epoch, r.epoch FROM wsync.run_event e JOIN wsync.run r USING (run_id) WHERE e.epoch > r.epoch")
    late = world.rows(
        "SELECT o.run_id, o.epoch, o.kind, o.at, c.epoch, c.at FROM wsync.run_event o JOIN wsync.run_event c USING (run_id)"
        " WHERE c.kind = 'run.claimed' AND o.epoch < c.epoch AND o.at > c.at AND o.kind NOT LIKE 'schedule.%%'"
    )
    acks = world.rows("SELECT run_id, a.epoch, r.epoch FROM wsync.ack a JOIN wsync.run r USING (run_id) WHERE a.epoch > r.epoch")
    return [*twice, *beyond, *late, *acks]


def ended_twice(world: World) -> list[tuple[Any, ...]]:
    return world.rows(
        "SELECT run_id, kind, count(*) FROM wsync.run_event WHERE kind IN ('run.settled', 'run.finished', 'run.cancelled')"
        " GROUP BY 1, 2 HAVING count(*) > 1"
    )


def lost_triggers(world: World, producers: Sequence[Producer]) -> list[str]:
    known = dict(world.rows("SELECT idem_key, run_id FROM wsync.run WHERE idem_key IS NOT NULL"))
    return [key for producer in producers for key, run_id in producer.triggered.items() if known.get(key) != run_id]


# -- destinations


def differing_destinations(world: World) -> Iterator[str]:
    """After a last run, what the sinks hold is the queries' results."""
    for name in world.syncs:
        expected = dict(world.warehouse(f"SELECT id, v FROM from_{name}"))
        is_table = name in world.syncs[:TABLES]
        held = dict(world.warehouse(f"SELECT id, v FROM {name}")) if is_table else world.endpoint.records.get(name, {})
        if held != expected:
            yield f"{name}: {len(held)} of {len(expected)} rows, differing: {sorted(set(held.items()) ^ set(expected.items()))[:6]}"


def applied_twice(world: World) -> list[tuple[Any, ...]]:
    """Exactly once: a version is written into the sink's table by one statement only."""
    return world.warehouse("SELECT sink, id, v, op, count(*), array_agg(at) FROM applied GROUP BY 1, 2, 3, 4 HAVING count(*) > 1")


def keys_of_repeated_chunks(world: World) -> Iterator[str]:
    """A key always names the same rows, and within a run the same row always comes under the same key."""
    body_by_key: dict[str, bytes] = {}
    key_by_row: dict[tuple[str, str], str] = {}
    for stream, key, body in world.endpoint.requests:
        if body_by_key.setdefault(key, body) != body:
            yield f"{stream}: two bodies under {key}"
        for change in json.loads(body):
            row = (key.partition(".")[0], json.dumps(change, sort_keys=True))
            if key_by_row.setdefault(row, key) != key:
                yield f"{stream}: {change} under {key_by_row[row]} and {key}"


# -- always


class Witness:
    """Looks again and again while everything happens: what ended stays as it is, and no waiting run is left without an open one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.wrong: list[str] = []
        self._ended: dict[UUID, tuple[Any, ...]] = {}

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            self.look()

    def look(self) -> None:
        """Each question is one statement, hence one instant."""
        for run_id, *row in self._world.rows(
            "SELECT run_id, state, finished_at, epoch, outcome_reason FROM wsync.run WHERE state::text = ANY(%s)", list(TERMINAL)
        ):
            if self._ended.setdefault(run_id, tuple(row)) != tuple(row):
                self.wrong.append(f"run {run_id} was {self._ended[run_id]}, is {row}")
        self.wrong += [f"{count} open runs of {key}" for key, count in self._world.rows(_CROWDED)]
        self.wrong += [f"nothing is open before {run_id}" for (run_id,) in self._world.rows(_ORPHANED)]


_CROWDED = (
    "SELECT overlap_key, count(*) FROM wsync.run WHERE exclusive AND state IN ('queued', 'running', 'cancelling', 'blocked')"
    " GROUP BY 1 HAVING count(*) > 1"
)
_ORPHANED = (
    "SELECT b.run_id FROM wsync.run b WHERE b.state = 'buffered' AND NOT EXISTS (SELECT FROM wsync.run r WHERE r.overlap_key = b.overlap_key"
    " AND r.exclusive AND r.state IN ('queued', 'running', 'cancelling', 'blocked'))"
)
