"""The engine's processes, as actors: production code, with clocks, chance, waiting and child processes of the simulation."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from wsync_engine.index.due_index import WAKE_SCHEDULERS
from wsync_engine.index.wakes import SUBSCRIBED, Wakes
from wsync_engine.model.run import RunError
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.scheduler.runs import ScheduleSettlement
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state.books import RunBooks
from wsync_engine.state.holding import Claim
from wsync_engine.state.records import Ack, SentChunk
from wsync_engine.worker.child import ChildSetup, RunInProgress
from wsync_engine.worker.host import Clocks, Host
from wsync_engine.worker.messages import NO_ERROR, Assignment, Ended, Tick
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.slots import Slot
from wsync_engine.worker.supervisor import Worker
from wsync_sdk import RetryableError, RowRange, StateError

from .baton import Actor, Process
from .stores import Effect, Line, SimulatedRedis

if TYPE_CHECKING:
    from .world import World

KEYRING = Keyring.from_text(base64.b64encode(bytes(range(32))).decode())
LONGEST_HANG_MS = 60_000
BUSY = RunError(error_class="RetryableError", message="busy", next_step="wait")


class Stop:
    """A scheduler's `threading.Event`, with waits of simulated time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_over = False

    def is_set(self) -> bool:
        return self.is_over

    def wait(self, seconds: float) -> bool:
        self._world.baton.sleep(seconds)
        return self.is_over


class Mailbox:
    """Messages on one channel for one actor."""

    def __init__(self, world: World, process: Process, channel: str) -> None:
        self._world = world
        self.process = process
        self.channel = channel
        self.actor: Actor | None = None
        self.texts: set[str] = {SUBSCRIBED}
        world.mailboxes.append(self)

    def deliver(self, text: str) -> None:
        self.texts.add(text)
        self._world.baton.wake(self.actor)

    # -- as Wakes

    def wait(self, timeout_s: float) -> frozenset[str]:
        self.actor = self._world.baton.current()
        if not self.texts:
            self._world.baton.sleep(timeout_s, is_wakeable=True)
        found, self.texts = frozenset(self.texts), set()
        return found

    def close(self) -> None:
        if self in self._world.mailboxes:
            self._world.mailboxes.remove(self)

    # -- as worker.host.Listener

    def wake(self, *, shall_beat: bool = False) -> None:
        self.deliver("beat" if shall_beat else "w")

    def clear(self) -> bool:
        found, self.texts = self.texts, set()
        return not found.isdisjoint({"beat", SUBSCRIBED})


class SchedulerProcess:
    """A scheduler that runs until it is killed."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.process = world.new_process(name, "scheduler")
        self.scheduler: Scheduler | None = None
        world.baton.spawn(self.process, name, self._live)

    def _live(self) -> None:
        client = SimulatedRedis(self.world, self.process, "scheduler")
        self.scheduler = Scheduler(
            indexes=[self.world.new_index(client)],
            wakes=cast(Wakes, Mailbox(self.world, self.process, WAKE_SCHEDULERS)),
            connect=lambda: self.world.connect(self.process, "scheduler"),
            monotonic=self.process.monotonic_s,
            draw=self.world.rng.uniform,
            restart_grace_s=0,
        )
        self.scheduler.run(cast(Any, Stop(self.world)))


class WorkerProcess:
    """A worker that runs until it is killed or has drained."""

    def __init__(self, world: World, name: str, *, slots: int) -> None:
        self.world = world
        self.process = world.new_process(name, "worker")
        self.worker: Worker | None = None
        self._slots = slots
        world.baton.spawn(self.process, name, self._live)

    def _live(self) -> None:
        failures = 1 if self.world.seed % 7 == 0 else 2  # two in a row are too rare to see what a breaker does
        options = WorkerOptions(
            api_url="", storage_url="file:///", slots=self._slots, drain_timeout_s=8, stop_grace_s=6, turn_s=15, breaker_failures=failures
        )
        self.worker = Worker(
            options,
            index=self.world.new_shards(SimulatedRedis(self.world, self.process, "worker")),
            client=SimulatedRedis(self.world, self.process, "worker"),
            connect=lambda: self.world.connect(self.process, "worker"),
            keyring=KEYRING,
            opener=cast(Any, None),
            host=SimulatedHost(self.world, self.process),
        )
        self.worker.run()
        self.process.was_killed = True  # it has left; its children went with it

    def drain(self) -> None:
        if self.worker is not None and not self.process.is_dead:
            self.process.is_draining = True
            self.worker.stop()


class SimulatedHost(Host):
    """A machine whose child processes are actors."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.supervisor: Actor | None = None
        self.clocks = Clocks(monotonic_s=process.monotonic_s, boot_time_s=process.monotonic_s, draw=world.rng.uniform)
        self._children = 0

    def start(self) -> None:
        self.supervisor = self.world.baton.current()

    def listen(self, client: Any, channel: str) -> Mailbox:
        return Mailbox(self.world, self.process, channel)

    def new_slot(self, setup: ChildSetup) -> Slot:
        return SimulatedSlot(self, setup)

    def wait(self, listener: Any, slots: Sequence[Slot], timeout_s: float) -> bool:
        listener.actor = self.supervisor
        is_spoken_to = any(isinstance(slot, SimulatedSlot) and slot.is_alive and slot.child.outbox for slot in slots)
        if not listener.texts and not is_spoken_to:
            self.world.baton.sleep(timeout_s, is_wakeable=True)
        return bool(listener.texts)

    def new_child(self) -> Child:
        self._children += 1
        return Child(self.world, self, f"{self.process.name}.{self._children}")


class SimulatedSlot(Slot):
    """A slot whose child is an actor; what the supervisor knows of it is production's."""

    def __init__(self, host: SimulatedHost, setup: ChildSetup) -> None:
        self._host = host
        super().__init__(setup, monotonic_s=host.clocks.monotonic_s)

    def start(self) -> None:
        if self.started_at_s:
            self.kill()  # its pipe is closed
        self.started_at_s = self._monotonic_s()
        self.runs_done = 0
        self.child = self._host.new_child()

    @property
    def is_alive(self) -> bool:
        return not self.child.process.is_dead

    def end(self, timeout_s: float) -> None:
        self.kill()

    def tell(self, message: Any) -> None:
        if self.is_alive:
            self.child.take(message)

    def messages(self) -> list[Tick | Ended]:
        found, self.child.outbox = self.child.outbox, []
        return found

    def rss_bytes(self) -> int:
        return 1

    def kill(self) -> None:
        if self.is_alive:
            self._host.world.baton.kill(self.child.process)

    def how_it_died(self) -> str:
        return "its process was killed"

    @property
    def exit_signal(self) -> str:
        return "SIGKILL"


@dataclass(slots=True, kw_only=True)
class Call:
    """A call of a destination, as the destination sees it."""

    run_id: Any
    overlap_key: Any
    is_exclusive: bool
    epoch: int
    start_ms: int
    end_ms: int


class Child:
    """A task child: it executes what it is assigned as the pipeline does, with calls that take time and nothing to read."""

    def __init__(self, world: World, host: SimulatedHost, name: str) -> None:
        self.world = world
        self.process = world.new_process(name, "child", parent=host.process)
        self.outbox: list[Tick | Ended] = []
        self._host = host
        self._inbox: list[Assignment] = []
        self._run: RunInProgress | None = None
        self.process.at_kill.append(lambda: world.baton.wake(host.supervisor))
        self.actor = world.baton.spawn(self.process, name, self._live)

    def take(self, message: Any) -> None:
        """As the pipe's thread does."""
        if isinstance(message, Assignment):
            self._inbox.append(message)
        elif self._run is not None:
            assignment = self._run.assignment
            if (assignment.run_id, assignment.epoch) == (message.run_id, message.epoch):
                self._run.take(message)
        self.world.baton.wake(self.actor)

    def _live(self) -> None:
        while True:
            while not self._inbox:
                self.world.baton.sleep(3_600, is_wakeable=True)
            ended = self._execute(self._inbox.pop(0))
            self._run = None
            self._say(ended)

    def _say(self, message: Tick | Ended) -> None:
        self.outbox.append(message)
        self.world.baton.wake(self._host.supervisor)

    def _execute(self, assignment: Assignment) -> Ended:
        run = self._run = RunInProgress(assignment, clock=self.process.monotonic_s)
        try:
            line = self.world.connect(self.process, "child")
        except RetryableError:
            return self._ended(run, "retry", error=BUSY)
        try:
            return self._work(run, line)
        except StateError:
            return self._ended(run, "dropped")
        except RetryableError as exc:
            what = "back" if line.broken else "retry"
            return self._ended(run, what, error=BUSY, retry_after_s=exc.retry_after_s, has_failed=not line.broken)
        finally:
            line.close()

    def _work(self, run: RunInProgress, line: Line) -> Ended:
        a, rng = run.assignment, self.world.rng
        claim = Claim(holder=a.run_id, epoch=a.epoch, worker_id=a.worker_id)
        books = RunBooks(cast(Any, line), tenant_id=a.tenant_id, run_id=a.run_id, claim=claim, settlement=ScheduleSettlement())
        if books.load().dry_run:
            books.block(["dry run"])
            return self._ended(run, "concluded", state="blocked")
        for number in range(rng.choice((0, 1, 1, 2, 3))):
            if run.shall_yield:
                return self._ended(run, "back")
            if run.is_cancelled():
                return self._stop(run, books)
            chunk = RowRange(number, number)
            books.mark_sent([SentChunk(partition=0, range=chunk)])
            effect = Effect(process=self.process, role="child", store="sink", name="prepare")
            self.world.perform(effect, lambda: None, lose=lambda: RetryableError("timeout", next_step="wait", retry_after_s=None))
            while not run.fence.is_passable():
                self.world.baton.sleep(0.5, is_wakeable=True)
            if run.is_cancelled():
                return self._stop(run, books)
            self._call(run, rng.choice((0.05, 0.3, 1.0, 4.0, 8.5)))
            books.record_acks([Ack(partition=0, range=chunk, verdict="accepted")], [])
            run.count({"sent": number + 1})
            run.destination.answered()
            self._say(Tick(counters=run.counters, answers=run.destination.answers))
        return self._end(run, books)

    def _call(self, run: RunInProgress, seconds: float) -> None:
        """No point lies between the fence and this."""
        a, now_ms = run.assignment, self.world.clock.now_ms
        key, is_exclusive = self.world.key_of_run(a.run_id)
        end_ms = now_ms + round(seconds * 1_000)
        call = Call(run_id=a.run_id, overlap_key=key, is_exclusive=is_exclusive, epoch=a.epoch, start_ms=now_ms, end_ms=end_ms)
        self.world.watch.check_call(call)
        self.world.calls.append(call)

        def cut() -> None:
            call.end_ms = min(call.end_ms, self.world.clock.now_ms)

        self.process.at_kill.append(cut)
        if self.process.parent is not None:
            self.process.parent.at_kill.append(cut)
        self.world.baton.sleep(seconds)
        effect = Effect(process=self.process, role="child", store="sink", name="call")
        self.world.perform(effect, lambda: None, lose=lambda: RetryableError("timeout", next_step="wait", retry_after_s=None))

    def _end(self, run: RunInProgress, books: RunBooks) -> Ended:
        what = self.world.rng.choices(("succeeded", "retry", "throttled", "failed", "crash", "hang"), (70, 10, 4, 6, 6, 4))[0]
        match what:
            case "crash":
                self.world.baton.kill(self.process)
                self.world.baton.point("crashes")
            case "hang":
                self.world.failures[run.assignment.run_id] += 1  # whoever ends it, says so
                until_ms = self.world.clock.now_ms + LONGEST_HANG_MS
                while not run.is_cancelled() and self.world.clock.now_ms < until_ms:
                    self.world.baton.sleep(3, is_wakeable=True)
                if run.is_cancelled():
                    return self._stop(run, books)
            case "throttled":
                raise RetryableError("asked to wait", next_step="wait", retry_after_s=3)
            case "retry" if not run.assignment.is_last_attempt:
                raise RetryableError("busy", next_step="wait", retry_after_s=None)
        return self._conclude(run, books, "succeeded" if what == "succeeded" else "failed")

    def _stop(self, run: RunInProgress, books: RunBooks) -> Ended:
        match run.cancel_reason:
            case "cancelled":
                return self._conclude(run, books, "cancelled")
            case "stalled" if not run.assignment.is_last_attempt:
                return self._ended(run, "retry", error=BUSY)
            case None:  # drained
                return self._ended(run, "back")
            case _:
                return self._conclude(run, books, "failed")

    def _conclude(self, run: RunInProgress, books: RunBooks, outcome: str) -> Ended:
        books.finish(outcome=outcome, reason="", counts={}, error=None, fold=None, sync_id=run.assignment.sync_id)
        return self._ended(run, "concluded", state=outcome)

    def _ended(
        self,
        run: RunInProgress,
        kind: Any,
        *,
        state: str = "",
        error: RunError = NO_ERROR,
        retry_after_s: float | None = None,
        has_failed: bool = False,
    ) -> Ended:
        a = run.assignment
        if kind == "retry":
            self.world.failures[a.run_id] += 1
        seen: dict[str, Any] = {"answers": run.destination.answers, "has_failed": has_failed}
        return Ended(run_id=a.run_id, epoch=a.epoch, kind=kind, state=state, error=error, retry_after_s=retry_after_s, **seen)
