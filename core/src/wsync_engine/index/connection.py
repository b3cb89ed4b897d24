"""A client of one server or of a cluster, and which server of it holds a key: whoever is that server's successor has other contents."""

from __future__ import annotations

import re
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

from wsync_sdk.errors import ConfigError, RetryableError

__all__ = ["Client", "Connections", "connect", "connections_made", "execute", "is_cluster_url", "memory_policies", "node_of", "run_id_of"]

Client: TypeAlias = redis.Redis | RedisCluster
DEFAULT_PORT = 6379
_CLUSTER = re.compile(r"^rediss?\+cluster://", re.ASCII)
_NEXT_STEP = "write WSYNC_REDIS_URL as redis://host:port/0, or redis+cluster://host:port,host:port"


class Connections:
    """Counts the connections that a client makes: the server at the other end of a new one may be another than before."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, _connection: Any) -> None:
        """For a cluster's client of redis-py: a connection is there."""
        self.count += 1

    def greet(self, connection: Any) -> None:
        """For a server's client of redis-py: a connection is there, and greets."""
        self.count += 1
        connection.on_connect()


def is_cluster_url(url: str) -> bool:
    """Whether the address is a cluster's: `redis+cluster://` or `rediss+cluster://` and some of its nodes, separated by commas."""
    return _CLUSTER.match(url) is not None


def connect(url: str, *, timeout_s: float = 5.0) -> Client:
    """A client of the index. `timeout_s` bounds each reply. Of a cluster it asks at once which node holds what.

    :raises ConfigError: the address can't be read.
    :raises RetryableError: no node of the cluster answers.
    """
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "socket_keepalive": True}
    try:
        if is_cluster_url(url):
            return _connect_cluster(url, options)
        connections = Connections()
        client = redis.Redis.from_url(url, **options, retry=Retry(NoBackoff(), 0), redis_connect_func=connections.greet)
        client.connections = connections  # type: ignore[attr-defined]
        return client
    except ValueError:  # its text may repeat the password
        raise ConfigError("the index's address can't be read", next_step=_NEXT_STEP) from None
    except (RedisClusterException, RedisError) as exc:
        raise RetryableError("connect: the index can't be reached", next_step="start Redis, or correct WSYNC_REDIS_URL") from exc


def _connect_cluster(url: str, options: dict[str, Any]) -> RedisCluster:
    scheme, _, rest = url.partition("://")
    user_info, _, hosts = rest.partition("/")[0].rpartition("@")
    parts = urlsplit(f"redis://{user_info}@host" if user_info else "redis://host")
    nodes = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if not all(node.hostname for node in nodes):
        raise ValueError("a node without a name")
    if parts.password:
        options["password"] = parts.password
    if parts.username:
        options["username"] = parts.username
    if scheme.startswith("rediss"):
        options["ssl"] = True
    startup = [cast(Any, ClusterNode)(node.hostname, node.port or DEFAULT_PORT) for node in nodes]
    # One retry: the table of the slots is read anew after an error; whatever else fails is left to our own.
    connections = Connections()
    client = RedisCluster(startup_nodes=startup, retry=Retry(NoBackoff(), 1), redis_connect_func=connections.note, **options)
    client.connections = connections  # type: ignore[attr-defined]
    return client


def node_of(client: Client, key: str) -> str:
    """The node that holds a key, as host:port; empty where there is but one server.

    :raises redis.RedisError: nobody holds its slot.
    """
    return str(_node(client, key).name) if isinstance(client, RedisCluster) else ""


def connections_made(client: Client) -> int:
    """How many connections a client has made so far, to whichever server."""
    connections: Connections | None = getattr(client, "connections", None)
    return 0 if connections is None else connections.count


def run_id_of(client: Client, key: str) -> str:
    """What tells the server process that holds a key from every other."""
    return str(execute(client, key, "INFO", "server")["run_id"])


def execute(client: Client, key: str, command: str, *arguments: str | int | bytes) -> Any:
    """One command to the server that holds a key. On a cluster it is sent once, so that a change of servers is not hidden by a retry."""
    target = {"target_nodes": _node(client, key)} if isinstance(client, RedisCluster) else {}
    return cast(Any, client).execute_command(command, *arguments, **target)


def memory_policies(client: Client) -> set[str]:
    """What each server does when its memory is full."""
    nodes = cast(Any, client).get_primaries() if isinstance(client, RedisCluster) else [None]
    targets = [{} if node is None else {"target_nodes": node} for node in nodes]
    memories = [cast(Any, client).info("memory", **target) for target in targets]
    return {str(memory["maxmemory_policy"]) for memory in memories if "maxmemory_policy" in memory}


def _node(client: RedisCluster, key: str) -> Any:
    return cast(Any, client).get_node_from_key(key)
