from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis

from wsync_engine.index.due_index import Index, connect


class Clock:
    """Time that stands until it is moved; `now` for us, called by the index for its scripts."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> int:
        return round(self.now.timestamp() * 1_000)

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = connect(redis_url)
    client.flushdb()
    client.config_set("maxmemory-policy", "noeviction")
    yield client
    client.close()


@pytest.fixture
def index(client: redis.Redis, clock: Clock) -> Index:
    index = Index(client, clock=clock)
    assert index.begin_load()
    index.allow_dispatch()
    index.end_load()
    return index
