"""The index of one shard: one method per script. Every call may be repeated; a call of another incarnation changes nothing.

Nothing may be decided from here alone: what is claimed is confirmed by a conditional statement in Postgres.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from wsync_engine.index.entries import Claimed, Difference, DueEntry, ReadyRun, due_member, ms_of
from wsync_engine.index.scripts import run_script
from wsync_sdk.errors import ConfigError, RetryableError, StateError

__all__ = ["BATCH", "FIRE_LEASE_MS", "HOLD_LEASE_MS", "INTERRUPT", "WAKE_SCHEDULERS", "Index", "RebuildNeeded", "connect"]

BATCH = 500
"""Entries per script call, so that no script holds the server for long."""
FIRE_LEASE_MS = 10_000
HOLD_LEASE_MS = 10_000
RUN_LEASE_MS = 30_000
LOAD_LOCK_MS = 20_000
WAKE_SCHEDULERS = "ws:wake:sched"
INTERRUPT = "beat"
"""Message to a worker: a heartbeat now, as one of its runs has to end."""
_QUEUES = ("rq:h", "rq:m", "rq:l")
T = TypeVar("T")


class RebuildNeeded(StateError):
    """The index was flushed, restarted, or is another server's: load it from Postgres, then call again."""


def connect(url: str, *, timeout_s: float = 5.0) -> redis.Redis:
    """A client of the index; nothing is sent before the first call. `timeout_s` bounds each reply.

    :raises ConfigError: the address can't be read.
    """
    try:
        return redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, socket_keepalive=True, retry=Retry(NoBackoff(), 0)
        )
    except ValueError:  # its text may repeat the password
        raise ConfigError("the index's address can't be read", next_step="write WSYNC_REDIS_URL as redis://host:port/0") from None


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
    except RedisError as exc:
        raise RetryableError(f"{doing}: the index can't be reached", next_step="start Redis, or correct WSYNC_REDIS_URL") from exc


class Index:
    """One shard's due schedules and ready runs. Any thread.

    :param client: from `connect`; replies undecoded.
    :param clock: milliseconds since 1970 for tests; None: the server's own time decides.
    :param fire_lease_ms: how long a claimed schedule is left to its scheduler.
    """

    def __init__(
        self, client: redis.Redis, *, shard: int = 0, clock: Callable[[], int] | None = None, fire_lease_ms: int = FIRE_LEASE_MS
    ) -> None:
        self._client = client
        self._clock = clock
        self._fire_lease_ms = fire_lease_ms
        self._prefix = f"ws:{{{shard}}}:"
        self._incarnation = ""

    # -- who is this index?

    def check_server(self) -> None:
        """Refuse a server that would silently drop entries when its memory is full.

        :raises ConfigError: `maxmemory-policy` is not `noeviction`.
        """
        with _translated("check index"):
            policy = self._client.info("memory").get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise ConfigError(f"the index would lose entries: maxmemory-policy is `{policy}`", next_step="set it to `noeviction`")

    def time_s(self) -> float:
        """The server's clock, seconds since 1970."""
        with _translated("read the index's clock"):
            seconds, micros = self._client.time()
        return float(seconds) + float(micros) / 1e6

    def attach(self) -> None:
        """Learn which incarnation this is; done by itself before the first call and after a lost connection.

        :raises RebuildNeeded: there is none, or it was made by another server process.
        """
        with _translated("attach index"):
            stored = self._client.get(self._key("inc"))
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
        """Start a new incarnation in phase loading, if no one else is at it; True: we load. Nothing is flushed: entries merge by rev."""
        with _translated("load index"):
            if not self._client.set(self._key("load"), b"1", nx=True, px=LOAD_LOCK_MS):
                return False
            self._incarnation = f"{uuid.uuid4().hex}:{self._server_run_id()}"
            self._client.set(self._key("inc"), f"{self._incarnation}:loading")
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
        """After a fire's transaction: next due times, and its runs into the queues; returns how many runs were pushed. Wakes workers."""
        keys = ["due", "rev", "firing", "delay", "held", *_QUEUES, "idle"]
        entry_pages, run_pages = _pages(entries) or [[]], _pages(runs) or [[]]
        pushed = 0
        for at in range(max(len(entry_pages), len(run_pages))):
            due = entry_pages[at] if at < len(entry_pages) else []
            ready = run_pages[at] if at < len(run_pages) else []
            members = _flat((run.member, ms_of(run.ready_at)) for run in ready)
            pushed += int(self._run("commit_fire", keys, [len(due), *_flat(entry.arguments() for entry in due), *members]))
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
        moved, next_ms = self._run("promote", ["delay", *_QUEUES, "idle"], [n])
        return int(moved), None if int(next_ms) < 0 else int(next_ms)

    def dispatch(self, worker_id: UUID, free_slots: int) -> list[tuple[UUID, UUID]]:
        """(tenant, run) of up to 64 runs for this worker, classes sharing 8 : 4 : 1, first due first; held for 10 s: claim them in Postgres.

        With slots left over the worker is entered as idle and is woken on `worker_channel` when there is work.

        :raises RetryableError: the index is being loaded.
        """
        keys = [*_QUEUES, "held", "lease", "idle", "st"]
        reply = self._run("dispatch", keys, [worker_id.hex, min(free_slots, 64), HOLD_LEASE_MS])
        return [ReadyRun.run_of(member) for member in reply]

    def renew(self, runs: Sequence[UUID], *, lease_ms: int = RUN_LEASE_MS) -> list[UUID]:
        """Hold on to runs that we claimed; returns those the index does not know as held."""
        return self._of_runs("renew", ["held", "lease"], [lease_ms], runs)

    def release(self, runs: Sequence[UUID]) -> int:
        """The runs ended or were refused by Postgres: give back what they hold; returns how many held something."""
        return sum(int(self._run("release", ["held", "lease"], [run.hex for run in page])) for page in _pages(runs))

    def expire(self, n: int = BATCH) -> list[UUID]:
        """Put runs whose hold nobody renewed back into the queues; returns them."""
        return [UUID(hex=run.decode("ascii")) for run in self._run("expire", ["held", "lease", *_QUEUES, "idle"], [n])]

    def hold(self, runs: Sequence[ReadyRun], *, lease_ms: int = RUN_LEASE_MS) -> None:
        """Enter running runs as held, when the index is rebuilt."""
        for page in _pages(runs):
            self._run("hold", ["held", "lease", *_QUEUES], [lease_ms, *(run.member for run in page)])

    def interrupt(self, worker_ids: Sequence[UUID]) -> None:
        """Tell workers that a run of theirs has to end; they learn which from Postgres. A lost message costs a heartbeat's time."""
        with _translated("interrupt workers"):
            for worker_id in worker_ids:
                self._client.publish(self.worker_channel(worker_id), INTERRUPT)

    @staticmethod
    def worker_channel(worker_id: UUID) -> str:
        """The channel on which an idle worker is woken."""
        return f"ws:w:{worker_id.hex}"

    # -- inside

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _server_run_id(self) -> str:
        return str(self._client.info("server")["run_id"])

    def _of_runs(self, script: str, keys: list[str], options: list[int], runs: Sequence[UUID]) -> list[UUID]:
        found = []
        for page in _pages(runs):
            found += [UUID(hex=run.decode("ascii")) for run in self._run(script, keys, [*options, *(run.hex for run in page)])]
        return found

    def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        if not self._incarnation:
            self.attach()
        clock = "" if self._clock is None else str(self._clock())
        names = [self._key(name) for name in ("inc", *keys)]
        try:
            with _translated(script):
                return run_script(self._client, script, names, [self._incarnation, clock, *arguments])
        except (RebuildNeeded, RetryableError):
            self.detach()  # after a lost connection the server may be another one; asking again costs two short commands
            raise


def _pages(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[at : at + BATCH] for at in range(0, len(items), BATCH)]


def _flat(rows: Iterable[Sequence[str | int | bytes]]) -> list[str | int | bytes]:
    return [value for row in rows for value in row]
