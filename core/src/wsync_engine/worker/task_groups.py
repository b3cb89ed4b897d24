"""Control groups of a worker's children: the kernel ends the one that takes more memory than a task may, at once and with all that it started.

The supervisor looks once a second; between two looks a child can take what the machine has. Where the operator hands over a control group
(`WSYNC_TASK_CGROUP`), each child gets one of its own below it. Both versions of the kernel's interface are known; see cgroups(7).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from psutil import pid_exists

from wsync_sdk.errors import ConfigError

__all__ = ["TaskGroups"]

_PREFIX = "wsync-task-"


class TaskGroups:
    """The groups below `folder`, each with `limit_bytes` of memory. One thread."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        """Check that groups can be made, and remove those of workers that are gone.

        :raises ConfigError: `folder` is no control group with memory that this process may divide.
        """
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._is_unified = (folder / "cgroup.controllers").exists()
        self._ended: set[int] = set()
        try:
            self._check()
            self._sweep()
            self.add(None)
        except OSError as exc:
            raise _unusable(folder, _REASONS.get(exc.errno or 0, os.strerror(exc.errno or 0))) from None

    def _check(self) -> None:
        if not self._is_unified:
            if not (self._folder / "memory.limit_in_bytes").exists():
                raise _unusable(self._folder, "it is no control group with a limit of memory")
            return
        if "memory" not in (self._folder / "cgroup.controllers").read_text().split():
            raise _unusable(self._folder, "the controller `memory` is not handed over to it")
        (self._folder / "cgroup.subtree_control").write_text("+memory")

    def _sweep(self) -> None:
        for group in self._folder.glob(f"{_PREFIX}*"):
            worker = group.name.removeprefix(_PREFIX).partition("-")[0]
            if not (worker.isdigit() and pid_exists(int(worker))):  # a worker that lives has yet to read how its child ended
                with suppress(OSError):  # a child is still in it
                    group.rmdir()

    def add(self, process_id: int | None) -> None:
        """Put a process into a group of its own; None: only try it.

        :raises OSError: the kernel refuses, or the process is gone.
        """
        self._remove_ended()
        group = self._group(process_id or os.getpid())
        group.mkdir(exist_ok=True)
        limit = str(self._limit_bytes)
        if self._is_unified:
            (group / "memory.max").write_text(limit)
            (group / "memory.oom.group").write_text("1")
            _write_if_possible(group / "memory.swap.max", "0")
        else:
            (group / "memory.limit_in_bytes").write_text(limit)
            _write_if_possible(group / "memory.memsw.limit_in_bytes", limit)
        if process_id is None:
            group.rmdir()
        else:
            (group / "cgroup.procs").write_text(str(process_id))

    def is_exceeded(self, process_id: int) -> bool:
        """Whether the kernel ended a process of this group for want of memory."""
        try:
            events = (self._group(process_id) / ("memory.events" if self._is_unified else "memory.oom_control")).read_text()
        except OSError:
            return False
        counts = dict(line.split() for line in events.splitlines())
        return int(counts.get("oom_kill", 0)) > 0

    def remove(self, process_id: int) -> None:
        """Its process ends, or has ended: the group goes as soon as it is empty."""
        self._ended.add(process_id)
        self._remove_ended()

    def _remove_ended(self) -> None:
        for process_id in tuple(self._ended):
            try:
                self._group(process_id).rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # not empty yet
                continue
            self._ended.discard(process_id)

    def _group(self, process_id: int) -> Path:
        return self._folder / f"{_PREFIX}{os.getpid()}-{process_id}"


def _write_if_possible(file: Path, text: str) -> None:
    """Not every kernel counts swap; then the supervisor still sees what a task takes."""
    with suppress(OSError):
        file.write_text(text)


_REASONS = {
    errno.EBUSY: "it holds processes itself, and groups below it can't then have limits (systemd: `DelegateSubgroup=worker`)",
    errno.EACCES: "this user may not write in it (systemd: `Delegate=memory`)",
    errno.EPERM: "this user may not write in it (systemd: `Delegate=memory`)",
    errno.EROFS: "it is mounted read-only",
    errno.ENOENT: "it is no control group with a limit of memory",
}


def _unusable(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the control group `{folder}` can't take tasks: {why}",
        next_step="hand it over to this user, or unset WSYNC_TASK_CGROUP: the worker then watches memory once a second",
    )
