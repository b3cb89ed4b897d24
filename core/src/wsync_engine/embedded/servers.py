"""The embedded servers of one data folder: shared by all processes that use it, stopped by the last that leaves.

passwords.json   of the five logins
servers.lock     held exclusively while servers are started or stopped
attached.lock    held shared by each process that uses them, so the kernel counts, also after a SIGKILL
postgres/        the cluster          valkey/   log and process id
"""

from __future__ import annotations

import atexit
import fcntl
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from wsync_engine.embedded.account import ServerAccount
from wsync_engine.embedded.passwords import Passwords
from wsync_engine.embedded.postgres import EmbeddedPostgres
from wsync_engine.embedded.valkey import EmbeddedValkey
from wsync_engine.state.database import connect, ensure_schema
from wsync_engine.state.roles import API, ENGINE, OWNER, RolePasswords, create_database, create_roles
from wsync_sdk.errors import ConfigError

__all__ = ["DATABASE", "EmbeddedServers", "Endpoints", "has_servers"]

DATABASE = "wsync"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the servers are, passwords included; never printed."""

    database_url_owner: str = field(repr=False)
    database_url_engine: str = field(repr=False)
    database_url_api: str = field(repr=False)
    redis_url: str = field(repr=False)
    admin_url: str = field(repr=False)
    """The superuser's, for making databases in tests and for repairs; no running part of the engine uses it."""


class EmbeddedServers:
    """One process's use of the servers of a data folder, until `leave`. Also a context manager."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres, valkey: EmbeddedValkey, endpoints: Endpoints, attached: int) -> None:
        """Use `start`."""
        self.endpoints = endpoints
        self._folder = folder
        self._postgres = postgres
        self._valkey = valkey
        self._attached: int | None = attached
        _in_use.add(self)
        atexit.register(self.leave)

    @classmethod
    def start(cls, data_folder: Path, *, postgres_settings: Mapping[str, str] | None = None) -> Self:
        """Attach to the data folder's servers; start them if none run, with roles, database and schema ready.

        :param data_folder: made if missing, closed to other users.
        :param postgres_settings: for a server that this call starts, e.g. `{"fsync": "off"}` in tests.
        :raises ConfigError: the folder can't be used by this user.
        :raises FatalError: a server does not start.
        """
        folder = _ensure_folder(data_folder)
        with _exclusive(folder / "servers.lock"):
            return cls._start_locked(folder, postgres_settings or {})

    @classmethod
    def _start_locked(cls, folder: Path, settings: Mapping[str, str]) -> Self:
        passwords = Passwords.read_or_make(folder / "passwords.json")
        account = ServerAccount()
        postgres = EmbeddedPostgres(folder / "postgres", account, superuser_password=passwords.superuser, settings=settings)
        valkey = EmbeddedValkey(folder / "valkey", account, password=passwords.redis)
        # From here on another process that leaves does not stop them; taken while nobody can be stopping them.
        attached = _open_lock(folder / "attached.lock")
        try:
            fcntl.flock(attached, fcntl.LOCK_SH)
            redis_port = valkey.ensure_running()
            postgres_port, started = postgres.ensure_running()
            endpoints = _endpoints(postgres_port, redis_port, passwords)
            if started:
                _prepare(endpoints, passwords)
            ensure_schema(endpoints.database_url_owner)
        except BaseException:
            os.close(attached)
            raise
        return cls(folder, postgres, valkey, endpoints, attached)

    def leave(self) -> None:
        """Stop using the servers; the last process that leaves stops them. Twice is once."""
        attached, self._attached = self._attached, None
        atexit.unregister(self.leave)
        if attached is None or not self._folder.exists():
            return
        with _exclusive(self._folder / "servers.lock"):
            if _is_last(attached):
                self._postgres.stop()
                self._valkey.stop()
            os.close(attached)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    def _forget(self) -> None:
        """In a forked child: the use is the parent's. Closing our copy of the descriptor leaves the parent's lock in place."""
        attached, self._attached = self._attached, None
        atexit.unregister(self.leave)
        if attached is not None:
            os.close(attached)


def has_servers(data_folder: Path) -> bool:
    """Whether a data folder has servers already; False: `start` would make them."""
    return (data_folder.expanduser() / "postgres").exists()


_in_use: weakref.WeakSet[EmbeddedServers] = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for servers in list(_in_use):
        servers._forget()


os.register_at_fork(after_in_child=_forget_all_after_fork)


def _ensure_folder(path: Path) -> Path:
    folder = path.expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(_open_lock(folder / "servers.lock"))
    except OSError as exc:
        reason = exc.strerror or "it can't be written"
        raise ConfigError(f"the data folder {folder} can't be used: {reason}", next_step="set WSYNC_DATA_DIR to another folder") from exc
    return folder


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_last(attached: int) -> bool:
    try:
        fcntl.flock(attached, fcntl.LOCK_EX | fcntl.LOCK_NB)  # turns our shared lock into an exclusive one, if no other is there
    except BlockingIOError:
        return False
    return True


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _endpoints(postgres_port: int, redis_port: int, passwords: Passwords) -> Endpoints:
    def url(login: str, password: str, database: str = DATABASE) -> str:
        return f"postgresql://{login}:{password}@127.0.0.1:{postgres_port}/{database}"

    return Endpoints(
        database_url_owner=url(OWNER, passwords.owner),
        database_url_engine=url(ENGINE, passwords.engine),
        database_url_api=url(API, passwords.api),
        redis_url=f"redis://:{passwords.redis}@127.0.0.1:{redis_port}/0",
        admin_url=url("postgres", passwords.superuser, "postgres"),
    )


def _prepare(endpoints: Endpoints, passwords: Passwords) -> None:
    roles = RolePasswords(owner=passwords.owner, engine=passwords.engine, api=passwords.api)
    with connect(endpoints.admin_url, application_name="wsync embedded") as admin:
        create_roles(admin, roles)
        create_database(admin, DATABASE)
