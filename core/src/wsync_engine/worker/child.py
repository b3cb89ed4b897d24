"""A task child: executes one run at a time, told by its supervisor over a pipe, and ends when that pipe closes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from wsync_engine.pipeline.context import Destination, no_faults
from wsync_engine.scheduler.rows import ready_run
from wsync_engine.telemetry import log_to_stderr
from wsync_engine.worker import fork_server
from wsync_engine.worker.budget import ChildBudget
from wsync_engine.worker.connectors import Opener
from wsync_engine.worker.fence import Fence, boot_time_s
from wsync_engine.worker.messages import (
    Assignment,
    Called,
    Cancel,
    CancelReason,
    Drain,
    Ended,
    Lost,
    Pause,
    Renewed,
    Resume,
    Tick,
    TurnsGiven,
    TurnsWanted,
    Yield,
)

__all__ = ["ChildSetup", "RunInProgress", "child_main"]

TICK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSetup:
    """What all runs of a child share. `api_url`: the login under row-level security, the only one a child has. `faults`: see RunContext."""

    api_url: str = field(repr=False)
    storage_url: str
    opener: Opener
    faults: Callable[[str], None] = no_faults


def child_main(pipe: Connection, setup: ChildSetup) -> None:
    """A child's whole life, called in the new process."""
    fork_server.die_with_parent(fork_server.process_id())
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_to_stderr()  # without it a traceback would show local variables, passwords among them
    # Here and not above: the supervisor, which only names this function, then needs neither Arrow nor DuckDB.
    from wsync_engine.worker.execution import execute_assignment  # noqa: PLC0415

    link = _Link(pipe)
    while True:
        run = link.next_run()
        link.say(execute_assignment(run, setup))
        link.end(run)


class RunInProgress:
    """An assignment in progress: its fence, its end if one was asked for, and its counters. The pipe's thread writes, the main thread reads."""

    def __init__(
        self, assignment: Assignment, *, clock: Callable[[], float] = boot_time_s, say: Callable[[TurnsWanted], None] = lambda _: None
    ) -> None:
        self.assignment = assignment
        self.fence = Fence(assignment.write_until_s, clock=clock)
        self.counters: dict[str, int] = {}
        self.destination = Destination()
        self.budget = ChildBudget(TurnsWanted(run_id=assignment.run_id, epoch=assignment.epoch), say, clock=clock)
        self.cancel_reason: CancelReason | None = None
        self.is_drained = False
        self.shall_yield = False
        self.is_paused = False
        self.stop_reading: Callable[[], None] = lambda: None
        self.call_helpers: Callable[[Sequence[Mapping[str, Any]]], None] = lambda _: None

    def is_cancelled(self) -> bool:
        return self.is_drained or self.cancel_reason is not None

    def goes_back(self) -> bool:
        return self.cancel_reason is None and (self.is_drained or self.shall_yield)

    def count(self, counters: dict[str, int]) -> None:
        self.counters = dict(counters)

    def take(self, message: Renewed | Cancel | Drain | Yield | Pause | Resume | Lost | TurnsGiven) -> None:
        """What the supervisor says of this run; called by the pipe's thread."""
        match message:
            case Renewed():
                self.fence.renew(message.write_until_s)
            case TurnsGiven():
                self.budget.given(message)
            case Lost():
                self.fence.lose()
            case Yield():
                self.shall_yield = True
            case Pause():
                self.is_paused = True
            case Resume():
                self.is_paused = self.shall_yield = False
            case Drain():
                self.is_drained = True
                self.fence.open_gate()
            case Cancel():
                self.cancel_reason = message.reason
                self.fence.open_gate()
                threading.Thread(target=self.stop_reading, name="cancel", daemon=True).start()


class _Link:
    """The pipe: one thread reads, one ticks, the main thread executes."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._runs: SimpleQueue[RunInProgress] = SimpleQueue()
        self._run: RunInProgress | None = None
        threading.Thread(target=self._listen, name="pipe", daemon=True).start()
        threading.Thread(target=self._tick, name="tick", daemon=True).start()

    def next_run(self) -> RunInProgress:
        return self._runs.get()

    def end(self, run: RunInProgress) -> None:
        if self._run is run:
            self._run = None

    def call_helpers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.say(Called(helpers=tuple(ready_run(dict(row)) for row in rows)))

    def say(self, message: Tick | Called | Ended | TurnsWanted) -> None:
        try:
            with self._sending:
                self._pipe.send(message)
        except OSError:
            os._exit(0)  # nobody is there any more

    def _listen(self) -> None:
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, Assignment):
                self._run = RunInProgress(message, say=self.say)
                self._run.call_helpers = self.call_helpers
                self._runs.put(self._run)
                continue
            run = self._run
            if run is not None and (run.assignment.run_id, run.assignment.epoch) == (message.run_id, message.epoch):
                run.take(message)

    def _tick(self) -> None:
        pause = threading.Event()
        while not pause.wait(TICK_S):
            run = self._run
            self.say(Tick() if run is None else Tick(counters=run.counters, answers=run.destination.answers))
