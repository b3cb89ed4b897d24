"""Sixteen shards on a real cluster: every schedule fires in its tenant's shard, and what a node loses is loaded anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from redis.exceptions import RedisClusterException, RedisError
from structlog.testing import capture_logs

from wsync_engine.index.connection import connect, node_of
from wsync_engine.index.due_index import WAKE_SCHEDULERS
from wsync_engine.index.layout import key, rate_key, shard_of
from wsync_engine.index.shards import Shards, ShardTurns
from wsync_engine.index.turns import Turns
from wsync_engine.index.wakes import Wakes
from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.scheduler.runs import claim_runs
from wsync_engine.scheduler.schedules import announce, create_schedule, trigger_run
from wsync_engine.scheduler.spec import ScheduleSpec
from wsync_engine.services.shards import CLUSTER_SHARDS, settle_shards
from wsync_engine.state import database as state
from wsync_sdk.errors import ConfigError, RetryableError, StateError

from .cluster import Cluster, running_cluster, until

WORKER = UUID(int=8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as started:
        yield started


class World:
    """Many tenants, each with a sync; time is real."""

    def __init__(self, database: Any, cluster: Cluster, *, tenants: int) -> None:
        self.database, self.cluster = database, cluster
        self.engine = psycopg.connect(database.engine_url, autocommit=True, row_factory=dict_row)
        assert settle_shards(self.engine, cluster.url) == CLUSTER_SHARDS
        self.client = connect(cluster.url)
        for node in cluster.nodes:
            with node.client() as client:
                if client.info("replication")["role"] == "master":
                    client.flushall()
        self.shards = Shards(self.client, CLUSTER_SHARDS)
        self.syncs = {tenant_id: self._sync_of(tenant_id) for tenant_id in (uuid7() for _ in range(tenants))}

    def _sync_of(self, tenant_id: UUID) -> UUID:
        connection_id, sync_id = uuid7(), uuid7()
        self.engine.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, %s)", [tenant_id, str(tenant_id)])
        self.engine.execute(
            "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin) VALUES (%s, %s, 'here', 'test')",
            [connection_id, tenant_id],
        )
        self.engine.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " VALUES (%s, %s, 'people', %s, %s, '{}', %s)",
            [sync_id, tenant_id, connection_id, connection_id, sync_id],
        )
        return sync_id

    def write(self, tenant_id: UUID, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with state.connect(self.database.api_url, application_name="test") as api, state.tenant_transaction(api, tenant_id):
            return function(api, tenant_id, *arguments, **options)

    def trigger_all(self) -> None:
        for tenant_id, sync_id in self.syncs.items():
            run = self.write(tenant_id, trigger_run, sync_id=sync_id, actor="test").run
            announce(self.shards.of(tenant_id), runs=[run])

    def scheduler(self) -> Scheduler:
        client = connect(self.cluster.url)
        return Scheduler(
            indexes=Shards(client, CLUSTER_SHARDS),
            wakes=Scheduler.wakes_of(client),
            connect=lambda: state.connect(self.database.engine_url, application_name="scheduler"),
            restart_grace_s=0,
        )

    def count(self, query: str) -> int:
        row = self.engine.execute(query).fetchone()  # type: ignore[call-overload]
        return int(next(iter(row.values())))

    def close(self) -> None:
        self.engine.close()
        self.client.close()


@pytest.fixture
def world(database: Any, cluster: Cluster) -> Iterator[World]:
    made = World(database, cluster, tenants=40)
    yield made
    made.close()


@contextmanager
def running(scheduler: Scheduler) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=scheduler.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


def dispatched(shards: Shards, found: set[UUID]) -> set[UUID]:
    """All that is there by now; an index that is not loaded yet gives nothing."""
    with suppress(RetryableError, StateError):
        found |= {run for _, run in shards.dispatch(WORKER, 64)}
    return found


def test_schedules_of_many_tenants_fire_and_are_dispatched_from_sixteen_shards(world: World) -> None:
    assert len({shard_of(tenant_id, CLUSTER_SHARDS) for tenant_id in world.syncs}) > 10
    assert len({node_of(world.client, key(shard, "inc")) for shard in range(CLUSTER_SHARDS)}) == 3

    with running(world.scheduler()):
        for tenant_id, sync_id in world.syncs.items():
            spec = ScheduleSpec(name="ticks", sync_id=sync_id, kind="interval", every_ms=1_000)
            stored = world.write(tenant_id, create_schedule, spec, actor="test")
            announce(world.shards.of(tenant_id), [stored.entry])
        until(lambda: world.count("SELECT count(*) FROM wsync.run") == 40)
        found: set[UUID] = set()
        until(lambda: len(dispatched(world.shards, found)) == 40)

    assert len(claim_runs(world.engine, sorted(found), WORKER)) == 40
    assert world.count("SELECT count(DISTINCT shard) FROM wsync.run") > 10


def test_a_message_names_the_shard_that_has_something_due_earlier(world: World) -> None:
    world.scheduler().rebuild()
    wakes = Wakes(connect(world.cluster.url), WAKE_SCHEDULERS)
    assert wakes.wait(5)
    tenant_id, sync_id = next(iter(world.syncs.items()))
    spec = ScheduleSpec(name="ticks", sync_id=sync_id, kind="interval", every_ms=60_000)
    stored = world.write(tenant_id, create_schedule, spec, actor="test")

    announce(world.shards.of(tenant_id), [stored.entry])

    assert wakes.wait(10) == {str(shard_of(tenant_id, CLUSTER_SHARDS))}
    wakes.close()


def test_a_node_that_was_restarted_without_its_data_is_loaded_anew_and_the_others_go_on(world: World) -> None:
    found: set[UUID] = set()
    with running(world.scheduler()), capture_logs() as logs:
        until(lambda: all(world.client.get(key(shard, "inc")) is not None for shard in range(CLUSTER_SHARDS)))
        world.trigger_all()
        lost = world.cluster.nodes[0]
        lost.restart()
        until(lambda: len(dispatched(world.shards, found)) == 40)

    assert sum(log["event"] == "index.loaded" for log in logs) < 2 * CLUSTER_SHARDS
    assert len(claim_runs(world.engine, sorted(found), WORKER)) == 40


def test_after_a_failover_the_promoted_node_is_loaded_anew(database: Any) -> None:
    with running_cluster() as cluster:
        primary = cluster.nodes[0]
        cluster.add_replica(primary)
        world = World(database, cluster, tenants=20)
        moved = [s for s in range(CLUSTER_SHARDS) if node_of(world.client, key(s, "inc")).endswith(f":{primary.port}")]
        found: set[UUID] = set()
        with running(world.scheduler()):
            until(lambda: all(world.client.get(key(shard, "inc")) is not None for shard in range(CLUSTER_SHARDS)))
            before = {shard: world.client.get(key(shard, "inc")) for shard in moved}
            world.trigger_all()
            primary.kill()
            until(lambda: len(dispatched(world.shards, found)) == 20)
            until(lambda: all(_stored(world, shard) not in {None, before[shard]} for shard in moved))
        assert moved
        assert len(claim_runs(world.engine, sorted(found), WORKER)) == 20
        world.close()


def _stored(world: World, shard: int) -> bytes | None:
    with suppress(RedisError, RedisClusterException):
        return world.client.get(key(shard, "inc"))
    return None


# -- deciding the number


def test_an_installation_that_has_schedules_can_not_become_a_clusters(world: World, database: Any) -> None:
    world.trigger_all()
    world.engine.execute("UPDATE wsync.setting SET value = '1' WHERE key = 'shards'")

    with pytest.raises(ConfigError, match="is on one server"):
        settle_shards(world.engine, world.cluster.url)


def test_an_installation_of_a_cluster_refuses_a_single_server(database: Any) -> None:
    with psycopg.connect(database.engine_url, autocommit=True) as engine:
        assert settle_shards(engine, "redis://here:1/0") == 1
        assert settle_shards(engine, "redis+cluster://here:1,there:2") == CLUSTER_SHARDS
        assert settle_shards(engine, "rediss+cluster://here:1") == CLUSTER_SHARDS

        with pytest.raises(ConfigError, match="is on a cluster"):
            settle_shards(engine, "redis://here:1/0")


def test_a_cluster_that_is_not_there_is_a_retryable_error_and_a_bad_address_is_refused() -> None:
    with pytest.raises(RetryableError):
        connect("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(ConfigError) as refused:
        connect("redis+cluster://:hunter2@")

    assert "hunter2" not in str(refused.value)


# -- whose turn it is


def test_the_shard_that_has_given_least_is_asked_first() -> None:
    turns = ShardTurns(3)
    for shard in range(3):
        turns.note(shard, 1_000, given=1)

    turns.note(0, 9_000, given=1)
    turns.note(1, 4_000, given=1)

    assert turns.order() == [2, 1, 0]


def test_a_shard_that_had_nothing_for_a_day_does_not_keep_the_others_waiting() -> None:
    turns = ShardTurns(2)
    for virtual_ms in range(0, 1_000_000, 1_000):
        turns.note(0, virtual_ms, given=1)
        turns.note(1, 0, given=0)

    turns.note(1, 5, given=1)
    turns.note(0, 1_001_000, given=1)
    turns.note(1, 3_000, given=1)

    assert turns.order() == [0, 1]


def test_the_rate_budget_of_a_credential_lies_on_whichever_node_holds_it(world: World) -> None:
    turns = Turns(world.client)

    found = [[turns.take(str(credential), 2, 1.0).first_s for _ in range(2)] for credential in range(12)]

    assert all(first == 0 and 1.5 < second <= 2 for first, second in found)
    assert len({node_of(world.client, rate_key(str(credential))) for credential in range(12)}) > 1
