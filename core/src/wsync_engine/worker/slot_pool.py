"""A worker's slots: what their children say, and who is asked to end, killed or replaced. One thread; nothing here writes to a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from wsync_engine.index.entries import ReadyRun
from wsync_engine.telemetry import metrics
from wsync_engine.worker.child import ChildSetup
from wsync_engine.worker.destinations import Seen, seen_at_end, seen_so_far
from wsync_engine.worker.endings import Ending, ending_of_death, ending_of_report
from wsync_engine.worker.host import Host
from wsync_engine.worker.messages import Called, Cancel, CancelReason, Drain, Ended, Lost, Pause, Renewed, Resume, TurnsWanted, Yield
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.slots import Slot, Tenure

__all__ = ["SlotPool"]

WATCH_S = 1.0
STOOD_STILL_S = 2.0
CHILD_PAUSE_S = 0.5
"""A child that dies at its start is not replaced in a circle."""
LOST_GRACE_S = 2.0
"""A run that is gone may have been ended by its child a moment ago: its last word is on the way."""
LEND_AFTER_S = 2.0
"""A run that was asked to make room, and has come to no border for so long, is paused."""
LOAN_UNUSED_S = 5.0
SHORT_TURN_S = 5.0
"""Between two pauses for more urgent runs a run goes on for so long."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loan:
    """A slot beside one whose run stands still. `lender`: that one, with its `tenure`. `at_s`: since when."""

    slot: Slot
    lender: Slot
    tenure: Tenure
    at_s: float


class SlotPool:
    """All slots of a worker. `open` before anything else.

    `endings`: of runs that left their slots, to be written by the owner, who takes them out. `stuck`: tenures that stood still, to be noted.
    `seen`: what their runs saw of destinations, to be noted too. `called`: helpers that were queued for them, to be told to the index.
    `wanted`: calls that runs want to make, to be answered.
    """

    def __init__(self, options: WorkerOptions, host: Host) -> None:
        self._options = options
        self._host = host
        self._clocks = host.clocks
        self._watch_at_s = 0.0
        self._loan: _Loan | None = None
        self.slots: list[Slot] = []
        self.endings: list[Ending] = []
        self.stuck: list[Tenure] = []
        self.seen: list[Seen] = []
        self.called: list[ReadyRun] = []
        self.wanted: list[tuple[Slot, TurnsWanted]] = []

    def open(self, setup: ChildSetup) -> None:
        """Start a child in each slot."""
        self._setup = setup
        self.slots = [self._host.new_slot(setup) for _ in range(self._options.slots)]

    def close(self) -> None:
        """Kill all children, and wait for them."""
        for slot in self.slots:
            slot.end(timeout_s=5)

    # -- who is where

    def tenures(self) -> list[Tenure]:
        """The runs that are in slots."""
        return [slot.tenure for slot in self.slots if slot.tenure is not None]

    def held(self) -> Iterator[tuple[Slot, Tenure]]:
        """The runs that are in slots and ours, as far as we know."""
        return ((slot, slot.tenure) for slot in self.slots if slot.tenure is not None and not slot.tenure.is_lost)

    def free(self) -> list[Slot]:
        """The slots that can take a run."""
        return [slot for slot in self.slots if slot.is_free]

    @property
    def is_idle(self) -> bool:
        """Whether no run is in a slot, or waits for its ending to be written."""
        return not self.endings and not self.tenures()

    # -- what children say

    def listen(self, *, is_draining: bool) -> bool:
        """What the children said; those that died get successors, unless we drain. Returns whether a run ended by itself."""
        has_ended = False
        for slot in self.slots:
            is_alive = slot.is_alive  # asked first: what it said before it died is read below
            for message in slot.messages():
                if isinstance(message, Ended):
                    has_ended |= self._take_end(slot, message)
                elif isinstance(message, Called):
                    self.called += message.helpers
                elif isinstance(message, TurnsWanted):
                    self.wanted.append((slot, message))
                elif slot.tenure is not None:
                    now_s = self._clocks.monotonic_s()
                    slot.tenure.take_counters(message.counters, now_s)
                    self.seen += seen_so_far(slot.tenure, message, now_s)
            if not is_alive:
                self._replace_dead(slot, is_draining=is_draining)
        return has_ended

    def _take_end(self, slot: Slot, ended: Ended) -> bool:
        tenure, slot.tenure = slot.tenure, None
        if tenure is None:
            return False
        slot.runs_done += 1
        metrics.RUNS_ENDED.labels((ended.state or ended.kind) if tenure.assignment.helps is None else "helper").inc()
        metrics.RUN_SECONDS.observe(self._clocks.monotonic_s() - tenure.started_at_s)
        self.endings.append(ending_of_report(ended))
        self.seen += seen_at_end(tenure, ended)
        largest_bytes = min(self._options.recycle_bytes, self._options.memory_limit_bytes * 3 // 4)
        if slot.runs_done >= self._options.runs_per_child or slot.rss_bytes() > largest_bytes:
            slot.start()
        return True

    def _replace_dead(self, slot: Slot, *, is_draining: bool) -> None:
        tenure, slot.tenure = slot.tenure, None
        if tenure is not None:
            how = slot.how_it_died()
            if tenure.stopping is None and slot.is_out_of_memory:
                tenure.stopping = "memory"
            _log.warning("child.died", run_id=str(tenure.assignment.run_id), how=how, asked_to_end=tenure.stopping)
            metrics.CHILD_EXITS.labels(slot.exit_signal).inc()
            metrics.RUNS_ENDED.labels("died").inc()
            self.endings.append(ending_of_death(tenure, how, crash_backoff_s=self._options.crash_backoff_s))
        if not is_draining and self._clocks.monotonic_s() >= slot.started_at_s + CHILD_PAUSE_S:
            slot.start()

    # -- who shall end

    def watch(self) -> None:
        """Kill what is due to be killed; once a second also look at time and memory."""
        now_s = self._clocks.monotonic_s()
        for slot in self.slots:
            if slot.tenure is not None and slot.tenure.kill_at_s is not None and now_s >= slot.tenure.kill_at_s:
                slot.kill()
        if now_s < self._watch_at_s:
            return
        self._pass_over(now_s - self._watch_at_s if self._watch_at_s else 0.0)
        self._watch_at_s = now_s + WATCH_S
        for slot in self.slots:
            if slot.tenure is not None and slot.tenure.stopping is None and slot.tenure.paused_at_s is None:
                self._judge(slot, slot.tenure, now_s)

    def _pass_over(self, late_s: float) -> None:
        """While we stood still ourselves, runs may have stood still because their leases were not renewed."""
        if late_s >= STOOD_STILL_S:
            for tenure in self.tenures():
                tenure.moved_at_s += late_s

    def _judge(self, slot: Slot, tenure: Tenure, now_s: float) -> None:
        if slot.rss_bytes() > self._options.memory_limit_bytes:
            tenure.stopping, tenure.kill_at_s = "memory", now_s
            slot.kill()
        elif now_s >= tenure.ends_at_s:
            self.cancel(slot, tenure, "timeout")
        elif now_s >= tenure.moved_at_s + tenure.stall_s:
            self.stuck.append(tenure)
            metrics.STUCK.inc()
            self.cancel(slot, tenure, "stalled")

    def cancel(self, slot: Slot, tenure: Tenure, reason: CancelReason) -> None:
        """Ask a run to end; its process is killed when it has not after the grace."""
        tenure.stopping = reason
        tenure.kill_at_s = self._clocks.monotonic_s() + self._options.stop_grace_s
        slot.tell(Cancel(run_id=tenure.assignment.run_id, epoch=tenure.assignment.epoch, reason=reason))

    def drain(self, *, at_once: bool) -> None:
        """Ask all runs to go back to the queue; their processes are killed after a grace, or at once."""
        now_s = self._clocks.monotonic_s()
        for slot in self.slots:
            tenure = slot.tenure
            if tenure is None:
                continue
            if tenure.stopping is None:
                tenure.stopping, tenure.kill_at_s = "drain", now_s + self._options.drain_grace_s
                slot.tell(Drain(run_id=tenure.assignment.run_id, epoch=tenure.assignment.epoch))
            if at_once:
                tenure.kill_at_s = now_s
                slot.kill()

    def lose(self, slot: Slot, tenure: Tenure) -> None:
        """The run is another holder's: its process has to end."""
        tenure.stopping, tenure.kill_at_s = "lost", self._clocks.monotonic_s() + LOST_GRACE_S
        metrics.FENCED.inc()
        slot.tell(Lost(run_id=tenure.assignment.run_id, epoch=tenure.assignment.epoch))

    def renew(self, slot: Slot, tenure: Tenure, *, write_until_s: float) -> None:
        """The lease was renewed: sink calls may start until then, by the host's boot time."""
        slot.tell(Renewed(run_id=tenure.assignment.run_id, epoch=tenure.assignment.epoch, write_until_s=write_until_s))

    def make_room(self, for_priority: int) -> None:
        """Ask a run that has had its turn, or one that is less urgent, to go back to the queue at its next border. One at a time."""
        now_s = self._clocks.monotonic_s()
        held = [(slot, slot.tenure) for slot in self.slots if slot.tenure is not None]
        asked = [(slot, tenure) for slot, tenure in held if tenure.is_yielding]
        if asked and self._loan is None and now_s >= asked[0][1].yields_at_s + LEND_AFTER_S:
            self._lend(*asked[0], now_s)
        if not held or asked or any(tenure.stopping for _, tenure in held):
            return
        slot, tenure = min(held, key=lambda x: (x[1].priority, x[1].assignment.helps is None, x[1].started_at_s))
        turn_s = self._options.turn_s if tenure.priority >= for_priority else SHORT_TURN_S if tenure.has_paused else 0.0
        if now_s < tenure.started_at_s + turn_s:
            return
        tenure.is_yielding, tenure.yields_at_s = True, now_s
        metrics.YIELDS.inc()
        slot.tell(Yield(run_id=tenure.assignment.run_id, epoch=tenure.assignment.epoch))
        _log.info("run.makes_room", run_id=str(tenure.assignment.run_id), for_priority=for_priority)

    # -- a slot that is lent

    def _lend(self, slot: Slot, tenure: Tenure, now_s: float) -> None:
        """A run that comes to no border soon, because it reads what can't be read twice or waits for its warehouse, stands still where it is; a
        slot beside it takes one other run, so that for a while there is one process more. One at a time.
        """
        tenure.paused_at_s = now_s
        slot.tell(Pause(run_id=tenure.assignment.run_id, epoch=tenure.assignment.epoch))
        self._loan = _Loan(slot=self._host.new_slot(self._setup), lender=slot, tenure=tenure, at_s=now_s)
        self.slots.append(self._loan.slot)
        _log.info("slot.lent", run_id=str(tenure.assignment.run_id))

    def end_loan(self, *, is_draining: bool) -> None:
        """Once the lent slot has served, or nobody wants it, who lent it goes on."""
        loan, now_s = self._loan, self._clocks.monotonic_s()
        if loan is None or loan.slot.tenure is not None:
            return
        is_given_up = loan.lender.tenure is not loan.tenure
        is_unused = now_s >= loan.at_s + LOAN_UNUSED_S
        if not (loan.slot.has_served or is_given_up or is_unused or is_draining):
            return
        self._loan = None
        self.slots.remove(loan.slot)
        loan.slot.end(timeout_s=1)
        if not is_given_up:
            loan.tenure.resume(now_s)
            loan.lender.tell(Resume(run_id=loan.tenure.assignment.run_id, epoch=loan.tenure.assignment.epoch))
