from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from wsync_engine.index.due_index import Index, connect
from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.scheduler.schedules import StoredSchedule, create_schedule
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.state import database as state

START = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)


class World:
    """A tenant with syncs, real stores, and a time that both stores are told; it stands until it is moved."""

    def __init__(self, database: Any, redis_url: str) -> None:
        self.database = database
        self.now = START
        self.redis = connect(redis_url)
        self.redis_url = redis_url
        self._connections: list[psycopg.Connection[Any]] = []
        self._lock = threading.Lock()
        self.engine = self.engine_connection()
        self.api = self._opened(database.api_url)
        self.index = self.new_index()
        self.tenant_id = uuid7()
        self.engine.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, 'acme')", [self.tenant_id])
        self.connection_id = uuid7()
        self.engine.execute(
            "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin) VALUES (%s, %s, 'here', 'test')",
            [self.connection_id, self.tenant_id],
        )
        self.scheduler = self.new_scheduler()
        self.scheduler.rebuild()

    def _opened(self, url: str) -> psycopg.Connection[Any]:
        connection = state.connect(url, application_name="test")
        with self._lock:
            self._tell(connection)
            self._connections.append(connection)
        return connection

    def _tell(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute("SELECT set_config('wsync.test_now', %s, false)", [self.now.isoformat()])

    def engine_connection(self) -> psycopg.Connection[Any]:
        return self._opened(self.database.engine_url)

    def new_index(self) -> Index:
        return Index(connect(self.redis_url), clock=lambda: round(self.now.timestamp() * 1_000))

    def new_scheduler(self, faults: Callable[[str], None] = lambda step: None) -> Scheduler:
        client = connect(self.redis_url)
        index = Index(client, clock=lambda: round(self.now.timestamp() * 1_000))
        # Chores are called by the tests: the process's own time stands still.
        return Scheduler(
            indexes=[index],
            wakes=Scheduler.wakes_of(client),
            connect=self.engine_connection,
            monotonic=lambda: -1.0,
            restart_grace_s=0,
            faults=faults,
        )

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        with self._lock:
            self._connections = [x for x in self._connections if not x.closed]
            for connection in self._connections:
                self._tell(connection)

    def new_sync(self, *parameters: str) -> UUID:
        sync_id = uuid7()
        spec = Jsonb({"parameters": dict.fromkeys(parameters)} if parameters else {})
        self.engine.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [sync_id, self.tenant_id, str(sync_id), self.connection_id, self.connection_id, spec, sync_id],
        )
        return sync_id

    def write(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """A producer's call, in a transaction of the tenant."""
        with state.tenant_transaction(self.api, self.tenant_id):
            return function(self.api, self.tenant_id, *arguments, **options)

    def minutely(self, name: str = "minutely", **options: Any) -> StoredSchedule:
        """A schedule that fires at each full minute, not yet announced to the index."""
        columns = {"kind": "cron", "cron": "* * * * *", "zone": "UTC", **options}
        spec = ScheduleSpec(name=name, **{"sync_id": self.new_sync(), **columns})
        stored = self.write(create_schedule, spec, actor="test")
        assert isinstance(stored, StoredSchedule)
        return stored

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        with self.engine.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, arguments).fetchall()  # type: ignore[arg-type]

    def runs(self, schedule_id: UUID) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM wsync.run WHERE schedule_id = %s ORDER BY nominal_at", schedule_id)

    def clock(self, schedule_id: UUID) -> dict[str, Any]:
        return self.rows("SELECT * FROM wsync.schedule_clock WHERE schedule_id = %s", schedule_id)[0]

    def end_runs(self) -> None:
        self.engine.execute("UPDATE wsync.run SET state = 'succeeded' WHERE state IN ('queued', 'running')")

    def events(self, kind: str) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM wsync.run_event WHERE kind = %s ORDER BY at", kind)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.redis.close()


@pytest.fixture
def world(database: Any, redis_url: str) -> Iterator[World]:
    world = World(database, redis_url)
    yield world
    world.close()


def spec(world: Any, **options: Any) -> ScheduleSpec:
    """A schedule of a new sync, not yet stored."""
    return ScheduleSpec(**{"name": "nightly", "sync_id": world.new_sync(), "kind": "cron", "cron": "* * * * *", "zone": "UTC", **options})
