"""A scheduler or a worker with leases that are short enough for a test: `python role_process.py '{"role": "worker", …}'`. It ends on SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
import threading
from ipaddress import IPv4Network
from typing import Any

from wsync_engine.index.connection import connect as connect_index
from wsync_engine.index.shards import Shards
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state import database
from wsync_engine.telemetry import log_to_stderr
from wsync_engine.worker.connectors import InstalledPlugins
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.supervisor import Worker
from wsync_sdk import AddressPolicy


def run_scheduler(told: dict[str, Any]) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    client = connect_index(told["redis_url"])
    Scheduler(
        indexes=Shards(client, fire_lease_ms=told["fire_lease_ms"]),
        wakes=Scheduler.wakes_of(client),
        connect=lambda: database.connect(told["engine_url"], application_name="wsync scheduler"),
        restart_grace_s=told["restart_grace_s"],
    ).run(stop)


def run_worker(told: dict[str, Any]) -> None:
    Worker(
        WorkerOptions(**told["options"]),
        index=Shards(connect_index(told["redis_url"])),
        client=connect_index(told["redis_url"]),
        connect=lambda: database.connect(told["engine_url"], application_name="wsync worker"),
        keyring=Keyring.from_text(told["key"]),
        opener=InstalledPlugins(network=AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))),
    ).run()


if __name__ == "__main__":
    log_to_stderr()
    said = json.loads(sys.argv[1])
    {"scheduler": run_scheduler, "worker": run_worker}[said["role"]](said)
