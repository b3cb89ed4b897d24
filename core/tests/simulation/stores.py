"""Connections of simulated processes to the real stores: each statement and each command is an effect that may be killed, lost or delayed.

Postgres' connections come from a pool, because opening one costs more than a whole simulated transaction; a broken or closed one is rolled back,
as its server would do it. Time is told to each connection (`wsync.test_now`), and its lock timeouts are those of simulated time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import redis
from psycopg.pq import TransactionStatus

from wsync_engine.index import scripts
from wsync_engine.index.connection import Connections
from wsync_engine.index.due_index import LOAD_LOCK_MS
from wsync_engine.index.layout import key

from .baton import Killed, Process

if TYPE_CHECKING:
    from .world import World

_NAME = re.compile(r"/\* (\w+) \*/")
IDLE_IN_TRANSACTION_MS = 10_000


@dataclass(slots=True, kw_only=True)
class Effect:
    """Something that a process does to a store or a destination.

    :param role: scheduler, worker, child, producer. :param store: postgres, redis, sink. :param name: of the statement, script or command.
    :param statements: of its transaction so far. :param result: once it is done.
    """

    process: Process
    role: str
    store: str
    name: str
    statements: tuple[str, ...] = ()
    result: Any = None

    def __str__(self) -> str:
        return f"{self.store} {self.name}"


def statement_name(statement: bytes | str) -> str:
    """The name that the engine's statements carry, else their first words."""
    text = statement.decode() if isinstance(statement, bytes) else statement
    found = _NAME.match(text)
    words = "_".join(re.findall(r"\w+", text)[:4]).lower()
    return found[1] if found else words + "_for_update" * text.endswith("FOR UPDATE")


class Line:
    """A process's connection to Postgres: what the engine uses of `psycopg.Connection`."""

    def __init__(self, world: World, process: Process, role: str, url: str) -> None:
        self.world = world
        self.process = process
        self.role = role
        self.url = url
        self.real = world.pool.take(url)
        self.depth = 0
        self.transactions = 0
        self.statements: tuple[str, ...] = ()
        self.lock_timeout_ms = 2_000
        self.is_lost = False
        self._told_ms = -1
        process.at_kill.append(self.break_off)

    # -- as psycopg.Connection

    @property
    def closed(self) -> bool:
        return self.is_lost

    @property
    def broken(self) -> bool:
        return self.is_lost

    @property
    def info(self) -> Line:
        return self

    @property
    def transaction_status(self) -> TransactionStatus:
        return TransactionStatus.INTRANS if self.depth else TransactionStatus.IDLE

    def close(self) -> None:
        self.break_off()

    def cursor(self, row_factory: Any = None) -> SimulatedCursor:
        return SimulatedCursor(self, self.real.cursor(row_factory=row_factory) if row_factory else self.real.cursor())

    def execute(self, query: bytes | str, parameters: Any = None) -> SimulatedCursor:
        return self.cursor().execute(query, parameters)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        except BaseException:
            self._roll_back()
            raise
        self._commit()

    # -- inside

    def break_off(self) -> None:
        """The connection is gone; its server rolls back what was not committed."""
        if not self.is_lost:
            self.is_lost = True
            self.world.pool.give_back(self.url, self.real)
            self.world.baton.has_changed_locks = True

    def lose(self) -> psycopg.OperationalError:
        self.break_off()
        return psycopg.OperationalError("the connection was lost")

    def run(self, query: bytes | str, do: Callable[[], Any]) -> Any:
        name = statement_name(query)
        self.statements = (*(self.statements if self.depth else ()), name)
        return self._perform(name, do if self.depth else lambda: self._alone(name, do))

    def _alone(self, name: str, do: Callable[[], Any]) -> Any:
        """A statement that is a transaction by itself."""
        if not self.world.faults.loses_commit(self, name):
            return do()
        self.real.execute("BEGIN")
        try:
            return do()
        finally:
            self.real.execute("ROLLBACK")

    def _begin(self) -> None:
        self._check()
        self.depth += 1
        if self.depth > 1:
            self.real.execute(f"SAVEPOINT s{self.depth}")  # type: ignore[arg-type]
            return
        self.transactions += 1
        self.statements = ()
        self.real.execute(f"BEGIN; SELECT set_config('wsync.test_now', '{self.world.clock.now.isoformat()}', false)")  # type: ignore[arg-type]
        self._told_ms = self.world.clock.now_ms

    def _commit(self) -> None:
        if self.depth > 1:
            self._check()
            self.real.execute(f"RELEASE SAVEPOINT s{self.depth}")  # type: ignore[arg-type]
            self.depth -= 1
            return
        try:
            self._perform("commit", self._really_commit)
        except BaseException:
            self._end_transaction("ROLLBACK")
            raise
        finally:
            self.depth = 0  # not before: until then it is open

    def _really_commit(self) -> None:
        self._end_transaction("ROLLBACK" if self.world.faults.loses_commit(self, "commit") else "COMMIT")

    def _roll_back(self) -> None:
        self.depth -= 1
        if self.is_lost or self.process.is_dead:
            return
        if self.depth:
            self.real.execute(f"ROLLBACK TO SAVEPOINT s{self.depth + 1}")  # type: ignore[arg-type]
        else:
            self._end_transaction("ROLLBACK")

    def _end_transaction(self, how: str) -> None:
        if not self.is_lost and self.real.info.transaction_status != TransactionStatus.IDLE:
            self.real.execute(how)  # type: ignore[arg-type]
        if how == "ROLLBACK":
            self._told_ms = -1  # what it was told inside is forgotten
        self.lock_timeout_ms = 2_000
        self.world.baton.has_changed_locks = True

    def _check(self) -> None:
        if self.process.is_dead:
            raise Killed
        if self.is_lost:
            raise psycopg.OperationalError("the connection is closed")

    def _perform(self, name: str, do: Callable[[], Any]) -> Any:
        self._check()
        effect = Effect(process=self.process, role=self.role, store="postgres", name=name, statements=self.statements)
        return self.world.perform(effect, lambda: self._do(do), lose=self.lose, line=self)

    def _do(self, do: Callable[[], Any]) -> Any:
        self._check()
        actor = self.world.baton.current()
        actor.lock_timeout_ms = self.lock_timeout_ms
        actor.is_out_of_patience = False
        self._tell_time()
        try:
            result = self.world.baton.statement(self.real.info.backend_pid, do)
        except psycopg.errors.QueryCanceled as exc:
            if self.process.is_dead:
                raise Killed from exc
            if actor.is_out_of_patience:
                raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout") from exc
            raise
        if not self.depth:
            self.world.baton.has_changed_locks = True
        return result

    def _tell_time(self) -> None:
        now_ms = self.world.clock.now_ms
        if self._told_ms != now_ms:
            self.real.execute("SELECT set_config('wsync.test_now', %s, false)", [self.world.clock.now.isoformat()])
            self._told_ms = now_ms

    def freeze(self, milliseconds: int) -> None:
        """Its process stands still: a server does not wait for ever for the rest of a transaction."""
        if self.depth and milliseconds >= IDLE_IN_TRANSACTION_MS:
            number = self.transactions

            def end() -> None:
                if self.depth and self.transactions == number:
                    self.break_off()

            self.world.baton.at(self.world.clock.now_ms + IDLE_IN_TRANSACTION_MS, end)


class SimulatedCursor:
    """What the engine uses of `psycopg.Cursor`."""

    def __init__(self, line: Line, real: psycopg.Cursor[Any]) -> None:
        self._line = line
        self._real = real

    def __enter__(self) -> SimulatedCursor:
        return self

    def __exit__(self, *_: object) -> None:
        self._real.close()

    @property
    def description(self) -> Any:
        return self._real.description

    @property
    def rowcount(self) -> int:
        return self._real.rowcount

    def execute(self, query: bytes | str, parameters: Any = None) -> SimulatedCursor:
        text = query if isinstance(query, bytes) else query.encode()
        if b"'lock_timeout'" in text:  # its own time is real; ours ends it in simulated time
            self._line.lock_timeout_ms, parameters = int(parameters[0]), ["0"]
        self._line.run(text, lambda: self._real.execute(query, parameters))  # type: ignore[arg-type]
        return self

    def executemany(self, query: bytes | str, rows: Any) -> None:
        self._line.run(query, lambda: self._real.executemany(query, rows))  # type: ignore[arg-type]

    def fetchall(self) -> list[Any]:
        return self._real.fetchall()

    def fetchone(self) -> Any:
        return self._real.fetchone()


class Pool:
    """Real connections that are used again."""

    def __init__(self) -> None:
        self._idle: dict[str, list[psycopg.Connection[Any]]] = {}
        self._all: list[psycopg.Connection[Any]] = []

    def take(self, url: str) -> psycopg.Connection[Any]:
        idle = self._idle.setdefault(url, [])
        if idle:
            return idle.pop()
        real = psycopg.connect(url, autocommit=True, application_name="simulation")
        self._all.append(real)
        return real

    def give_back(self, url: str, real: psycopg.Connection[Any]) -> None:
        if real.info.transaction_status == TransactionStatus.ACTIVE:  # its thread is still inside: it is not used again
            self._all.remove(real)
            with suppress(psycopg.Error):
                real.close()
            return
        if real.info.transaction_status != TransactionStatus.IDLE:
            real.execute("ROLLBACK")
        self._idle.setdefault(url, []).append(real)

    def close(self) -> None:
        for real in self._all:
            real.close()


def script_by_digest() -> dict[str, str]:
    names = [path.stem for path in scripts._FOLDER.glob("*.lua") if path.stem not in {"prelude", "runs"}]
    return {scripts._source(name)[1]: name for name in names}


class SimulatedRedis(redis.Redis):
    """A process's client of the index: each command is an effect. The server's identity is the world's, so that it can be another one."""

    def __init__(self, world: World, process: Process, role: str) -> None:
        super().__init__(connection_pool=world.redis_pool)
        self.world = world
        self.process = process
        self.role = role
        self._server = world.server_number
        self.connections = Connections()
        self._script_by_digest = world.script_by_digest

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        effect = Effect(process=self.process, role=self.role, store="redis", name=self._name_of(arguments))
        return self.world.perform(effect, lambda: self._do(arguments, options), lose=self.lose)

    def lose(self) -> redis.exceptions.ConnectionError:
        return redis.exceptions.ConnectionError("the connection was lost")

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        effect = Effect(process=self.process, role=self.role, store="redis", name="pipeline")
        self.world.perform(effect, self._check_server, lose=self.lose)
        return super().pipeline(transaction=transaction, shard_hint=shard_hint)

    def _name_of(self, arguments: tuple[Any, ...]) -> str:
        command = str(arguments[0]).lower()
        if command == "evalsha":
            return self._script_by_digest[arguments[1]]
        if command in {"get", "set", "pexpire", "delete", "exists"}:
            return f"{command} {str(arguments[1]).rpartition(':')[2]}"
        return command

    def _check_server(self) -> None:
        if self._server != self.world.server_number:  # the one that we were connected to is gone
            self._server = self.world.server_number
            self.connections.count += 1
            raise self.lose()

    def _do(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        if self.process.is_dead:
            raise Killed
        self._check_server()
        if arguments[0] == "INFO":
            return {"run_id": f"server{self.world.server_number}", "maxmemory_policy": "noeviction"}
        if len(arguments) > 1 and str(arguments[1]).endswith(":load"):
            self._end_lock(str(arguments[0]))
        return self._send(arguments, options)

    def _send(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """One connection for all, since only one moves at a time; without what redis-py does around each command."""
        connection = self.world.ground.redis_connection
        connection.send_command(*arguments)
        return self.parse_response(connection, arguments[0], **options)

    def _end_lock(self, command: str) -> None:
        """The loader's lock by simulated time: the server's own is real."""
        now_ms = self.world.clock.now_ms
        if now_ms >= self.world.load_lock_ends_ms:
            super().execute_command("DEL", key(0, "load"))
        is_free = not super().execute_command("EXISTS", key(0, "load"))
        if command == "PEXPIRE" or (command == "SET" and is_free):
            self.world.load_lock_ends_ms = now_ms + LOAD_LOCK_MS
