"""The processes that `up` starts: whether they are there, why one of them ended, and that all of them end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from wsync_engine.cli.output import say

__all__ = ["Role", "Stop", "end", "watched"]

WATCH_S = 0.2
END_S = 90.0
"""Longer than a worker takes that lets its runs finish, and its lease after that."""


@dataclass(slots=True)
class Stop:
    """SIGTERM and SIGINT since the start: `event` is set by the first; each calls `then`."""

    event: threading.Event = field(default_factory=threading.Event)
    signals: int = 0
    then: Callable[[], None] | None = None

    @classmethod
    def on_signals(cls) -> Stop:
        """Heed them from now on."""
        stop = cls()

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            stop.signals += 1
            stop.event.set()
            if stop.then is not None:
                stop.then()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        return stop


class Role:
    """A scheduler or a worker as a process of its own."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], ready: int) -> None:
        """Use `start`."""
        self.name = name
        self.process = process
        self._ready = ready
        self._is_ready = False

    @classmethod
    def start(cls, name: str, *options: str) -> Role:
        """Start it. Embedded servers are its own: whoever comes first starts them."""
        ready, sign = os.pipe()
        os.set_blocking(ready, False)
        # In a group of its own: Ctrl-C reaches it once, through us; -P: the current folder holds no modules of ours.
        command = [sys.executable, "-P", "-m", "wsync_engine.cli", name, *options, "--ready-fd", str(sign)]
        try:
            process = subprocess.Popen(command, start_new_session=True, pass_fds=(sign,))
        finally:
            os.close(sign)
        return cls(name, process, ready)

    @property
    def is_ready(self) -> bool:
        """Whether it has shown itself."""
        if not self._is_ready:
            with suppress(BlockingIOError):
                self._is_ready = bool(os.read(self._ready, 1))
        return self._is_ready

    @property
    def exit_code(self) -> int:
        """Of one that has ended; negative: the signal that ended it."""
        return int(self.process.returncode)

    @property
    def how_it_ended(self) -> str:
        """In words."""
        if self.exit_code < 0:
            return f"was ended by {signal.Signals(-self.exit_code).name}"
        return f"ended with exit code {self.exit_code}"


def watched(roles: Sequence[Role], stop: Stop) -> Role | None:
    """Until one of them ends, which is returned, or a signal comes; says once that all are there."""
    is_said = False
    while not stop.event.wait(WATCH_S):
        for role in roles:
            if role.process.poll() is not None:
                return role
        if not is_said and all(role.is_ready for role in roles):
            say("running; Ctrl-C ends it")
            is_said = True
    return None


def end(roles: Sequence[Role], stop: Stop) -> None:
    """End those that live; a signal that comes meanwhile is handed on, and lets a worker end its runs at once. Never waits for ever."""
    processes = [role.process for role in roles]
    kill_at_s = time.monotonic() + END_S
    told = -1
    while any(process.poll() is None for process in processes):
        if told < stop.signals:
            told = stop.signals
            _send(processes, signal.SIGTERM)
        if time.monotonic() > kill_at_s:
            _send(processes, signal.SIGKILL)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(WATCH_S)


def _send(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
