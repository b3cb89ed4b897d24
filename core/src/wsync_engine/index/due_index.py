"""The index of one shard: one method per script. Every call may be repeated; a call of another incarnation changes nothing.

Nothing may be decided from here alone: what is claimed is confirmed by a conditional statement in Postgres.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import UUID

from redis.exceptions import RedisClusterException, RedisError, ResponseError

from wsync_engine.index.connection import Client, connect, connections_made, execute, memory_policies, node_of, run_id_of
from wsync_engine.index.entries import Cap, Claimed, DefaultCaps, Difference, DueEntry, ReadyRun, due_member, ms_of
from wsync_engine.index.layout import OLD_KEYS, RUN_KEYS, WAKE_SCHEDULERS, key, old_key, shard_of, worker_channel
from wsync_engine.index.scripts import run_script
from wsync_sdk.errors import ConfigError, RetryableError, StateError

__all__ = ["BATCH", "FIRE_LEASE_MS", "HOLD_LEASE_MS", "INTERRUPT", "WAKE_SCHEDULERS", "Dispatched", "Index", "RebuildNeeded", "connect"]

BATCH = 500
"""Schedules per script call, so that no script holds the server for long."""
RUN_BATCH = 100
"""Runs per script call: each touches a tenant and three resources."""
FIRE_LEASE_MS = 10_000
HOLD_LEASE_MS = 10_000
RUN_LEASE_MS = 30_000
LOAD_LOCK_MS = 20_000
INTERRUPT = "beat"
"""Message to a worker: a heartbeat now, as one of its runs has to end."""
PATIENCE_MS = 300_000
"""A run that is refused for longer keeps slots free for itself."""
MOST_RUNS = 64
MOST_CALLS = 64
_EXPIRED = 100
_MOST_QUEUES = 16
_OLD_LAYOUT_LIFE_S = 86_400
NO_CAPS = DefaultCaps()
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """Ready members, and the virtual time of the queues they were asked from, in slot milliseconds over weight."""

    members: tuple[bytes, ...]
    virtual_ms: int


class RebuildNeeded(StateError):
    """The index was flushed, restarted, or is another server's: load it from Postgres, then call again."""


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except ResponseError as exc:
        if str(exc).startswith("REBUILD"):
            raise RebuildNeeded(f"{doing}: the index must be rebuilt", next_step="nothing: a scheduler does it at once") from exc
        if str(exc).startswith("FILLING"):
            raise RetryableError(f"{doing}: the index is being loaded", next_step="wait a second", retry_after_s=0.2) from exc
        raise RetryableError(f"{doing}: the index refused", next_step="look at the log of Redis") from exc
    except (RedisError, RedisClusterException) as exc:
        raise RetryableError(f"{doing}: the index can't be reached", next_step="start Redis, or correct WSYNC_REDIS_URL") from exc


class Index:
    """One shard's due schedules and ready runs. Any thread.

    :param client: from `connect`; replies undecoded. :param shards: how many there are.
    :param clock: milliseconds since 1970 for tests; None: the server's own time decides.
    :param fire_lease_ms: how long a claimed schedule is left to its scheduler.
    :param default_caps: the same in all processes. :param patience_ms: a run that is refused for longer keeps slots free for itself.
    """

    def __init__(
        self,
        client: Client,
        *,
        shard: int = 0,
        shards: int = 1,
        clock: Callable[[], int] | None = None,
        fire_lease_ms: int = FIRE_LEASE_MS,
        default_caps: DefaultCaps = NO_CAPS,
        patience_ms: int = PATIENCE_MS,
    ) -> None:
        self.shard = shard
        self._shards = shards
        self._node = ""
        self._client = client
        self._clock = clock
        self._fire_lease_ms = fire_lease_ms
        self._default_caps = default_caps.argument
        self._patience_ms = patience_ms
        self._incarnation = ""
        self._connections = 0
        self._is_loading = False
        self._turn = 0

    # -- who is this index?

    def check_server(self) -> None:
        """Refuse a server that would silently drop entries when its memory is full.

        :raises ConfigError: `maxmemory-policy` is not `noeviction`.
        """
        with _translated("check index"):
            refused = sorted(memory_policies(self._client) - {"noeviction"})
        if refused:
            raise ConfigError(f"the index would lose entries: maxmemory-policy is `{refused[0]}`", next_step="set it to `noeviction`")

    def time_s(self) -> float:
        """The server's clock, seconds since 1970."""
        with _translated("read the index's clock"):
            seconds, micros = execute(self._client, self._key("inc"), "TIME")
        return float(seconds) + float(micros) / 1e6

    def has(self, tenant_id: UUID) -> bool:
        """Whether the tenant's entries live in this shard."""
        return shard_of(tenant_id, self._shards) == self.shard

    def attach(self) -> None:
        """Learn which incarnation this is; done by itself before the first call and after a lost connection.

        :raises RebuildNeeded: there is none, or it was made by another server process.
        """
        with _translated("attach index"):
            self._node = self._node_name()
            stored = self._client.get(self._key("inc"))
            self._connections = connections_made(self._client)
            server = self._server_run_id()
        found = stored.decode("ascii") if isinstance(stored, bytes) else ""
        incarnation, _, _phase = found.rpartition(":")
        if incarnation.rpartition(":")[2] != server or not incarnation:
            self._incarnation = ""
            raise RebuildNeeded("the index must be rebuilt", next_step="nothing: a scheduler does it at once")
        self._incarnation = incarnation

    def detach(self) -> None:
        """Forget the incarnation, so that the next call compares it with the server's."""
        self._incarnation = ""

    def begin_load(self) -> bool:
        """Start a new incarnation in phase loading, if no one else is at it; True: we load. Nothing is flushed: entries merge by rev.

        Keys of the older layout end a day later; an older process that still needs them then loads them anew.
        """
        with _translated("load index"):
            for name in OLD_KEYS:
                self._client.expire(old_key(self.shard, name), _OLD_LAYOUT_LIFE_S, nx=True)
            self._node = self._node_name()
            if not self._client.set(self._key("load"), b"1", nx=True, px=LOAD_LOCK_MS):
                return False
            self._connections = connections_made(self._client)
            self._incarnation = f"{uuid.uuid4().hex}:{self._server_run_id()}"
            self._client.set(self._key("inc"), f"{self._incarnation}:loading")
            self._is_loading = True
        return True

    def is_abandoned(self) -> bool:
        """True when a loader died half way: no one may dispatch, and no one is at it. Load again."""
        with _translated("check index"):
            stored = self._client.get(self._key("inc"))
            is_loading = isinstance(stored, bytes) and stored.endswith(b":loading")
            return is_loading and not self._client.exists(self._key("load"))

    def continue_load(self) -> None:
        """Keep the loader's lock; called after each page."""
        with _translated("load index"):
            self._client.pexpire(self._key("load"), LOAD_LOCK_MS)

    def allow_dispatch(self) -> None:
        """Holds and queued runs are loaded: runs may be dispatched from now on."""
        with _translated("load index"):
            self._client.set(self._key("inc"), f"{self._incarnation}:ready")

    def end_load(self) -> None:
        """Give back the loader's lock."""
        self._is_loading = False
        with _translated("load index"):
            self._client.delete(self._key("load"))

    # -- schedules

    def upsert_due(self, entries: Sequence[DueEntry]) -> int:
        """Store each schedule's due time if its rev is newer; returns how many were. A new earlier head wakes the schedulers."""
        accepted = 0
        for page in _pages(entries):
            accepted += int(self._run("upsert_due", ["due", "rev", "firing"], _flat(entry.arguments() for entry in page)))
        return accepted

    def claim_due(self, n: int) -> Claimed:
        """Take up to `n` due schedules for the fire lease; those whose scheduler went silent come first."""
        reply = self._run("claim_due", ["due", "rev", "firing", "delay", "lease"], [n, self._fire_lease_ms])
        wake_ms = int(reply[1])
        pairs = zip(reply[2::2], reply[3::2], strict=True)
        found = [(UUID(bytes=member[-16:]), int(rev), len(member) > 16) for member, rev in pairs]
        return Claimed(
            now_ms=int(reply[0]),
            next_wake_ms=None if wake_ms < 0 else wake_ms,
            entries=tuple((due_id, rev) for due_id, rev, is_backfill in found if not is_backfill),
            backfills=tuple((due_id, rev) for due_id, rev, is_backfill in found if is_backfill),
        )

    def commit_fire(self, entries: Sequence[DueEntry], runs: Sequence[ReadyRun]) -> int:
        """After a fire's transaction: next due times, and its runs into the queues; returns how many runs are new there. Wakes workers.

        A run that is ready later is delayed until then; one that was delayed and is given as ready goes into its queue.
        """
        entry_pages, run_pages = _pages(entries) or [[]], _pages(runs, RUN_BATCH) or [[]]
        pushed = 0
        for at in range(max(len(entry_pages), len(run_pages))):
            due = entry_pages[at] if at < len(entry_pages) else []
            ready = run_pages[at] if at < len(run_pages) else []
            members = _flat((run.member, ms_of(run.ready_at)) for run in ready)
            arguments = [len(due), *_flat(entry.arguments() for entry in due), *members]
            pushed += int(self._run_runs("commit_fire", arguments, extra=("due", "rev", "firing")))
        return pushed

    def check(self, revs: Sequence[tuple[UUID, int]], *, is_backfill: bool = False) -> list[Difference]:
        """Compare schedules, or backfills, that Postgres says are due soon; what agrees is left out. Changes nothing."""
        found = []
        for page in _pages(revs):
            reply = self._run(
                "check", ["due", "rev", "firing"], _flat((due_member(due_id, is_backfill=is_backfill), rev) for due_id, rev in page)
            )
            for at in range(0, len(reply), 3):
                kind = reply[at + 1].decode("ascii")
                found.append(Difference(schedule_id=UUID(bytes=reply[at][-16:]), kind=kind, stored_rev=int(reply[at + 2])))
        return found

    # -- runs

    def promote(self, n: int = BATCH) -> tuple[int, int | None]:
        """Delayed runs that are ready now into the queues; returns (moved, when the next is ready, in ms)."""
        moved, next_ms = self._run_runs("promote", [n])
        return int(moved), None if int(next_ms) < 0 else int(next_ms)

    def dispatch(self, worker_id: UUID, free_slots: int, *, queues: Sequence[int] = (0,)) -> list[tuple[UUID, UUID]]:
        """(tenant, run) of up to 64 runs for this worker, held for 10 s: claim them in Postgres.

        Queues take turns. In each, classes share 8 : 4 : 1, tenants share by weight what their runs take of slots and time, and of
        a tenant the first due goes first. A run that meets a full cap waits beside, and holds up no other.
        With slots left over the worker is entered as idle and is woken on `worker_channel` when there is work.

        :raises RetryableError: the index is being loaded.
        """
        return [ReadyRun.run_of(member) for member in self.dispatch_members(worker_id, free_slots, queues=queues).members]

    def dispatch_members(self, worker_id: UUID, free_slots: int, *, queues: Sequence[int]) -> Dispatched:
        """As `dispatch`, with the virtual time of the queues, by which shards are compared."""
        members: list[bytes] = []
        free = min(free_slots, MOST_RUNS)
        virtual_ms = 0
        for _ in range(MOST_CALLS):  # one call examines so many runs only, so that it does not hold up the server
            first = self._turn % len(queues)
            names = [f"{queue:x}" for queue in (*queues[first:], *queues[:first])]
            reply = self._run_runs("dispatch", [worker_id.hex, free - len(members), HOLD_LEASE_MS, self._patience_ms, *names])
            members += reply[2:]
            self._turn += max(1, len(reply) - 2)
            virtual_ms = int(reply[1])
            if reply[0] == b"0":
                break
        return Dispatched(members=tuple(members), virtual_ms=virtual_ms)

    def sizes(self) -> tuple[int, dict[int, int]]:
        """(schedules that are due some time, runs in line by priority), for gauges."""
        with _translated("measure the index"), self._client.pipeline(transaction=False) as pipeline:
            pipeline.zcard(self._key("due"))
            for priority in (0, 1, 2):
                for queue in range(_MOST_QUEUES):
                    pipeline.zlexcount(self._key("rq"), f"[{queue:x}{priority}|", f"({queue:x}{priority}|~")
            due, *counts = pipeline.execute()
        return due, {priority: sum(counts[priority * _MOST_QUEUES : (priority + 1) * _MOST_QUEUES]) for priority in (0, 1, 2)}

    def first_waiting(self, queues: Sequence[int]) -> int | None:
        """The priority of the most urgent run that is in line in one of the queues; None: there is none. Changes nothing."""
        for priority in (2, 1, 0):
            for queue in queues:
                prefix = f"{queue:x}{priority}|"
                with _translated("look into the queues"):
                    if self._client.zlexcount(self._key("act"), f"[{prefix}", f"({prefix}~"):
                        return priority
        return None

    def renew(self, runs: Sequence[UUID], *, lease_ms: int = RUN_LEASE_MS) -> list[UUID]:
        """Hold on to runs that we claimed; returns those the index does not know as held."""
        found = []
        for page in _pages(runs, RUN_BATCH):
            found += [UUID(hex=run.decode("ascii")) for run in self._run_runs("renew", [lease_ms, *(run.hex for run in page)])]
        return found

    def release(self, runs: Sequence[UUID]) -> int:
        """The runs ended: give back what they hold; returns how many held something. How long they held it is charged to their tenant
        and expected of their sync's next run."""
        return self._release("ended", runs)

    def refuse(self, runs: Sequence[UUID]) -> int:
        """Postgres did not let us have the runs: give back what they hold, at no charge."""
        return self._release("refused", runs)

    def expire(self, n: int = _EXPIRED) -> list[UUID]:
        """Put runs whose hold nobody renewed back into the queues; returns them."""
        return [UUID(hex=run.decode("ascii")) for run in self._run_runs("expire", [n])]

    def unheld(self, runs: Sequence[ReadyRun]) -> list[ReadyRun]:
        """Those of the runs that hold nothing here."""
        missing: list[ReadyRun] = []
        for page in _pages(runs, RUN_BATCH):
            with _translated("read holds"):
                found = cast(list[Any], self._client.hmget(self._key("held"), [run.run_id.hex for run in page]))
            missing += [run for run, held in zip(page, found, strict=True) if held is None]
        return missing

    def hold(self, runs: Sequence[ReadyRun], *, lease_ms: int = RUN_LEASE_MS) -> int:
        """Enter running runs as held, when the index is rebuilt and in each sweep; returns how many were not."""
        return sum(int(self._run_runs("hold", [lease_ms, *(run.member for run in page)])) for page in _pages(runs, RUN_BATCH))

    def set_caps(self, caps: Sequence[Cap]) -> dict[str, int]:
        """Store the caps that are newer than the stored ones; returns resource → version of those whose stored version is newer still.

        The same version of another cap, which Postgres gave twice because it lost commits, counts as the next one.
        """
        newer: dict[str, int] = {}
        for page in _pages(caps, RUN_BATCH):
            reply = self._run_runs("set_cap", _flat(cap.arguments() for cap in page))
            newer |= {reply[at].decode("ascii"): int(reply[at + 1]) for at in range(0, len(reply), 2)}
        return newer

    def limiting_breakers(self) -> dict[UUID, int]:
        """Credential → version of the breakers that are known here and are not closed."""
        found = {}
        with _translated("read the breakers"):
            for name, cap in self._client.hscan_iter(self._key("cap"), match="B*", count=1_000):
                most, _, version = bytes(cap).split(b"|")
                if int(most) <= 1:
                    found[UUID(hex=bytes(name)[1:].decode("ascii"))] = int(version)
        return found

    def interrupt(self, worker_ids: Sequence[UUID]) -> None:
        """Tell workers that a run of theirs has to end; they learn which from Postgres. A lost message costs a heartbeat's time."""
        with _translated("interrupt workers"):
            for worker_id in worker_ids:
                self._client.publish(self.worker_channel(worker_id), INTERRUPT)

    @staticmethod
    def worker_channel(worker_id: UUID) -> str:
        """The channel on which an idle worker is woken."""
        return worker_channel(worker_id)

    # -- inside

    def _key(self, name: str) -> str:
        return key(self.shard, name)

    def _server_run_id(self) -> str:
        return run_id_of(self._client, self._key("inc"))

    def _node_name(self) -> str:
        return node_of(self._client, self._key("inc"))

    def _release(self, how: str, runs: Sequence[UUID]) -> int:
        return sum(int(self._run_runs("release", [how, *(run.hex for run in page)])) for page in _pages(runs, RUN_BATCH))

    def _run_runs(self, script: str, arguments: Sequence[str | int | bytes], *, extra: Sequence[str] = ()) -> Any:
        return self._run(script, [*RUN_KEYS, *extra], [self._default_caps, *arguments])

    def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        if not self._incarnation or self._is_elsewhere():
            self.attach()
        try:
            return self._call(script, keys, arguments)
        except RebuildNeeded:
            if self._is_loading:  # what we load is ours to the end, or lost
                raise
        self.attach()  # it may have been rebuilt since we looked: then nobody has to wait for the next sweep
        return self._call(script, keys, arguments)

    def _is_elsewhere(self) -> bool:
        """Whether we may talk to another server than the one whose incarnation we learned: the shard moved, or the connection is a new one."""
        with _translated("find the shard"):
            return self._connections != connections_made(self._client) or self._node != self._node_name()

    def _call(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        clock = "" if self._clock is None else str(self._clock())
        names = [self._key(name) for name in ("inc", *keys)]
        try:
            with _translated(script):
                reply = run_script(self._client, script, names, [self._incarnation, clock, *arguments])
                if self._is_elsewhere():
                    self.detach()  # is the index complete there?
                return reply
        except (RebuildNeeded, RetryableError):
            self.detach()  # after a lost connection the server may be another one; asking again costs two short commands
            raise


def _pages(items: Sequence[T], size: int = BATCH) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _flat(rows: Iterable[Sequence[str | int | bytes]]) -> list[str | int | bytes]:
    return [value for row in rows for value in row]
