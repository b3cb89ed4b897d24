"""A scheduler process: claim what is due, fire it, tell the index; repair; reap. Any number of them, and none leads.

It may be killed at any step: what it claimed comes back with the fire lease, and the row's rev says what was done already.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.due_index import WAKE_SCHEDULERS, Index, RebuildNeeded
from wsync_engine.index.entries import Claimed
from wsync_engine.index.wakes import SUBSCRIBED, Wakes
from wsync_engine.scheduler.backfill import step_backfill
from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.gauges import show_shard
from wsync_engine.scheduler.janitor import Retention, tidy
from wsync_engine.scheduler.runs import RESTART_GRACE_S, count_ends, reap_runs
from wsync_engine.scheduler.sweeper import load_index, sweep
from wsync_engine.telemetry import metrics
from wsync_sdk.errors import RetryableError, StateError, WsyncError

__all__ = ["Scheduler"]

CLAIM = 128
LONGEST_SLEEP_S = 5.0
LONGEST_BACKOFF_S = 2.0
UNFIRED_S = 9.0
BATCH_PAUSE_S = 0.02
"""After a batch that was not full: the next one grows meanwhile, and the latest of it comes sooner."""
SWEEP_S = 10.0
REAP_S = 5.0
TIDY_S = 300.0
LOAD_WAIT_S = 0.2
DEFAULT_RETENTION = Retention()
_STOP_CHECK_S = 0.5
_log = structlog.get_logger()


def no_faults(step: str) -> None:
    """Nothing stops anywhere."""


@dataclass(slots=True, kw_only=True)
class _Turn:
    """One shard's state in this process.

    :param due_at_s: when it needs us next. :param unfired: claimed, but the fire's outcome is unknown: tried again while the lease lasts;
        the rev under the row's lock says what was done.
    """

    index: Index
    sweep_at_s: float
    reap_at_s: float
    due_at_s: float = 0.0
    failures: int = 0
    unfired: Sequence[tuple[UUID, int]] = ()
    unfired_until_s: float = 0.0


class Scheduler:
    """One scheduler of all shards. `run` and `step` are for one thread.

    :param indexes: of each shard, with a client of their own.
    :param wakes: on the channel `WAKE_SCHEDULERS`; see `wakes_of`.
    :param connect: opens a connection as the engine's login, autocommit.
    :param monotonic: seconds for waiting. :param draw: chance, uniform between two numbers.
    :param faults: called with the name of each crash point that is passed (`C6` after a claim, `C9` after the fire's commit); raises to stop there.
    """

    def __init__(
        self,
        *,
        indexes: Sequence[Index],
        wakes: Wakes,
        connect: Callable[[], psycopg.Connection[Any]],
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
        restart_grace_s: float = RESTART_GRACE_S,
        retention: Retention = DEFAULT_RETENTION,
        faults: Callable[[str], None] = no_faults,
    ) -> None:
        self._wakes = wakes
        self._connect = connect
        self._monotonic = monotonic
        self._draw = draw
        self._restart_grace_s = restart_grace_s
        self._faults = faults
        self._connection: psycopg.Connection[Any] | None = None
        # Spread over processes and shards, so that not all of them are swept at once.
        self._turns = [
            _Turn(
                index=index,
                sweep_at_s=monotonic() + draw(0, SWEEP_S),
                reap_at_s=monotonic() + draw(0, REAP_S),
                due_at_s=monotonic(),
            )
            for index in indexes
        ]
        self._wake_failures = 0
        self._tidy_at_s = monotonic() + draw(0, TIDY_S)
        self._retention = retention

    @staticmethod
    def wakes_of(client: Any) -> Wakes:
        """What a scheduler waits on; `client` is one of the index's."""
        return Wakes(client, WAKE_SCHEDULERS)

    def run(self, stop: threading.Event, on_ready: Callable[[], None] | None = None) -> None:
        """Until `stop` is set; survives the index and Postgres being away and goes on by itself. `on_ready` is called once, after the first
        round in which every shard could be served.
        """
        _log.info("scheduler.started", shards=len(self._turns))
        while not stop.is_set():
            for turn in self._turns:
                if turn.due_at_s <= self._monotonic() and not stop.is_set():
                    turn.due_at_s = self._monotonic() + self._guarded_step(turn)
            if on_ready is not None and not any(turn.failures for turn in self._turns):
                on_ready()
                on_ready = None
            self._rest(stop)
        self.close()
        _log.info("scheduler.stopped", shards=len(self._turns))

    def step(self) -> float:
        """Everything there is to do now in all shards, once; returns the seconds that nothing needs us, unless woken.

        :raises RetryableError: the index or Postgres is away. Errors of psycopg pass through.
        :raises RebuildNeeded: `rebuild` comes first.
        """
        return min(self._step(turn) for turn in self._turns)

    def rebuild(self) -> bool:
        """Load the index from Postgres; False: for some shard, another process is at it."""
        loaded = [self._load(turn) for turn in self._turns]
        return all(loaded)

    def sweep(self) -> int:
        """Compare the index with Postgres, and make sure it is the server's own; returns the repairs."""
        return sum(self._sweep(turn) for turn in self._turns)

    def reap(self) -> None:
        """Take runs from workers that went silent."""
        for turn in self._turns:
            self._reap(turn)

    def close(self) -> None:
        """Give back the connections."""
        self._wakes.close()
        self._drop_connection()

    def _step(self, turn: _Turn) -> float:
        if turn.unfired and self._monotonic() < turn.unfired_until_s:
            self._fire(turn)
        claimed = turn.index.claim_due(CLAIM)
        if claimed.entries:
            turn.unfired, turn.unfired_until_s = claimed.entries, self._monotonic() + UNFIRED_S
            self._fire(turn)
        for backfill_id, rev in claimed.backfills:
            self._step_backfill(turn, backfill_id, rev)
        turn.index.expire()
        _, next_ready_ms = turn.index.promote()
        self._do_chores(turn)
        return _rest_s(claimed, next_ready_ms)

    def _fire(self, turn: _Turn) -> None:
        self._faults("C6")
        fired = fire(self._postgres(), turn.unfired)
        self._faults("C9")
        for run in fired.runs:
            lateness_s = (fired.at - run.due_at).total_seconds()
            metrics.FIRE_LATENESS.labels(metrics.priority_name(run.priority)).observe(max(0.0, lateness_s))
        turn.index.commit_fire(fired.entries, fired.runs)
        turn.index.interrupt(fired.interrupted)
        _log.debug("schedules.fired", claimed=len(turn.unfired), runs=len(fired.runs))
        turn.unfired = ()

    def _step_backfill(self, turn: _Turn, backfill_id: UUID, rev: int) -> None:
        """What fails comes again with its fire lease, and must not stop the others."""
        try:
            step = step_backfill(self._postgres(), backfill_id, rev)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, WsyncError) as exc:
            _log.warning("backfill.waiting", backfill=str(backfill_id), error=type(exc).__name__)
            return
        turn.index.commit_fire(step.entries, step.runs)
        turn.index.interrupt(step.interrupted)

    def _do_chores(self, turn: _Turn) -> None:
        now_s = self._monotonic()
        # The time of the next one is set first: a chore that fails must not be tried in a tight circle.
        if now_s >= turn.sweep_at_s:
            turn.sweep_at_s = now_s + SWEEP_S
            self._sweep(turn)
        if now_s >= turn.reap_at_s:
            turn.reap_at_s = now_s + REAP_S
            self._reap(turn)
        if now_s >= self._tidy_at_s:
            self._tidy_at_s = now_s + TIDY_S
            tidy(self._postgres(), self._retention)

    def _sweep(self, turn: _Turn) -> int:
        if turn.index.is_abandoned():
            self._load(turn)
        turn.index.detach()  # a server that was restarted behind a silent reconnect is found out by the next call
        repairs = sweep(self._postgres(), turn.index)
        show_shard(self._postgres(), turn.index)
        return repairs

    def _load(self, turn: _Turn) -> bool:
        started_s = self._monotonic()
        is_ours = load_index(self._postgres(), turn.index)
        if is_ours:
            metrics.REBUILD.observe(self._monotonic() - started_s)
        return is_ours

    def _reap(self, turn: _Turn) -> None:
        reaped = reap_runs(self._postgres(), shard=turn.index.shard, grace_s=self._restart_grace_s)
        lost = [run.run_id for run in reaped.queued]
        metrics.LEASES_EXPIRED.inc(len(lost) + len(reaped.ended))
        count_ends(self._postgres(), shard=turn.index.shard)
        if lost or reaped.ended:
            _log.warning("runs.reaped", queued=len(lost), ended=len(reaped.ended))
            turn.index.release([*lost, *reaped.ended])
            turn.index.commit_fire([], reaped.queued)

    def _guarded_step(self, turn: _Turn) -> float:
        try:
            wait_s = self._step(turn)
        except RebuildNeeded:
            return self._guarded_rebuild(turn)
        except Exception as exc:
            return self._backed_off(turn, exc)
        if turn.failures:
            _log.info("scheduler.recovered", shard=turn.index.shard, failures=turn.failures)
        turn.failures = 0
        return wait_s

    def _guarded_rebuild(self, turn: _Turn) -> float:
        try:
            return 0.0 if self._load(turn) else LOAD_WAIT_S
        except Exception as exc:
            return self._backed_off(turn, exc)

    def _backed_off(self, turn: _Turn, exc: Exception) -> float:
        if isinstance(exc, psycopg.Error):
            self._drop_connection()
        if isinstance(exc, psycopg.Error | RetryableError | StateError):
            _log.warning("scheduler.waiting", error=type(exc).__name__, shard=turn.index.shard, failures=turn.failures)
        else:
            _log.error("scheduler.failed", error=type(exc).__name__, next_step="report this: the scheduler goes on")
        turn.failures += 1
        return _backoff_s(turn.failures, self._draw)

    def _rest(self, stop: threading.Event) -> None:
        """Until a shard needs us; a message says which has something due earlier than it said."""
        until_s = min(turn.due_at_s for turn in self._turns)
        while not stop.is_set() and (left_s := until_s - self._monotonic()) > 0:
            try:
                if said := self._wakes.wait(min(left_s, _STOP_CHECK_S)):
                    self._wake_failures = 0
                    if self._wake(said):
                        return
            except RetryableError as exc:
                _log.warning("scheduler.waiting", error=type(exc).__name__, failures=self._wake_failures)
                self._wake_failures += 1
                stop.wait(min(left_s, _backoff_s(self._wake_failures, self._draw)))

    def _wake(self, said: frozenset[str]) -> bool:
        """The shards that were named are due now, all of them where a message may have been missed; a shard that fails keeps its pause."""
        named = [turn for turn in self._turns if SUBSCRIBED in said or str(turn.index.shard) in said]
        for turn in named:
            if not turn.failures:
                turn.due_at_s = min(turn.due_at_s, self._monotonic())
        return any(not turn.failures for turn in named)

    def _postgres(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _backoff_s(failures: int, draw: Callable[[float, float], float]) -> float:
    limit_s: float = min(LONGEST_BACKOFF_S, 0.05 * 2.0 ** min(failures, 10))
    return limit_s * draw(0.5, 1)


def _rest_s(claimed: Claimed, next_ready_ms: int | None) -> float:
    if len(claimed.entries) + len(claimed.backfills) == CLAIM:
        return 0.0
    if claimed.entries:
        return BATCH_PAUSE_S
    wakes_ms = [at_ms for at_ms in (claimed.next_wake_ms, next_ready_ms) if at_ms is not None]
    if not wakes_ms:
        return LONGEST_SLEEP_S
    left_s: float = (min(wakes_ms) - claimed.now_ms) / 1_000
    return min(LONGEST_SLEEP_S, max(BATCH_PAUSE_S, left_s))
