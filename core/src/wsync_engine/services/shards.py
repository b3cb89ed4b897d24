"""How many shards the installation's index has: one, or sixteen on a cluster. Every schedule and run carries its shard, so it is decided once."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from wsync_engine.index.connection import is_cluster_url
from wsync_engine.scheduler.rows import select
from wsync_engine.services.catalog import service_statements
from wsync_engine.state.statements import load_statements
from wsync_sdk.errors import ConfigError

__all__ = ["CLUSTER_SHARDS", "settle_shards"]

CLUSTER_SHARDS = 16
KEY = "shards"
_SQL = service_statements("shards")
_SETTING = load_statements("setting")


def settle_shards(conn: psycopg.Connection[Any], redis_url: str) -> int:
    """The number of shards. The first process that is given a cluster decides for sixteen, as long as nothing was scheduled.

    :param conn: the engine's login, autocommit.
    :raises ConfigError: the address is a cluster's and the installation is not, or the other way round.
    """
    is_cluster = is_cluster_url(redis_url)
    stored = _stored(conn)
    if is_cluster and stored == 1:
        stored = _spread(conn)
    if is_cluster and stored == 1:
        raise ConfigError(
            "the installation's index is on one server, WSYNC_REDIS_URL is a cluster's",
            next_step="name a server that is no cluster; a cluster has to be there before the first schedule is",
        )
    if not is_cluster and stored != 1:
        raise ConfigError(
            "the installation's index is on a cluster, WSYNC_REDIS_URL is not a cluster's",
            next_step="write WSYNC_REDIS_URL as redis+cluster://host:port,host:port",
        )
    return stored


def _stored(conn: psycopg.Connection[Any]) -> int:
    (value,) = select(conn, _SETTING["setting_read"], {"key": KEY})[0].values()
    return int(value or 1)


def _spread(conn: psycopg.Connection[Any]) -> int:
    with conn.transaction():
        conn.execute(_SQL["shards_lock"])  # nothing is scheduled between the question and the answer
        if not select(conn, _SQL["shards_used"], {})[0]["is_used"]:
            conn.execute(_SETTING["setting_write"], {"key": KEY, "value": Jsonb(CLUSTER_SHARDS)})
        return _stored(conn)
