from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from wsync_engine.embedded.servers import DATABASE, EmbeddedServers

from .world import Ground

_numbers = itertools.count()


def make_ground(servers: EmbeddedServers, name: str) -> Ground:
    """A migrated database of that name, and Valkey's database 14."""
    ends = servers.endpoints
    with psycopg.connect(ends.admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER wsync_owner").format(sql.Identifier(name), sql.Identifier(DATABASE)))
    urls = (ends.database_url_engine, ends.database_url_api)
    engine_url, api_url = (url.removesuffix(f"/{DATABASE}") + f"/{name}" for url in urls)
    admin_url = ends.admin_url.removesuffix("/postgres") + f"/{name}"
    return Ground(admin_url, engine_url, api_url, ends.redis_url.removesuffix("/0") + "/14")


@pytest.fixture(scope="session")
def ground(servers: EmbeddedServers) -> Iterator[Any]:
    """One database for all seeds of a session: each clears it, as making one costs more than playing a seed."""
    made = make_ground(servers, f"simulation_{next(_numbers)}")
    yield made
    made.close()
