"""Producers that create, change, pause, resume, trigger and delete while everything breaks, and the history of what they did.

What a producer was told may be lost with Postgres' connection: each step bears a name of its own, by which it is found out afterwards.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.scheduler import schedules
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.scheduler.schedules import StoredSchedule, announce, trigger_run
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.state.database import tenant_transaction
from wsync_sdk.errors import RetryableError

from .chaos_world import World

# What cancels and terminates, more seldom: else hardly a run would live to its end.
POLICIES = {"skip": 4, "buffer_one": 3, "buffer_all": 4, "allow_all": 2, "cancel_other": 1, "terminate_other": 1}
SCHEDULES = 36
CRONS = ("* * * * *", "*/2 * * * *")
COUNTERS = ("fired", "skipped", "missed", "coalesced")
Action = Callable[[psycopg.Connection[Any], str], StoredSchedule]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A change that committed.

    :param at: Postgres' time in its transaction, with the clock's row locked. :param spec: from now on; None: nothing fires.
    :param clock: the clock's row before it, None for a new schedule. :param following: the next nominal time after it.
    :param left: the clock's row after it: what it counted itself of the times that were due. :param began_at: the time when it had the lock.
    """

    kind: str
    at: datetime
    spec: ScheduleSpec | None
    clock: Row | None
    following: datetime | None
    left: Row | None = None
    began_at: datetime | None = None


@dataclass(slots=True)
class Plan:
    """One schedule: as it is declared now, and all that was done to it."""

    schedule_id: UUID
    spec: ScheduleSpec
    steps: list[Step] = field(default_factory=list)
    is_paused: bool = False
    is_deleted: bool = False


class Producer:
    """Owns some schedules; for one thread."""

    def __init__(self, world: World, name: str, seed: str) -> None:
        self.world = world
        self.name = name
        self.draw = random.Random(seed)
        self.plans: list[Plan] = []
        self.triggered: dict[str, UUID] = {}
        self.errors: list[BaseException] = []
        self._numbers = iter(range(1, 1_000_000))
        self._conn: psycopg.Connection[Any] | None = None

    # -- what it does

    def run(self, stop: threading.Event) -> None:
        """One step after another until it is told to stop."""
        try:
            while not stop.wait(self.draw.uniform(0.1, 0.5)):
                self.step()
        except BaseException as exc:
            self.errors.append(exc)

    def step(self) -> None:
        """Something, drawn from the seed."""
        alive = [plan for plan in self.plans if not plan.is_deleted]
        plan = self.draw.choice(alive)
        kinds = {"trigger": 4, "change": 3, "resume" if plan.is_paused else "pause": 3, "delete": 1}
        (kind,) = self.draw.choices(list(kinds), list(kinds.values()))
        if kind == "delete":
            self.delete(plan)
            self.create()
        else:
            getattr(self, kind)(plan)

    def create(self) -> None:
        number = next(self._numbers)
        spec = self._drawn_spec(f"{self.name}{number}", self.world.syncs[number % len(self.world.syncs)])
        plan = Plan(schedule_id=UUID(int=0), spec=spec)

        def work(conn: psycopg.Connection[Any], actor: str) -> StoredSchedule:
            return schedules.create_schedule(conn, self.world.tenant_id, spec, actor=actor)

        if (stored := self._do("create", plan, work)) is not None:
            plan.schedule_id = stored.schedule_id
            self.plans.append(plan)

    def change(self, plan: Plan) -> None:
        spec = replace(self._drawn_spec(plan.spec.name, ""), sync_id=plan.spec.sync_id)

        def work(conn: psycopg.Connection[Any], actor: str) -> StoredSchedule:
            return schedules.change_schedule(conn, self.world.tenant_id, plan.schedule_id, spec, actor=actor)

        if self._do("change", plan, work, spec=spec) is not None:
            plan.spec = spec

    def pause(self, plan: Plan) -> None:
        def work(conn: psycopg.Connection[Any], actor: str) -> StoredSchedule:
            return schedules.pause_schedule(conn, self.world.tenant_id, plan.schedule_id, note=None, actor=actor)

        if self._do("pause", plan, work) is not None:
            plan.is_paused = True

    def resume(self, plan: Plan, *, is_announced: bool = True) -> None:
        def work(conn: psycopg.Connection[Any], actor: str) -> StoredSchedule:
            return schedules.resume_schedule(conn, self.world.tenant_id, plan.schedule_id, actor=actor)

        if self._do("resume", plan, work, is_announced=is_announced) is not None:
            plan.is_paused = False

    def delete(self, plan: Plan) -> None:
        def work(conn: psycopg.Connection[Any], actor: str) -> StoredSchedule:
            return schedules.delete_schedule(conn, self.world.tenant_id, plan.schedule_id, actor=actor)

        if self._do("delete", plan, work) is not None:
            plan.is_deleted = True

    def trigger(self, plan: Plan) -> None:
        """Asked again under the same key until it is known to have committed."""
        key = f"{self.name}-{next(self._numbers)}"
        while True:
            try:
                conn = self._connection()
                with tenant_transaction(conn, self.world.tenant_id):
                    made = trigger_run(
                        conn,
                        self.world.tenant_id,
                        sync_id=plan.spec.sync_id,
                        schedule_id=plan.schedule_id,
                        actor=self.name,
                        idem_key=key,
                    )
            except (psycopg.Error, RetryableError):
                self._drop_connection()
                threading.Event().wait(0.2)
                continue
            if made.is_new:
                self.triggered[key] = made.run_id
            runs = [] if made.run is None else [made.run]
            announce(self.world.index, runs=runs, interrupted=[] if made.interrupted is None else [made.interrupted])
            return

    def close(self) -> None:
        self._drop_connection()

    # -- how

    def _drawn_spec(self, name: str, sync: str) -> ScheduleSpec:
        """Intervals and cron; the anchor lies in the past, so that a new schedule's times are known beforehand."""
        is_cron = self.draw.random() < 0.15
        timing: dict[str, Any] = {"kind": "cron", "cron": self.draw.choice(CRONS), "zone": "UTC"}
        if not is_cron:
            anchor_at = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
            timing = {"kind": "interval", "every_ms": self.draw.choice((1_000, 1_000, 1_500, 2_000)), "anchor_at": anchor_at}
        return ScheduleSpec(
            name=name,
            sync_id=self.world.sync_ids.get(sync, UUID(int=0)),
            overlap=self.draw.choices(list(POLICIES), list(POLICIES.values()))[0],
            max_buffer=3,
            priority=self.draw.randrange(3),
            jitter_ms=self.draw.choice((0, 0, 300)),
            catchup_mode=self.draw.choice(("latest", "all")),
            backoff_base_ms=200,
            backoff_cap_ms=1_000,
            max_attempts=20,
            **timing,
        )

    def _do(
        self, kind: str, plan: Plan, work: Action, *, spec: ScheduleSpec | None = None, is_announced: bool = True
    ) -> StoredSchedule | None:
        """None: it is known not to have happened."""
        actor = f"{self.name}-{next(self._numbers)}"
        made: tuple[StoredSchedule, Step] | None = None
        try:
            conn = self._connection()
            with tenant_transaction(conn, self.world.tenant_id):
                made = self._in_transaction(conn, kind, plan, lambda: work(conn, actor), spec or plan.spec)
        except (psycopg.Error, RetryableError):
            self._drop_connection()
            if made is None or not self._has_happened(actor):
                return None
        assert made is not None
        stored, step = made
        plan.steps.append(step)
        if is_announced:
            announce(self.world.index, [stored.entry])
        return stored

    def _in_transaction(
        self, conn: psycopg.Connection[Any], kind: str, plan: Plan, work: Callable[[], StoredSchedule], spec: ScheduleSpec
    ) -> tuple[StoredSchedule, Step]:
        locked = select(conn, _CLOCK, {"schedule_id": plan.schedule_id})
        began_at = select(conn, b"SELECT wsync.clock() AS at", {})[0]["at"]
        stored = work()
        left = select(conn, _CLOCK, {"schedule_id": stored.schedule_id})
        at = select(conn, b"SELECT wsync.clock() AS at", {})[0]["at"]
        following = stored.next_nominal_at
        is_firing = kind not in ("pause", "delete") and not (kind == "change" and plan.is_paused)
        step = Step(
            kind=kind,
            at=at,
            spec=spec if is_firing else None,
            clock=locked[0] if locked else None,
            following=following,
            left=left[0],
            began_at=began_at,
        )
        return stored, step

    def _has_happened(self, actor: str) -> bool:
        return bool(self.world.rows("SELECT 1 FROM wsync.run_event WHERE kind LIKE 'schedule.%%' AND detail ->> 'actor' = %s", actor))

    def _connection(self) -> psycopg.Connection[Any]:
        if self._conn is None or self._conn.closed:
            self._conn = self.world.api()
        return self._conn

    def _drop_connection(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


_CLOCK = b"SELECT * FROM wsync.schedule_clock WHERE schedule_id = %(schedule_id)s FOR UPDATE"


def change_rows(world: World, seed: str, stop: threading.Event) -> None:
    """The tables that are read change all the time; each version is written once."""
    draw = random.Random(seed)
    while not stop.wait(0.05):
        table = f"from_{draw.choice(world.syncs)}"
        ids = [draw.randint(1, 80) for _ in range(4)]
        try:
            with psycopg.connect(world.ends.admin_url, autocommit=True) as admin:
                admin.execute(f"DELETE FROM {table} WHERE id = %s AND random() < 0.1", (ids[0],))
                admin.execute(
                    f"INSERT INTO {table} (id) SELECT DISTINCT unnest(%s::bigint[]) ON CONFLICT (id) DO UPDATE SET v = nextval('version')",
                    (ids[1:],),
                )
        except psycopg.OperationalError:
            continue
