"""A worker: claims runs, keeps their leases, and watches the children that execute them. Any number of them, on any number of hosts.

It may be killed at any step: its children die with it, and its runs come back when their leases are over.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.connection import Client
from wsync_engine.index.entries import ReadyRun
from wsync_engine.index.layout import worker_channel
from wsync_engine.index.shards import Shards
from wsync_engine.index.turns import Turns
from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import RunError
from wsync_engine.pipeline.context import no_faults
from wsync_engine.scheduler.runs import Beat, ClaimedRun, Held, claim_runs, executed_among, finish_runs, heartbeat
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.telemetry import metrics
from wsync_engine.worker.backoff import Backoff
from wsync_engine.worker.child import ChildSetup
from wsync_engine.worker.connectors import Opener
from wsync_engine.worker.destinations import note_seen
from wsync_engine.worker.endings import Ending, failed, given_back
from wsync_engine.worker.host import Host, Listener
from wsync_engine.worker.live import LiveProgress
from wsync_engine.worker.messages import Assignment
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.slot_pool import SlotPool
from wsync_engine.worker.slots import Slot, Tenure
from wsync_engine.worker.store import Orders, Presence, leave, load_assignments, note_stuck, show_presence
from wsync_engine.worker.turns import give_turns
from wsync_sdk.errors import RetryableError, StateError, WsyncError

__all__ = ["Worker"]

TIMER_S = 1.0
MOST_FINISHES = 64
LONGEST_CALL_S = 9.0
THIS_MACHINE = Host()
_log = structlog.get_logger()


def _unreadable(exc: Exception) -> RunError:
    """What is stored of a run can't be handed to a child."""
    if isinstance(exc, WsyncError):
        return RunError(error_class=type(exc).__name__, message=exc.message, next_step=exc.next_step)
    return RunError(
        error_class=type(exc).__name__, message="what is stored of the run can't be read", next_step="report this, with the worker's log"
    )


def _observe_claim(run: ClaimedRun, lease_s: float) -> None:
    claimed_at = run.lease_until - timedelta(seconds=lease_s)
    priority = metrics.priority_name(run.priority)
    metrics.QUEUE_WAIT.labels(priority).observe(max(0.0, (claimed_at - run.ready_at).total_seconds()))
    if run.epoch == 1:
        metrics.START_LATENESS.labels(priority).observe(max(0.0, (claimed_at - run.due_at).total_seconds()))


class Worker:
    """One worker of all shards. `run` is for one thread, which must live as long as the worker: its children die with that thread.

    :param client: of the index, for messages; `index` has one of its own.
    :param connect: opens a connection as the engine's login, autocommit. :param opener: opens a run's connectors, in the children.
    :param faults: called in a child with the name of each step of its run, where a test may want to stop it.
    :param host: the machine: its clocks, and the processes of the children.
    :param on_ready: called once, after the first heartbeat that Postgres took.
    """

    def __init__(
        self,
        options: WorkerOptions,
        *,
        index: Shards,
        client: Client,
        connect: Callable[[], psycopg.Connection[Any]],
        keyring: Keyring,
        opener: Opener,
        faults: Callable[[str], None] = no_faults,
        host: Host = THIS_MACHINE,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.worker_id = uuid7()
        self._host = host
        self._clocks = host.clocks
        self._options = options
        self._index = index
        self._client = client
        self._connect = connect
        self._keyring = keyring
        self._setup = ChildSetup(api_url=options.api_url, storage_url=options.storage_url, opener=opener, faults=faults)
        self._pool = SlotPool(options, host)
        self._connection: psycopg.Connection[Any] | None = None
        self._postgres_backoff = Backoff("postgres", host.clocks)
        self._index_backoff = Backoff("redis", host.clocks)
        self._live = LiveProgress(client, len(index), monotonic_s=host.clocks.monotonic_s)
        self._turns = Turns(client)
        self._listener: Listener | None = None
        self._on_ready = on_ready
        self._stops = 0
        self._drain_until_s: float | None = None
        self._refusal: str | None = None
        self._beat_at_s = self._ask_at_s = self._room_at_s = 0.0

    # -- life

    def run(self) -> None:
        """Until `stop` or a signal, and the drain after it; survives Redis and Postgres being away."""
        self._host.start()
        self._listener = self._host.listen(self._client, worker_channel(self.worker_id))
        before = self._handle_signals()
        try:
            self._pool.open(self._setup)
            _log.info("worker.started", worker_id=str(self.worker_id), slots=self._options.slots)
            while not self._is_done():
                self._step()
                self._rest()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._close()
        _log.info("worker.stopped", worker_id=str(self.worker_id))

    def stop(self) -> None:
        """Drain; a second call ends the runs at once. From any thread or signal handler."""
        self._stops += 1
        if self._listener is not None:
            self._listener.wake()

    def _handle_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        return {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def _is_done(self) -> bool:
        if self._drain_until_s is None:
            return False
        return self._pool.is_idle or self._clocks.monotonic_s() > self._drain_until_s + self._options.drain_grace_s + self._options.lease_s

    def _close(self) -> None:
        self._pool.close()
        if self._listener is not None:
            self._listener.close()
        with suppress(psycopg.Error, WsyncError):  # else it is recognised as gone by its heartbeat
            leave(self._postgres(), self.worker_id)
        self._drop_connection()

    def _step(self) -> None:
        if self._pool.listen(is_draining=self._drain_until_s is not None):
            self._ask_at_s = 0.0
        give_turns(self._pool, self._turns, self._tell_index, self._clocks)
        self._pool.watch()
        self._pool.end_loan(is_draining=self._drain_until_s is not None)
        self._drain()
        if self._postgres_backoff.is_over:
            try:
                self._beat()
                self._write_endings()
                self._note_seen()
                self._take_work()
                self._make_room()
                self._postgres_backoff.succeeded()
                self._tell_ready()
            except Exception as exc:
                self._drop_connection()
                self._postgres_backoff.failed(exc)
        self._tell_index(self._show_progress)
        self._call_helpers()

    def _tell_ready(self) -> None:
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready()

    def _call_helpers(self) -> None:
        """Those that are not told to the index now are found by a sweep."""
        helpers, self._pool.called = self._pool.called, []
        if helpers:
            self._tell_index(partial(self._index.push, helpers))

    def _show_progress(self) -> None:
        tenures = self._pool.tenures()
        tenant_by_run = {tenure.assignment.run_id: tenure.assignment.tenant_id for tenure in tenures}
        self._live.show(tenant_by_run, {tenure.assignment.run_id: tenure.counters for tenure in tenures})

    def _rest(self) -> None:
        assert self._listener is not None
        if self._host.wait(self._listener, self._pool.slots, self._rest_s()):
            self._ask_at_s = 0.0
            if self._listener.clear():
                self._beat_at_s = 0.0

    def _rest_s(self) -> float:
        now_s = self._clocks.monotonic_s()
        kills = [tenure.kill_at_s - now_s for tenure in self._pool.tenures() if tenure.kill_at_s is not None]
        asks = [self._ask_at_s - now_s] if self._ask_at_s > now_s else []
        return max(0.01, min([TIMER_S, self._options.lease_s / 6, *asks, *kills]))

    def _drain(self) -> None:
        now_s = self._clocks.monotonic_s()
        if self._stops and self._drain_until_s is None:
            self._drain_until_s = now_s + self._options.drain_timeout_s
            self._beat_at_s = 0.0
            _log.info("worker.draining", runs=len(self._pool.tenures()))
        if self._drain_until_s is not None and (self._stops >= 2 or now_s >= self._drain_until_s):
            self._pool.drain(at_once=self._stops >= 2)

    # -- Postgres

    def _beat(self) -> None:
        """Renew all leases, tell the children, learn who shall end."""
        if self._clocks.monotonic_s() < self._beat_at_s:
            return
        sent_s = self._clocks.boot_time_s()
        tenures = list(self._pool.held())
        beats = [Beat(run_id=x.assignment.run_id, epoch=x.assignment.epoch, progress=x.counters or None) for _, x in tenures]
        beats += [Beat(run_id=ending.run_id, epoch=ending.epoch) for ending in self._pool.endings if ending.is_ours]
        conn = self._postgres()
        while self._pool.stuck:
            note_stuck(conn, self._pool.stuck[-1])
            del self._pool.stuck[-1]
        held = {answer.run_id: answer for answer in heartbeat(conn, self.worker_id, beats, lease_s=self._options.lease_s)} if beats else {}
        self._heed(show_presence(conn, self._presence()))
        self._beat_at_s = self._clocks.monotonic_s() + self._options.lease_s / 6
        for slot, tenure in tenures:
            self._take_answer(slot, tenure, held.get(tenure.assignment.run_id), sent_s)
        if held:
            self._tell_index(lambda: self._index.renew(list(held), lease_ms=round(self._options.lease_s * 1000)))

    def _heed(self, orders: Orders) -> None:
        """What the installation asks of its workers."""
        if orders.shall_drain and not self._stops:
            _log.info("worker.drain_requested", worker_id=str(self.worker_id))
            self.stop()
        refusal = None
        if orders.storage_id is not None and orders.storage_id != self._options.storage_id:
            refusal = "its storage is not the one that the installation's snapshots are in"
        if refusal != self._refusal and refusal is not None:
            _log.error(
                "worker.refuses",
                reason=refusal,
                next_step="set WSYNC_STORAGE_URL to the storage that all workers share, then start it again",
            )
        self._refusal = refusal

    def _take_answer(self, slot: Slot, tenure: Tenure, answer: Held | None, sent_s: float) -> None:
        if answer is None:
            self._pool.lose(slot, tenure)
            return
        self._pool.renew(slot, tenure, write_until_s=self._write_until_s(sent_s))
        if answer.is_cancelled and tenure.stopping is None:
            self._pool.cancel(slot, tenure, "timeout" if answer.cancel_reason == "timeout" else "cancelled")

    def _write_until_s(self, sent_s: float) -> float:
        return sent_s + self._options.lease_s * 2 / 3

    def _presence(self) -> Presence:
        return Presence(
            worker_id=self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version("wsync-engine"),
            slots=self._options.slots,
            running=len(self._pool.tenures()),
            is_draining=self._drain_until_s is not None,
            queues=list(self._options.queues),
            refusal=self._refusal,
        )

    def _write_endings(self) -> None:
        self._write_finishes()
        while self._pool.endings:
            ending = self._pool.endings[0]
            try:
                queued = ending.write(self._postgres())
            except StateError:
                _log.warning("run.lost", run_id=str(ending.run_id), epoch=ending.epoch)
            except (psycopg.OperationalError, RetryableError):
                raise  # again, when Postgres is back
            except Exception as exc:  # must not hold up the others; the run comes back with its lease
                _log.error("run.ending_failed", run_id=str(ending.run_id), error=type(exc).__name__, next_step="report this")
            else:
                self._tell_end(ending, queued)
            del self._pool.endings[0]

    def _note_seen(self) -> None:
        """After the endings: whom a breaker lets wait goes by it from the next dispatch on. What is lost here costs time only."""
        while self._pool.seen:
            try:
                caps = note_seen(self._postgres(), self._pool.seen[0], most_failures=self._options.breaker_failures)
            except (psycopg.OperationalError, RetryableError):
                raise  # again, when Postgres is back
            except Exception as exc:  # must not hold up all that comes after it, new work among it
                _log.error("destination.not_noted", error=type(exc).__name__, next_step="report this")
                caps = []
            for cap in caps:
                self._tell_index(partial(self._index.of(cap.tenant_id).set_caps, [cap]))
            del self._pool.seen[0]

    def _write_finishes(self) -> None:
        """The common ends, many in one transaction; what can't be written so is written one by one."""
        while plain := [ending for ending in self._pool.endings if ending.finish is not None][:MOST_FINISHES]:
            try:
                done = finish_runs(self._postgres(), [ending.finish for ending in plain if ending.finish is not None])
            except (psycopg.OperationalError, RetryableError):
                raise  # again, when Postgres is back
            except Exception as exc:
                _log.warning("runs.ending_failed", runs=len(plain), error=type(exc).__name__)
                return
            self._pool.endings = [ending for ending in self._pool.endings if ending not in plain]
            for run_id in done.lost:
                _log.warning("run.lost", run_id=str(run_id))
            ended = [ending.run_id for ending in plain if ending.run_id not in done.lost]
            self._tell_index(partial(self._index.release, ended))
            self._tell_index(partial(self._index.push, done.successors))
            for run_id in ended:
                self._tell_index(partial(self._live.forget, run_id))

    def _tell_end(self, ending: Ending, queued: ReadyRun | None) -> None:
        # One that we lost is executed by its next holder, perhaps: what it holds is that one's.
        if ending.is_ours or not executed_among(self._postgres(), [ending.run_id]):
            self._tell_index(lambda: self._index.release([ending.run_id]))
        if queued is not None:
            self._tell_index(lambda: self._index.push([queued]))
        self._tell_index(lambda: self._live.forget(ending.run_id))

    def _tell_index(self, tell: Callable[[], object]) -> None:
        """The index may be away or rebuilt: what it is not told now, the sweep or a lease repairs."""
        if not self._index_backoff.is_over:
            return
        try:
            tell()
            self._index_backoff.succeeded()
        except Exception as exc:
            self._index_backoff.failed(exc)

    def _take_work(self) -> None:
        metrics.RUNS.set(len(self._pool.tenures()))
        free = len(self._pool.free())
        if self._drain_until_s is not None or self._refusal or not free or self._clocks.monotonic_s() < self._ask_at_s:
            return
        self._ask_at_s = self._clocks.monotonic_s() + TIMER_S
        dispatched: list[tuple[UUID, UUID]] = []
        self._tell_index(lambda: dispatched.extend(self._index.dispatch(self.worker_id, free, queues=self._options.queues)))
        if not self._index_backoff.is_over:  # away, or being loaded: what is due waits for this
            self._ask_at_s = self._index_backoff.again_s
        if not dispatched:
            return
        sent_s = self._clocks.boot_time_s()
        run_ids = [run_id for _, run_id in dispatched]
        claimed = claim_runs(self._postgres(), run_ids, self.worker_id, lease_s=self._options.lease_s)
        refused = set(run_ids) - {run.run_id for run in claimed}
        metrics.CLAIMS.labels("claimed").inc(len(claimed))
        metrics.CLAIMS.labels("refused").inc(len(refused))
        for run in claimed:
            _observe_claim(run, self._options.lease_s)
        self._assign(claimed, self._write_until_s(sent_s))
        if refused:
            # Not those that another worker executes, which got them while we stood still: by what they hold a cap is kept.
            unused = refused - executed_among(self._postgres(), list(refused))
            self._tell_index(lambda: self._index.refuse(list(unused)))
        self._tell_index(lambda: self._index.renew([run.run_id for run in claimed], lease_ms=round(self._options.lease_s * 1000)))

    def _make_room(self) -> None:
        """No slot is free, and others are in line: a run that has had its turn, or a less urgent one, goes back to the queue at its next border.

        One at a time; which run gets the slot is decided by the shares of §7, against which the time in the slot was counted.
        """
        now_s = self._clocks.monotonic_s()
        if now_s < self._room_at_s or self._drain_until_s is not None or self._refusal or self._pool.free():
            return
        self._room_at_s = now_s + TIMER_S
        waiting: list[int | None] = []
        self._tell_index(lambda: waiting.append(self._index.first_waiting(self._options.queues)))
        if waiting and waiting[0] is not None:
            self._pool.make_room(waiting[0])

    def _assign(self, runs: Sequence[ClaimedRun], write_until_s: float) -> None:
        try:
            assignments = load_assignments(
                self._postgres(),
                runs,
                self._keyring,
                write_until_s=write_until_s,
                # A call that starts at the last moment must have ended before the lease has.
                call_timeout_s=min(LONGEST_CALL_S, self._options.lease_s * 0.3),
                rows_per_partition=self._options.rows_per_partition,
                secret_folders=self._options.secret_folders,
            )
        except (RetryableError, psycopg.Error):
            self._pool.endings += [given_back(run.run_id, run.epoch) for run in runs]
            return
        free = self._pool.free()
        for run in runs:
            self._hand_over(run, assignments[run.run_id], free)

    def _hand_over(self, run: ClaimedRun, assignment: Assignment | Exception, free: list[Slot]) -> None:
        if isinstance(assignment, Exception):
            self._pool.endings.append(failed(run.run_id, run.epoch, _unreadable(assignment)))
            return
        if not free:  # a process died a moment ago
            self._pool.endings.append(given_back(run.run_id, run.epoch))
            return
        free.pop(0).assign(assignment, left_s=self._time_left_s(run), stall_s=run.stall_ms / 1000, priority=run.priority)

    def _time_left_s(self, run: ClaimedRun) -> float:
        left_s = run.attempt_timeout_ms / 1000
        if run.deadline_at is not None:
            left_s = min(left_s, (run.deadline_at - run.lease_until).total_seconds() + self._options.lease_s)
        return left_s

    def _postgres(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
