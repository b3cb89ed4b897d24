"""Processes that are not our children: whether they live, are who we think they are, and have gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import psutil

__all__ = ["free_port", "is_running", "wait_until"]


def is_running(pid: int, *, words: tuple[str, ...]) -> bool:
    """Whether a live process has this id and every word in its command line: an id in a stale file may be another's by now."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # dead, its parent does not care: PID 1 of some containers
            return False
        command = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return all(word in command for word in words)


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Whether the condition became true in time."""
    give_up_at_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at_s:
            return False
        time.sleep(0.02)
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago; who uses it must be ready to lose it to another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
