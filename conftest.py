"""Fixtures of all packages: real servers for the whole session; for each test a database of its own, copied from a migrated one, and an empty Valkey database."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from redis import Redis

from wsync_engine.embedded.servers import DATABASE, EmbeddedServers

# A crash of the machine may cost a test's data: nothing is forced to disk.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
VALKEY_DATABASES = 16
# A busy machine is not a failed test: examples may take as long as they take.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make chaos` and whoever repeats a failing seed choose."""
    parser.addoption("--chaos-s", type=float, default=20.0, help="for how long tests/test_chaos.py lets faults strike, in seconds")
    parser.addoption("--chaos-seed", type=int, default=0, help="of tests/test_chaos.py; 0: a new one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A migrated, empty state store and its three logins."""

    owner_url: str
    engine_url: str
    api_url: str


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of the test's own. Not pytest's: each start of another pytest as root closes the folder above those to the servers' user."""
    with tempfile.TemporaryDirectory(prefix="wsync-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def servers() -> Iterator[EmbeddedServers]:
    """Postgres and Valkey for all tests of one pytest run, in a folder of their own for the reason given at `tmp_path`."""
    with (
        tempfile.TemporaryDirectory(prefix="wsync-tests-", ignore_cleanup_errors=True) as folder,
        EmbeddedServers.start(Path(folder), postgres_settings=FAST) as started,
    ):
        yield started


@pytest.fixture
def database(servers: EmbeddedServers) -> Iterator[Database]:
    """A fresh state store, dropped after the test, whoever is still connected."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(servers.endpoints.admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER wsync_owner").format(sql.Identifier(name), sql.Identifier(DATABASE)))
        ends = servers.endpoints
        urls = (ends.database_url_owner, ends.database_url_engine, ends.database_url_api)
        owner_url, engine_url, api_url = (url.removesuffix(f"/{DATABASE}") + f"/{name}" for url in urls)
        try:
            yield Database(owner_url=owner_url, engine_url=engine_url, api_url=api_url)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def redis_url(servers: EmbeddedServers) -> str:
    """An empty Valkey database; channels are shared by all databases of a server, keys are not."""
    url = servers.endpoints.redis_url.removesuffix("/0") + f"/{next(_numbers) % VALKEY_DATABASES}"
    with Redis.from_url(url) as client:
        client.flushdb()
    return url
