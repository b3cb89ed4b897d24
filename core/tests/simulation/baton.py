"""Actors on threads, of which only the one that holds the baton moves; who gets it next is the seed's choice.

An actor gives the baton back before each effect (`point`), to wait for simulated time (`sleep`), and, without its doing, while its statement
waits for a lock that another actor's transaction holds: `waiting_for_locks` tells that from a slow server. Time moves when nobody is ready.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar
from uuid import UUID

from .clock import Clock

T = TypeVar("T")
LOCK_CHECK_S = 0.01
STUCK_S = 60.0
MOST_MOVES_AT_ONCE = 3_000


def held_lock() -> threading.Lock:
    """Released by one thread, taken by another: a semaphore, but a good deal quicker."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Killed(BaseException):
    """The process is gone: nothing that it does from here on has an effect."""


class Stuck(AssertionError):
    """Nobody is ready, nobody sleeps, and somebody waits: a deadlock of the engine or of the simulation."""


class State(Enum):
    READY = "ready"
    RUNNING = "running"
    SLEEPING = "sleeping"
    BLOCKED = "blocked"
    UNBLOCKED = "unblocked"
    ENDED = "ended"


@dataclass(eq=False)
class Process:
    """What is killed, frozen and cut off as one. Its clock of waiting has an offset and a rate of its own."""

    name: str
    kind: str
    clock: Clock
    offset_s: float = 0.0
    rate: float = 1.0
    parent: Process | None = None
    was_killed: bool = False
    is_draining: bool = False
    writes_to: UUID | None = None
    frozen_until_ms: int = 0
    cut_until_ms: dict[str, int] = field(default_factory=dict)
    at_kill: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_dead(self) -> bool:
        return self.was_killed or (self.parent is not None and self.parent.is_dead)

    def monotonic_s(self) -> float:
        return self.offset_s + self.clock.now_s * self.rate

    def thaws_at_ms(self) -> int:
        if self.parent is None:
            return self.frozen_until_ms
        return max(self.frozen_until_ms, self.parent.frozen_until_ms)

    def is_cut(self, store: str) -> bool:
        until_ms = self.cut_until_ms.get(store, 0)
        return self.clock.now_ms < until_ms or (self.parent is not None and self.parent.is_cut(store))


@dataclass(eq=False)
class Actor:
    """One thread of a process."""

    name: str
    process: Process
    thread: threading.Thread | None = None
    go: threading.Lock = field(default_factory=held_lock)
    state: State = State.READY
    wake_at_ms: int = 0
    is_wakeable: bool = False
    backend_pid: int | None = None
    blocked_since_ms: int = 0
    lock_timeout_ms: int = 2_000
    is_out_of_patience: bool = False
    doing: str = ""
    error: BaseException | None = None


class Baton:
    """Who moves.

    :param is_blocked: whether the backend of that pid waits for a lock. :param cancel: makes its statement end.
    :param trace: told each move.
    """

    def __init__(
        self,
        rng: random.Random,
        clock: Clock,
        *,
        is_blocked: Callable[[int], bool],
        cancel: Callable[[int], None],
        trace: Callable[[str, str], None],
    ) -> None:
        self.clock = clock
        self.actors: list[Actor] = []
        self.moves = 0
        self.has_changed_locks = False
        self.only: Actor | None = None
        self.on_blocked: Callable[[Actor], None] = lambda actor: None
        self._rng = rng
        self._is_blocked = is_blocked
        self._cancel = cancel
        self._trace = trace
        self._back = held_lock()
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._local = threading.local()
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._running: Actor | None = None
        self._moves_now = 0
        self._moved_at_ms = 0
        self._is_over = False
        self._error: BaseException | None = None

    # -- for actors

    def current(self) -> Actor:
        actor = self._local.actor
        assert isinstance(actor, Actor)
        return actor

    def point(self, doing: str) -> None:
        """Somebody else may go first."""
        actor = self.current()
        actor.doing = doing
        self._give_back(actor, State.READY)

    def sleep(self, seconds: float, *, is_wakeable: bool = False) -> None:
        """Until that much time has passed, or `wake`."""
        actor = self.current()
        actor.wake_at_ms = self.clock.now_ms + max(1, round(seconds * 1_000))
        actor.is_wakeable = is_wakeable
        actor.doing = "goes on"
        self._give_back(actor, State.SLEEPING)

    def wake(self, actor: Actor | None) -> None:
        if actor is not None and actor.state is State.SLEEPING and actor.is_wakeable:
            actor.state = State.READY

    def statement(self, backend_pid: int, do: Callable[[], T]) -> T:
        """Run what may wait for a lock; while it does, others move."""
        actor = self.current()
        actor.backend_pid = backend_pid
        try:
            return do()
        finally:
            with self._lock:
                actor.backend_pid = None
                was_blocked = actor.state is State.BLOCKED
                if was_blocked:
                    actor.state = State.UNBLOCKED
                    self._settled.notify_all()
            if was_blocked:
                self._take(actor)

    def _give_back(self, actor: Actor, state: State) -> None:
        if actor.process.is_dead:
            raise Killed
        with self._lock:
            actor.state = state
        following = self._choose()
        if following is actor:
            self._start(actor)
        else:
            self._pass_on(following)
            actor.go.acquire()
        if actor.process.is_dead:
            raise Killed

    def _take(self, actor: Actor) -> None:
        actor.go.acquire()
        if actor.process.is_dead:
            raise Killed

    def _choose(self) -> Actor | None:
        """Who goes next; None: nobody can, before time moves. Called by whoever has the baton."""
        if self.has_changed_locks:
            self.has_changed_locks = False
            self._settle_blocked()
        ready = [actor for actor in self.actors if self.is_ready(actor)]
        if not ready:
            return None
        actor = self.only if self.only in ready else self._rng.choice(ready)
        assert actor is not None
        self.moves += 1
        self._moves_now = self._moves_now + 1 if self._moved_at_ms == self.clock.now_ms else 0
        self._moved_at_ms = self.clock.now_ms
        if self._moves_now > MOST_MOVES_AT_ONCE:
            raise Stuck(f"time does not pass any more: {actor.name}, {actor.doing}")
        self._trace(actor.name, actor.doing)
        return actor

    def _next(self) -> Actor | None:
        """As `_choose`, where nobody could take an exception."""
        try:
            return self._choose()
        except BaseException as exc:
            self._error = exc
            return None

    def _start(self, actor: Actor) -> None:
        with self._lock:
            actor.state = State.RUNNING
            self._running = actor

    def _pass_on(self, following: Actor | None) -> None:
        if following is None:
            self._back.release()
        else:
            self._start(following)
            following.go.release()

    # -- for the one who conducts

    def spawn(self, process: Process, name: str, target: Callable[[], None]) -> Actor:
        actor = Actor(name=name, process=process)

        def life() -> None:
            self._local.actor = actor
            try:
                self._take(actor)
                target()
            except Killed:
                pass
            except BaseException as exc:
                actor.error = exc
            with self._lock:
                actor.state = State.ENDED
            if not self._is_over:
                self.actors.remove(actor)
                self._error = self._error or actor.error
                self._pass_on(None if self._error is not None else self._next())

        actor.thread = threading.Thread(target=life, name=name, daemon=True)
        actor.thread.start()
        self.actors.append(actor)
        return actor

    def at(self, at_ms: int, do: Callable[[], None]) -> None:
        """A thing that happens by itself at a time."""
        heapq.heappush(self._timers, (at_ms, next(self._numbers), do))

    def kill(self, process: Process) -> None:
        """The process ends here; its threads end when they would move next, and nothing that they still try has an effect."""
        process.was_killed = True
        self._trace(process.name, "is killed")
        for actor in self.actors:
            if actor.process.is_dead and actor.state is State.BLOCKED and actor.backend_pid is not None:
                self._cancel(actor.backend_pid)
                self._await_statement(actor)
            if actor.process.is_dead and actor.state in {State.SLEEPING, State.UNBLOCKED}:
                actor.state = State.READY
        for do in process.at_kill:
            do()

    def go(self) -> None:
        """Everybody moves, one after the other, until nobody can before time moves."""
        following = self._choose()
        while following is not None:
            self._pass_on(following)
            following = self._watch()
        if self._error is not None:
            raise self._error

    def _watch(self) -> Actor | None:
        """While the actors pass the baton among themselves: take it from one that waits for a lock. Returns who goes on."""
        seen, waited_s = self.moves, 0.0
        while not self._back.acquire(timeout=LOCK_CHECK_S):
            waited_s = 0.0 if self.moves != seen else waited_s + LOCK_CHECK_S
            seen = self.moves
            running = self._running
            if running is not None and waited_s and self._note_blocked(running):
                return self._choose()
            if waited_s > STUCK_S:
                raise Stuck(f"{running.name if running else 'nobody'} does not come back")
        return None

    def pass_time(self, until_ms: int) -> bool:
        """Time goes on to the next thing that happens; False: that is later than `until_ms`, which it is now."""
        at_ms = min([until_ms + 1, *self._next_times()])
        if at_ms > until_ms:
            self.clock.move_to(until_ms)
            return False
        self.clock.move_to(at_ms)
        while self._timers and self._timers[0][0] <= self.clock.now_ms:
            heapq.heappop(self._timers)[2]()
        for actor in self.actors:
            if actor.state is State.SLEEPING and actor.wake_at_ms <= self.clock.now_ms:
                actor.state = State.READY
            if actor.state is State.BLOCKED and actor.blocked_since_ms + actor.lock_timeout_ms <= self.clock.now_ms:
                self._end_lock_wait(actor)
        return True

    def finish(self) -> None:
        """End all threads."""
        self._is_over = True
        for process in {actor.process for actor in self.actors}:
            process.was_killed = True
        for actor in list(self.actors):
            if actor.state is State.BLOCKED and actor.backend_pid is not None:
                self._cancel(actor.backend_pid)
                self._await_statement(actor)
        for actor in list(self.actors):
            actor.go.release()
            assert actor.thread is not None
            actor.thread.join(STUCK_S)
        self.actors.clear()

    def is_ready(self, actor: Actor) -> bool:
        state = actor.state
        if state is not State.READY and state is not State.UNBLOCKED:
            return state is State.SLEEPING and actor.process.is_dead
        return actor.process.is_dead or actor.process.thaws_at_ms() <= self.clock.now_ms

    def _next_times(self) -> list[int]:
        times = [self._timers[0][0]] if self._timers else []
        for actor in self.actors:
            if actor.state is State.SLEEPING:
                times.append(max(actor.wake_at_ms, actor.process.thaws_at_ms()))
            elif actor.state is State.BLOCKED:
                times.append(actor.blocked_since_ms + actor.lock_timeout_ms)
            elif actor.process.thaws_at_ms() > self.clock.now_ms:
                times.append(actor.process.thaws_at_ms())
        return [max(at_ms, self.clock.now_ms) for at_ms in times]

    def _note_blocked(self, actor: Actor) -> bool:
        with self._lock:
            pid = actor.backend_pid
            if pid is None or actor.state is not State.RUNNING or not self._is_blocked(pid):
                return False
            actor.state = State.BLOCKED
            actor.blocked_since_ms = self.clock.now_ms
        self._trace(actor.name, "waits for a lock")
        self.on_blocked(actor)
        return True

    def _settle_blocked(self) -> None:
        """After locks were given back: whoever got one is ready, before anybody else is chosen."""
        for actor in self.actors:
            while actor.state is State.BLOCKED:
                pid = actor.backend_pid
                if pid is not None and self._is_blocked(pid):
                    break
                self._await_statement(actor, timeout_s=0.002)

    def _await_statement(self, actor: Actor, timeout_s: float = STUCK_S) -> None:
        with self._settled:
            self._settled.wait_for(lambda: actor.state is not State.BLOCKED, timeout_s)

    def _end_lock_wait(self, actor: Actor) -> None:
        if actor.backend_pid is None:
            return
        actor.is_out_of_patience = True
        self._cancel(actor.backend_pid)
        self._await_statement(actor)
