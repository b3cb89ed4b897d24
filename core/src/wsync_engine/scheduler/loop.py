"""A scheduler process: claim what is due, fire it, tell the index; repair; reap. Any number of them, and none leads.

It may be killed at any step: what it claimed comes back with the fire lease, and the row's rev says what was done already.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.due_index import WAKE_SCHEDULERS, Index, RebuildNeeded
from wsync_engine.index.entries import Claimed
from wsync_engine.index.wakes import Wakes
from wsync_engine.scheduler.backfill import step_backfill
from wsync_engine.scheduler.fire import fire
from wsync_engine.scheduler.gauges import show_shard
from wsync_engine.scheduler.janitor import Retention, tidy
from wsync_engine.scheduler.runs import RESTART_GRACE_S, reap_runs
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


class Scheduler:
    """One scheduler of one shard. `run` and `step` are for one thread.

    :param index: with a client of its own.
    :param wakes: on the channel `WAKE_SCHEDULERS`; see `wakes_of`.
    :param connect: opens a connection as the engine's login, autocommit.
    :param faults: called with the name of each crash point that is passed (`C6` after a claim, `C9` after the fire's commit); raises to stop there.
    """

    def __init__(
        self,
        *,
        index: Index,
        wakes: Wakes,
        connect: Callable[[], psycopg.Connection[Any]],
        shard: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
        restart_grace_s: float = RESTART_GRACE_S,
        retention: Retention = DEFAULT_RETENTION,
        faults: Callable[[str], None] = no_faults,
    ) -> None:
        self._index = index
        self._wakes = wakes
        self._connect = connect
        self._shard = shard
        self._monotonic = monotonic
        self._restart_grace_s = restart_grace_s
        self._faults = faults
        self._connection: psycopg.Connection[Any] | None = None
        # Spread over the processes, so that not all of them sweep at once.
        self._sweep_at_s = monotonic() + random.uniform(0, SWEEP_S)
        self._reap_at_s = monotonic() + random.uniform(0, REAP_S)
        self._tidy_at_s = monotonic() + random.uniform(0, TIDY_S)
        self._retention = retention
        self._failures = 0
        # Claimed, but the fire's outcome is unknown: tried again while the lease lasts. The rev under the row's lock says what was done.
        self._unfired: Sequence[tuple[UUID, int]] = ()
        self._unfired_until_s = 0.0

    @staticmethod
    def wakes_of(client: Any) -> Wakes:
        """What a scheduler waits on; `client` is one of the index's."""
        return Wakes(client, WAKE_SCHEDULERS)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; survives the index and Postgres being away and goes on by itself."""
        _log.info("scheduler.started", shard=self._shard)
        while not stop.is_set():
            self._rest(self._guarded_step(), stop)
        self.close()
        _log.info("scheduler.stopped", shard=self._shard)

    def step(self) -> float:
        """Everything there is to do now, once; returns the seconds that nothing needs us, unless woken.

        :raises RetryableError: the index or Postgres is away. Errors of psycopg pass through.
        :raises RebuildNeeded: `rebuild` comes first.
        """
        if self._unfired and self._monotonic() < self._unfired_until_s:
            self._fire()
        claimed = self._index.claim_due(CLAIM)
        if claimed.entries:
            self._unfired, self._unfired_until_s = claimed.entries, self._monotonic() + UNFIRED_S
            self._fire()
        for backfill_id, rev in claimed.backfills:
            self._step_backfill(backfill_id, rev)
        self._index.expire()
        _, next_ready_ms = self._index.promote()
        self._do_chores()
        return _rest_s(claimed, next_ready_ms)

    def rebuild(self) -> bool:
        """Load the index from Postgres; False: another process is at it."""
        started_s = self._monotonic()
        is_ours = load_index(self._postgres(), self._index, shard=self._shard)
        if is_ours:
            metrics.REBUILD.observe(self._monotonic() - started_s)
        return is_ours

    def sweep(self) -> int:
        """Compare the index with Postgres, and make sure it is the server's own; returns the repairs."""
        if self._index.is_abandoned():
            self.rebuild()
        self._index.detach()  # a server that was restarted behind a silent reconnect is found out by the next call
        repairs = sweep(self._postgres(), self._index, shard=self._shard)
        show_shard(self._postgres(), self._index, shard=self._shard)
        return repairs

    def reap(self) -> None:
        """Take runs from workers that went silent."""
        reaped = reap_runs(self._postgres(), shard=self._shard, grace_s=self._restart_grace_s)
        lost = [run.run_id for run in reaped.queued]
        metrics.LEASES_EXPIRED.inc(len(lost) + len(reaped.ended))
        if lost or reaped.ended:
            _log.warning("runs.reaped", queued=len(lost), ended=len(reaped.ended))
            self._index.release([*lost, *reaped.ended])
            self._index.commit_fire([], reaped.queued)

    def close(self) -> None:
        """Give back the connections."""
        self._wakes.close()
        self._drop_connection()

    def _fire(self) -> None:
        self._faults("C6")
        fired = fire(self._postgres(), self._unfired)
        self._faults("C9")
        for run in fired.runs:
            lateness_s = (fired.at - run.due_at).total_seconds()
            metrics.FIRE_LATENESS.labels(metrics.priority_name(run.priority)).observe(max(0.0, lateness_s))
        self._index.commit_fire(fired.entries, fired.runs)
        self._index.interrupt(fired.interrupted)
        _log.debug("schedules.fired", claimed=len(self._unfired), runs=len(fired.runs))
        self._unfired = ()

    def _step_backfill(self, backfill_id: UUID, rev: int) -> None:
        """What fails comes again with its fire lease, and must not stop the others."""
        try:
            step = step_backfill(self._postgres(), backfill_id, rev)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, WsyncError) as exc:
            _log.warning("backfill.waiting", backfill=str(backfill_id), error=type(exc).__name__)
            return
        self._index.commit_fire(step.entries, step.runs)
        self._index.interrupt(step.interrupted)

    def _do_chores(self) -> None:
        now_s = self._monotonic()
        # The time of the next one is set first: a chore that fails must not be tried in a tight circle.
        if now_s >= self._sweep_at_s:
            self._sweep_at_s = now_s + SWEEP_S
            self.sweep()
        if now_s >= self._reap_at_s:
            self._reap_at_s = now_s + REAP_S
            self.reap()
        if now_s >= self._tidy_at_s:
            self._tidy_at_s = now_s + TIDY_S
            tidy(self._postgres(), self._retention)

    def _guarded_step(self) -> float:
        try:
            wait_s = self.step()
        except RebuildNeeded:
            return self._guarded_rebuild()
        except Exception as exc:
            return self._backed_off(exc)
        if self._failures:
            _log.info("scheduler.recovered", failures=self._failures)
        self._failures = 0
        return wait_s

    def _guarded_rebuild(self) -> float:
        try:
            return 0.0 if self.rebuild() else LOAD_WAIT_S
        except Exception as exc:
            return self._backed_off(exc)

    def _backed_off(self, exc: Exception) -> float:
        if isinstance(exc, psycopg.Error):
            self._drop_connection()
        if isinstance(exc, psycopg.Error | RetryableError | StateError):
            _log.warning("scheduler.waiting", error=type(exc).__name__, failures=self._failures)
        else:
            _log.error("scheduler.failed", error=type(exc).__name__, next_step="report this: the scheduler goes on")
        self._failures += 1
        limit_s: float = min(LONGEST_BACKOFF_S, 0.05 * 2.0 ** min(self._failures, 10))
        return limit_s * random.uniform(0.5, 1)

    def _rest(self, wait_s: float, stop: threading.Event) -> None:
        until_s = self._monotonic() + wait_s
        while not stop.is_set() and (left_s := until_s - self._monotonic()) > 0:
            if self._failures:
                stop.wait(left_s)
                continue
            try:
                if self._wakes.wait(min(left_s, _STOP_CHECK_S)):
                    return
            except RetryableError as exc:
                stop.wait(self._backed_off(exc))

    def _postgres(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


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
