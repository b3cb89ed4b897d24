"""One seed's world: real stores, cleared; its processes, its workload, its faults; and what is checked of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import redis
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from wsync_engine.index import scripts
from wsync_engine.index.due_index import INTERRUPT, Index
from wsync_engine.index.layout import key
from wsync_engine.index.shards import Shards
from wsync_engine.model.declaration import sync_spec_to_json
from wsync_engine.model.ids import ids_from, uuid7
from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.scheduler import loop
from wsync_sdk import RetryableError

from .actors import Call, Mailbox
from .baton import Actor, Baton, Killed, Process, State
from .clock import START, Clock
from .faults import Fault, Faults, Planned
from .stores import Effect, Line, Pool, SimulatedRedis, script_by_digest

if TYPE_CHECKING:
    from .invariants import Watch

loop._STOP_CHECK_S = loop.LONGEST_SLEEP_S  # how soon a scheduler sees that it shall stop; none is told to here
STALL_MS = (11_000, 48_000)
DELAYED_SHARE = 0.03
TELLS_INDEX = {"commit_fire", "renew", "release"}
"""What an actor does after a commit: until then, only it has seen what it committed."""
CHANGES = {"schedule_change", "schedule_pause", "schedule_delete"}
ENDS = {"run_finish", "run_cancel", "run_crashed", "run_finish_lost", "select_epoch_s_and_for_update"}
AUDIT = """
CREATE SCHEMA simulation;
CREATE TABLE simulation.log (
    seq bigserial PRIMARY KEY, tx bigint NOT NULL DEFAULT txid_current(), at timestamptz NOT NULL DEFAULT wsync.clock(),
    kind text NOT NULL, old jsonb, new jsonb);
CREATE FUNCTION simulation.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO simulation.log (kind, old, new)
    VALUES (TG_TABLE_NAME, CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END, to_jsonb(NEW));
    RETURN NULL;
END $$;
CREATE TRIGGER noted AFTER INSERT ON wsync.run FOR EACH ROW EXECUTE FUNCTION simulation.note();
CREATE TRIGGER noted_change AFTER UPDATE ON wsync.run FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.epoch IS DISTINCT FROM NEW.epoch OR OLD.ready_at IS DISTINCT FROM NEW.ready_at)
    EXECUTE FUNCTION simulation.note();
CREATE TRIGGER noted AFTER INSERT OR UPDATE ON wsync.schedule FOR EACH ROW EXECUTE FUNCTION simulation.note();
CREATE TRIGGER noted AFTER INSERT OR UPDATE ON wsync.schedule_clock FOR EACH ROW EXECUTE FUNCTION simulation.note();
CREATE TRIGGER noted AFTER INSERT ON wsync.ack FOR EACH ROW EXECUTE FUNCTION simulation.note();
CREATE TRIGGER noted AFTER INSERT ON wsync.run_event FOR EACH ROW EXECUTE FUNCTION simulation.note();
"""
"""Every change of what the invariants speak of, in the order in which row locks let it happen."""
TABLES = (
    "simulation.log", "wsync.run_event", "wsync.ack", "wsync.chunk", "wsync.rejection", "wsync.split", "wsync.run", "wsync.backfill",
    "wsync.resource_cap", "wsync.breaker", "wsync.schedule_spec", "wsync.schedule_clock", "wsync.schedule", "wsync.sync", "wsync.connection", "wsync.worker",
    "wsync.tenant",
)  # fmt: skip


class Ground:
    """The stores that all seeds of a session share, one after the other."""

    def __init__(self, owner_url: str, engine_url: str, api_url: str, redis_url: str) -> None:
        self.engine_url = engine_url
        self.api_url = api_url
        self.pool = Pool()
        self.redis_pool = redis.ConnectionPool.from_url(redis_url)
        self.redis = redis.Redis(connection_pool=self.redis_pool)
        self.redis_connection = self.redis_pool.get_connection()
        self.owner = psycopg.connect(owner_url, autocommit=True)
        self.observer = psycopg.connect(owner_url, autocommit=True, row_factory=dict_row)
        self.pubsub = self.redis.pubsub()
        self.pubsub.psubscribe("ws2:*")
        self.script_by_digest: dict[str, str] = {}
        self.load_scripts()
        if not self.owner.execute("SELECT to_regclass('simulation.log')").fetchone()[0]:  # type: ignore[index]
            self.owner.execute(AUDIT)

    def load_scripts(self) -> None:
        """All of them, so that no seed depends on which seeds were played before it."""
        self.script_by_digest = script_by_digest()
        for name in self.script_by_digest.values():
            self.redis.script_load(scripts._source(name)[0])

    def clear(self) -> None:
        self.owner.execute("; ".join(f"DELETE FROM {table}" for table in TABLES))  # type: ignore[arg-type]
        self.redis.flushdb()
        self.pubsub.ping()
        while True:
            message = self.pubsub.get_message(timeout=5)
            if message is not None and message["type"] == "pong":
                return

    def close(self) -> None:
        self.pool.close()
        self.pubsub.close()
        self.redis_pool.disconnect()
        self.owner.close()
        self.observer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    tenant_id: UUID
    sync_id: UUID


class World:
    """What exists while a seed is played."""

    def __init__(self, ground: Ground, seed: int, plan: Callable[[random.Random], list[Planned]]) -> None:
        ground.clear()
        self.seed = seed
        self.rng = random.Random(seed)
        self.ground = ground
        self.pool = ground.pool
        self.redis_pool = ground.redis_pool
        self.script_by_digest = ground.script_by_digest
        self.clock = Clock()
        self.server_number = 1
        self.redis_skew_ms = self.rng.choice((0, 0, 0, -1_500, 1_500))
        self.mailboxes: list[Mailbox] = []
        self.lines: list[Line] = []
        self.calls: list[Call] = []
        self.failures: Counter[UUID] = Counter()
        """Of each run: how often an attempt of it may have been used up."""
        self.traced: list[str] = []
        self.faults = Faults(self, plan(self.rng))
        self.message_loss = self.rng.choice((0.0, 0.0, 0.3))
        self.baton = Baton(self.rng, self.clock, is_blocked=self._is_blocked, cancel=self._cancel, trace=self.trace)
        self.baton.on_blocked = self._note_blocked
        self.claims: dict[Process, set[bytes]] = {}
        self.after_effect: Callable[[Effect], None] = lambda effect: None
        self.watch: Watch
        self.end_at = START
        self.has_written = False
        self.has_told_index = False
        self.load_lock_ends_ms = 0
        self._loser: Line | None = None
        self._ids = ids_from(lambda: self.clock.epoch_ms, self.rng.randbytes)
        self._ids.__enter__()
        self.tenants = [uuid7() for _ in range(self.rng.choice((1, 2)))]
        self.syncs = [self._new_sync(tenant_id) for tenant_id in self.tenants for _ in range(2)]

    # -- making things

    def _new_sync(self, tenant_id: UUID) -> Sync:
        owner = self.ground.owner
        owner.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING", [tenant_id, str(tenant_id)])
        connection_id, sync_id = uuid7(), uuid7()
        owner.execute(
            "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin) VALUES (%s, %s, %s, 'test')",
            [connection_id, tenant_id, str(connection_id)],
        )
        spec = SyncSpec(name="s", source="w", sink="s", query="SELECT", key=("id",), stream="people", mode=Mode.UPSERT)
        owner.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [sync_id, tenant_id, str(sync_id), connection_id, connection_id, Jsonb(sync_spec_to_json(spec)), sync_id],
        )
        return Sync(tenant_id=tenant_id, sync_id=sync_id)

    def new_process(self, name: str, kind: str, *, parent: Process | None = None) -> Process:
        offset_s = parent.offset_s if parent else self.rng.uniform(0, 1_000)
        rate = parent.rate if parent else self.rng.choice((1.0, 1.0, 0.996, 1.004))
        return Process(name=name, kind=kind, clock=self.clock, offset_s=offset_s, rate=rate, parent=parent)

    def new_index(self, client: SimulatedRedis) -> Index:
        return Index(client, clock=lambda: self.clock.epoch_ms + self.redis_skew_ms)

    def new_shards(self, client: Any) -> Shards:
        return Shards(client, clock=lambda: self.clock.epoch_ms + self.redis_skew_ms)

    def connect(self, process: Process, role: str) -> Any:
        """As `state.database.connect`."""
        effect = Effect(process=process, role=role, store="postgres", name="connect")
        url = self.ground.api_url if role in {"child", "producer"} else self.ground.engine_url

        def lost() -> RetryableError:
            return RetryableError("the state store can't be reached", next_step="start Postgres", retry_after_s=None)

        line = self.perform(effect, lambda: Line(self, process, role, url), lose=lost)
        self.lines.append(line)
        return line

    def ms_of(self, at: datetime) -> int:
        """As the clock counts."""
        return round((at - START).total_seconds() * 1_000)

    def key_of_run(self, run_id: UUID) -> tuple[UUID, bool]:
        """The run's overlap key, and whether it is exclusive."""
        row = self.ground.observer.execute("SELECT overlap_key, exclusive FROM wsync.run WHERE run_id = %s", [run_id]).fetchone()
        assert row is not None
        return row["overlap_key"], row["exclusive"]

    # -- effects

    def perform(self, effect: Effect, do: Callable[[], Any], *, lose: Callable[[], Exception], line: Line | None = None) -> Any:
        """Whatever a process does to the world outside goes through here."""
        self.baton.point(str(effect))
        if not self.faults.is_off and self.baton.only is None and self.rng.random() < DELAYED_SHARE:
            self.baton.sleep(self.rng.choice((0.01, 0.2, 1.5)))
        if effect.process.is_cut(effect.store):
            raise lose()
        fault = self.faults.before(effect)
        if fault is not None:
            self._suffer(fault, effect, lose, line)
        try:
            effect.result = do()
        except Exception as exc:
            self.trace(effect.process.name, f"{effect} failed: {str(exc)[:200]}")
            raise
        self.has_written |= effect.store == "postgres"
        self.has_told_index |= effect.store == "redis"
        self._note_crossings(effect)
        self.after_effect(effect)
        fault = self.faults.after(effect)
        if fault is not None:
            self._suffer(fault, effect, lose, line)
        if self._loser is not None and effect.name in TELLS_INDEX and effect.process is self._loser.process:
            self._crash_postgres()
        return effect.result

    def _suffer(self, fault: Fault, effect: Effect, lose: Callable[[], Exception], line: Line | None) -> None:
        process = effect.process
        match fault:
            case Fault.KILL:
                self.baton.kill(process.parent or process)
                raise Killed
            case Fault.KILL_CHILD:
                self.baton.kill(process)
                raise Killed
            case Fault.LOST | Fault.UNKNOWN:
                raise lose()
            case Fault.STALL:
                self.freeze(process.parent or process, self.rng.randint(*STALL_MS), line)
                self.baton.point("goes on")
            case Fault.CUT | Fault.CUT_ALL:
                until_ms = self.clock.now_ms + self.rng.randint(*STALL_MS)
                process = process.parent or process
                process.cut_until_ms["postgres"] = until_ms
                if fault is Fault.CUT_ALL:
                    process.cut_until_ms["redis"] = until_ms
                raise lose()

    def freeze(self, process: Process, milliseconds: int, line: Line | None = None) -> None:
        process.frozen_until_ms = self.clock.now_ms + milliseconds
        if line is not None:
            line.freeze(milliseconds)

    @property
    def is_losing(self) -> bool:
        """A commit was lost, and Postgres has not crashed yet."""
        return self._loser is not None

    def lose_commit(self, line: Line) -> None:
        """Its actor alone moves until the index was told; then Postgres crashes."""
        self._loser = line
        self.baton.only = self.baton.current()

    def _crash_postgres(self) -> None:
        self._loser = self.baton.only = None
        for line in self.lines:
            line.break_off()

    def _note_crossings(self, effect: Effect) -> None:
        """What no fault brings about, but two processes that meet."""
        if effect.role == "producer" and effect.name == "commit" and not CHANGES.isdisjoint(effect.statements):
            schedule_id = effect.process.writes_to
            if schedule_id is not None and self.ground.redis.zscore(key(0, "firing"), schedule_id.bytes) is not None:
                self.faults.note("C5")
        if effect.name == "claim_due" and len(effect.result) > 2:
            claimed = {member[-16:] for member in effect.result[2::2]}
            others = [held for process, held in self.claims.items() if process is not effect.process and not process.is_dead]
            if any(not claimed.isdisjoint(held) for held in others):
                self.faults.note("C14")
            self.claims[effect.process] = claimed
        elif effect.name == "commit_fire":
            self.claims.pop(effect.process, None)

    def _note_blocked(self, actor: Actor) -> None:
        """An end of a run and somebody who may wait for that run meet at its row."""
        pids = [actor.backend_pid]
        row = self.ground.owner.execute("SELECT pg_blocking_pids(%s)", [actor.backend_pid]).fetchone()
        pids += row[0] if row is not None else []
        names = [set(line.statements) for line in self.lines if not line.is_lost and line.real.info.backend_pid in pids]
        if any("run_open_lock" in x for x in names) and any(not ENDS.isdisjoint(x) for x in names):
            self.faults.note("C34")

    def make_peace(self) -> int:
        """Nothing new fails from here on. Returns when the last one is back that stands still or is cut off: leases must be outlived."""
        self.faults.is_off = True
        self.message_loss = 0.0
        processes = {x for actor in self.baton.actors for x in (actor.process, actor.process.parent) if x is not None}
        ends = [at_ms for x in processes if not x.is_dead for at_ms in (x.frozen_until_ms, *x.cut_until_ms.values())]
        return max([self.clock.now_ms, *ends])

    # -- time and messages

    def run_until(self, at_ms: int) -> None:
        """Everybody moves, until that time."""
        while True:
            self.baton.go()
            if self.has_told_index:
                self.has_told_index = False
                self.deliver_messages()
            if (
                self.has_written
                and not any(line.depth for line in self.lines)
                and not any(actor.state is State.BLOCKED for actor in self.baton.actors)
            ):
                self.has_written = False
                self.watch.read()
            if any(self.baton.is_ready(actor) for actor in self.baton.actors):
                continue
            if not self.baton.pass_time(at_ms):
                return

    def deliver_messages(self) -> None:
        """What was published since the last time; some of it is lost, while faults happen."""
        self.ground.pubsub.ping()
        while True:
            message = self.ground.pubsub.get_message(timeout=5)
            assert message is not None
            if message["type"] == "pong":
                return
            if message["type"] == "pmessage":
                self._deliver(message["channel"].decode(), message["data"].decode())

    def _deliver(self, channel: str, text: str) -> None:
        if not self.faults.is_off and self.rng.random() < self.message_loss:
            self.faults.note("C32" if text == INTERRUPT else "C11")
            return
        for mailbox in list(self.mailboxes):
            if mailbox.channel == channel and not mailbox.process.is_dead:
                mailbox.deliver(text)

    # -- what came of it

    def trace(self, who: str, what: str) -> None:
        self.traced.append(f"{self.clock.now_s:9.3f}  {who:<14} {what}")

    # -- inside

    def _is_blocked(self, pid: int) -> bool:
        row = self.ground.owner.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid]).fetchone()
        return bool(row and row[0])

    def _cancel(self, pid: int) -> None:
        self.ground.owner.execute("SELECT pg_cancel_backend(%s)", [pid])

    def close(self) -> None:
        self.baton.finish()
        for line in self.lines:
            line.break_off()
        self._ids.__exit__(None, None, None)
