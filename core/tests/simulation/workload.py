"""Who asks for work, and who makes trouble: producers with the engine's own functions, and an operator of processes and stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from wsync_engine.index.layout import key
from wsync_engine.model.run import OverlapPolicy
from wsync_engine.scheduler import backfill as backfills
from wsync_engine.scheduler import schedules
from wsync_engine.scheduler.caps import announce_caps, set_cap
from wsync_engine.scheduler.schedules import announce
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.services import runs
from wsync_engine.state.database import tenant_transaction
from wsync_sdk import RetryableError, WsyncError

from .actors import SchedulerProcess, WorkerProcess
from .invariants import SPOILED
from .stores import SimulatedRedis

if TYPE_CHECKING:
    from .world import Sync, World

TRIES = 4


@dataclass(slots=True, kw_only=True)
class Known:
    """A schedule as its producer knows it."""

    sync: Sync
    spec: ScheduleSpec
    schedule_id: UUID


@dataclass(slots=True)
class Catalog:
    """What all producers know, for it is the same people."""

    schedules: list[Known] = field(default_factory=list)
    backfills: list[tuple[UUID, UUID]] = field(default_factory=list)
    created: int = 0


class Producer:
    """A client that does one thing after the other, and repeats what failed under the same name or key."""

    def __init__(self, world: World, catalog: Catalog, name: str, *, actions: int) -> None:
        self.world = world
        self.catalog = catalog
        self.process = world.new_process(name, "producer")
        self._left = actions
        self._number = 0
        self._name = name
        self.actor = world.baton.spawn(self.process, name, self._live)

    def _live(self) -> None:
        rng = self.world.rng
        self._index = self.world.new_index(SimulatedRedis(self.world, self.process, "producer"))
        choices: list[tuple[Callable[[], Callable[[Any], None] | None], int]] = [
            (self._create, 5),
            (self._change, 4),
            (self._pause, 2),
            (self._resume, 4),
            (self._delete, 1),
            (self._trigger, 6),
            (self._backfill, 2),
            (self._cancel_backfill, 1),
            (self._cancel_run, 3),
            (self._retry_run, 2),
            (self._decide, 2),
            (self._set_cap, 1),
        ]
        while self._left:
            self._left -= 1
            self._number += 1
            first = self._create if not self.catalog.schedules else None
            do = (first or rng.choices([x for x, _ in choices], [weight for _, weight in choices])[0])()
            if do is not None:
                self._try(do)
            self.world.baton.sleep(rng.uniform(0.01, 6))

    def _try(self, do: Callable[[Any], None]) -> None:
        for _ in range(TRIES):
            line = None
            try:
                line = self.world.connect(self.process, "producer")
                do(line)
                return
            except (psycopg.OperationalError, psycopg.errors.DeadlockDetected, RetryableError):
                self.world.baton.sleep(self.world.rng.uniform(0.1, 2))
            except (WsyncError, psycopg.errors.UniqueViolation):
                return  # refused: somebody was quicker
            finally:
                if line is not None:
                    line.close()

    # -- what it asks for; each is drawn first, so that a repetition asks for the same

    def _some(self) -> Known | None:
        """One of them; with bad luck one that is just being fired."""
        fired = set(self.world.ground.redis.zrange(key(0, "firing"), 0, -1))
        unlucky = [known for known in self.catalog.schedules if known.schedule_id.bytes in fired]
        some = unlucky or self.catalog.schedules
        return self.world.rng.choice(some) if some else None

    def _spec(self, name: str, sync: Sync) -> ScheduleSpec:
        rng = self.world.rng
        timing: dict[str, Any] = {"kind": "interval", "every_ms": rng.choice((4_000, 7_000, 12_000, 20_000))}
        if rng.random() < 0.2:
            timing = {"kind": "cron", "cron": rng.choice(("* * * * *", "*/2 * * * *")), "zone": "UTC"}
        elif rng.random() < 0.1:
            timing = {"kind": "once", "once_at": self.world.clock.now + timedelta(seconds=rng.randint(1, 30))}
        return ScheduleSpec(
            name=name,
            sync_id=sync.sync_id,
            priority=rng.choice((0, 1, 2)),
            jitter_ms=rng.choice((0, 0, 0, 3_000)),
            overlap=str(rng.choice(list(OverlapPolicy))),
            max_buffer=2,
            catchup_ms=rng.choice((3_600_000, 3_600_000, 10_000)),
            catchup_mode=rng.choice(("latest", "all")),
            max_runs=rng.choice((None, None, None, 3)),
            end_at=self.world.end_at,
            max_attempts=2,
            backoff_base_ms=1_000,
            backoff_cap_ms=4_000,
            stall_ms=12_000,
            attempt_timeout_ms=rng.choice((40_000, 40_000, 9_000)),
            pause_after_failures=rng.choice((None, None, 2)),
            **timing,
        )

    def _create(self) -> Callable[[Any], None]:
        self.catalog.created += 1
        sync = self.world.rng.choice(self.world.syncs)
        spec = self._spec(f"schedule {self.catalog.created}", sync)

        def do(line: Any) -> None:
            with tenant_transaction(line, sync.tenant_id):
                stored = schedules.create_schedule(line, sync.tenant_id, spec, actor=self._name)
            if all(x.schedule_id != stored.schedule_id for x in self.catalog.schedules):
                self.catalog.schedules.append(Known(sync=sync, spec=spec, schedule_id=stored.schedule_id))
            announce(self._index, [stored.entry])

        return do

    def _write(self, known: Known, function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[Any], None]:
        def do(line: Any) -> None:
            self.process.writes_to = known.schedule_id
            with tenant_transaction(line, known.sync.tenant_id):
                stored = function(line, known.sync.tenant_id, known.schedule_id, *arguments, actor=self._name, **options)
            announce(self._index, [stored.entry])

        return do

    def _change(self) -> Callable[[Any], None] | None:
        known = self._some()
        if known is None:
            return None
        new = self._spec(known.spec.name, known.sync)
        if self.world.rng.random() < 0.3:  # nothing that says when
            new = replace(known.spec, priority=new.priority, overlap=new.overlap)
        known.spec = new
        return self._write(known, schedules.change_schedule, new)

    def _pause(self) -> Callable[[Any], None] | None:
        known = self._some()
        return None if known is None else self._write(known, schedules.pause_schedule, note="pause")

    def _resume(self) -> Callable[[Any], None] | None:
        known = self._some()
        return None if known is None else self._write(known, schedules.resume_schedule)

    def _delete(self) -> Callable[[Any], None] | None:
        known = self._some()
        return None if known is None else self._write(known, schedules.delete_schedule)

    def _trigger(self) -> Callable[[Any], None]:
        rng = self.world.rng
        known = self._some() if rng.random() < 0.5 else None
        sync = known.sync if known is not None else rng.choice(self.world.syncs)
        options = {
            "sync_id": sync.sync_id,
            "schedule_id": known.schedule_id if known is not None else None,
            "idem_key": f"{self._name} {self._number}",
            "dry_run": rng.random() < 0.15,
            "overlap": rng.choice((None, *OverlapPolicy)),
            "priority": rng.choice((0, 1, 2)),
        }

        def do(line: Any) -> None:
            with tenant_transaction(line, sync.tenant_id):
                triggered = schedules.trigger_run(line, sync.tenant_id, actor=self._name, **options)
            run, interrupted = triggered.run, triggered.interrupted
            announce(self._index, runs=[] if run is None else [run], interrupted=[] if interrupted is None else [interrupted])

        return do

    def _backfill(self) -> Callable[[Any], None] | None:
        known = self._some()
        if known is None:
            return None
        to_at = self.world.clock.now
        options = {
            "from_at": to_at - timedelta(seconds=self.world.rng.choice((10, 30, 120))),
            "to_at": to_at,
            "max_open": self.world.rng.choice((1, 2)),
            "overlap": self.world.rng.choice(list(OverlapPolicy)),
        }

        def do(line: Any) -> None:
            with tenant_transaction(line, known.sync.tenant_id):
                stored = backfills.create_backfill(line, known.sync.tenant_id, known.schedule_id, actor=self._name, **options)
            self.catalog.backfills.append((known.sync.tenant_id, stored.backfill_id))
            announce(self._index, [stored.entry], stored.runs, stored.interrupted)

        return do

    def _cancel_backfill(self) -> Callable[[Any], None] | None:
        if not self.catalog.backfills:
            return None
        tenant_id, backfill_id = self.world.rng.choice(self.catalog.backfills)
        with_open = self.world.rng.random() < 0.5

        def do(line: Any) -> None:
            with tenant_transaction(line, tenant_id):
                stored = backfills.cancel_backfill(line, tenant_id, backfill_id, actor=self._name, with_open=with_open)
            announce(self._index, [stored.entry], stored.runs, stored.interrupted)

        return do

    def _run_in(self, *states: str) -> tuple[Any, UUID] | None:
        """One of the runs that a list would show."""
        query = "SELECT tenant_id, run_id FROM wsync.run WHERE state::text = ANY(%s) ORDER BY run_id"
        found = self.world.ground.observer.execute(query, [list(states)]).fetchall()
        row = self.world.rng.choice(found) if found else None
        return None if row is None else (row["tenant_id"], row["run_id"])

    def _cancel_run(self) -> Callable[[Any], None] | None:
        found = self._run_in("running", "running", "queued", "buffered", "blocked")
        if found is None:
            return None

        def do(line: Any) -> None:
            runs.cancel_run(line, *found, reason="not needed", actor=self._name, index=self._index)

        return do

    def _retry_run(self) -> Callable[[Any], None] | None:
        found = self._run_in("queued", "failed", "cancelled")
        if found is None:
            return None

        def do(line: Any) -> None:
            runs.retry_run(line, *found, actor=self._name, index=self._index)

        return do

    def _decide(self) -> Callable[[Any], None] | None:
        found = self._run_in("blocked")
        if found is None:
            return None
        decide = self.world.rng.choice((runs.approve_run, runs.discard_run))

        def do(line: Any) -> None:
            decide(line, *found, actor=self._name, index=self._index)

        return do

    def _set_cap(self) -> Callable[[Any], None]:
        sync = self.world.rng.choice(self.world.syncs)
        most = self.world.rng.choice((1, 2, 3))

        def do(line: Any) -> None:
            with tenant_transaction(line, sync.tenant_id):
                cap = set_cap(line, sync.tenant_id, "T", sync.tenant_id, max_running=most, actor=self._name)
            announce_caps(self._index, [cap])

        return do


class Operator:
    """Starts what died again, and makes the trouble that lies at no crash point."""

    def __init__(self, world: World, *, schedulers: int, workers: int, troubles: list[tuple[int, str]]) -> None:
        self.world = world
        self._numbers = {"scheduler": 0, "worker": 0}
        self._wanted = {"scheduler": schedulers, "worker": workers}
        self.running: list[SchedulerProcess | WorkerProcess] = []
        self._slots = world.rng.choice((1, 2, 2))
        self.copy: list[tuple[bytes, int, bytes]] = []
        for kind, count in self._wanted.items():
            for _ in range(count):
                self._start(kind)
        for at_ms, trouble in troubles:
            world.baton.at(at_ms, lambda trouble=trouble: self._make(trouble))  # type: ignore[misc]
        self._look()

    def _start(self, kind: str) -> None:
        self._numbers[kind] += 1
        name = f"{kind}{self._numbers[kind]}"
        process = SchedulerProcess(self.world, name) if kind == "scheduler" else WorkerProcess(self.world, name, slots=self._slots)
        self.running.append(process)

    def _look(self) -> None:
        """As a supervisor of processes does, every few seconds."""
        for dead in [x for x in self.running if x.process.is_dead]:
            self.running.remove(dead)
            self._start(dead.process.kind)
        self.world.baton.at(self.world.clock.now_ms + self.world.rng.randint(1_000, 5_000), self._look)

    def _make(self, trouble: str) -> None:
        if self.world.faults.is_off:
            return
        self.world.trace("operator", trouble)
        getattr(self, f"_{trouble}")()

    def keep_one_of_each(self) -> None:
        """The others are killed: those that stay have to make up for it."""
        for kind in self._wanted:
            self._wanted[kind] = 1
            for surplus in [x for x in self.running if x.process.kind == kind][1:]:
                self.running.remove(surplus)
                self.world.baton.kill(surplus.process)

    def decide_all(self) -> None:
        """Somebody discards what waits for a decision."""
        found = self.world.ground.observer.execute(
            "SELECT tenant_id, run_id FROM wsync.run WHERE state = 'blocked' ORDER BY run_id"
        ).fetchall()
        process = self.world.new_process("person", "producer")

        def discard() -> None:
            index = self.world.new_index(SimulatedRedis(self.world, process, "producer"))
            for row in found:
                line = self.world.connect(process, "producer")
                runs.discard_run(line, row["tenant_id"], row["run_id"], actor="person", index=index)
                line.close()

        if found:
            self.world.baton.spawn(process, "person", discard)

    def _flush(self) -> None:
        self.world.faults.note("C29")
        self.world.ground.redis.flushdb()

    def _copy(self) -> None:
        """The state of a replica that is behind."""
        client = self.world.ground.redis
        self.copy = [(name, max(client.pttl(name), 0), client.dump(name)) for name in client.keys("*")]

    def _fail_over(self) -> None:
        self.world.faults.note("C30")
        client = self.world.ground.redis
        client.flushdb()
        for name, life_ms, dumped in self.copy:
            client.restore(name, life_ms, dumped)
        self.world.server_number += 1

    def _drain(self) -> None:
        workers = [x for x in self.running if isinstance(x, WorkerProcess) and not x.process.is_dead]
        if workers:
            self.world.rng.choice(workers).drain()

    def _kill(self) -> None:
        living = [x for x in self.running if not x.process.is_dead]
        if living:
            self.world.baton.kill(self.world.rng.choice(living).process)

    def _freeze(self) -> None:
        living = [x for x in self.running if not x.process.is_dead]
        if living:
            self.world.freeze(self.world.rng.choice(living).process, self.world.rng.randint(5_000, 48_000))

    def _step(self) -> None:
        """The clock of the index is set, forward or back."""
        self.world.redis_skew_ms = self.world.rng.choice((-1_500, 1_500))

    def _spoil(self) -> None:
        """A schedule's zone is removed from the database of zones. Nobody may wait here: who holds a row is an actor, and stands still meanwhile."""
        query = (
            f"UPDATE wsync.schedule SET zone = '{SPOILED}' WHERE schedule_id IN (SELECT schedule_id FROM wsync.schedule"
            " WHERE kind = 'cron' AND deleted_at IS NULL FOR UPDATE SKIP LOCKED) RETURNING schedule_id"
        )
        if self.world.ground.owner.execute(query).fetchall():
            self.world.faults.note("C15")
