"""What a scheduler and a worker show of themselves."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from prometheus_client import Counter, Gauge, Histogram

import wsync_engine
from wsync_engine.scheduler.runs import Outcome
from wsync_engine.telemetry import metrics
from wsync_engine.telemetry.metrics import LABELS, LABELS_OF, REGISTRY, serve
from wsync_engine.worker.messages import Ended
from wsync_sdk.errors import ConfigError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_scheduler_process_answers_with_what_it_counts(database: Any, redis_url: str, tmp_path: Any) -> None:
    port = free_port()
    environment = {
        "WSYNC_DATABASE_URL_OWNER": database.owner_url,
        "WSYNC_DATABASE_URL_ENGINE": database.engine_url,
        "WSYNC_DATABASE_URL_API": database.api_url,
        "WSYNC_REDIS_URL": redis_url,
        "WSYNC_DATA_DIR": str(tmp_path),
    }
    process = subprocess.Popen([sys.executable, "-m", "wsync_engine.cli", "scheduler", "--metrics", f"127.0.0.1:{port}"], env=environment)
    try:
        found = ""
        give_up_at_s = time.monotonic() + 60
        while 'wsync_due_size{shard="0"}' not in found:
            assert time.monotonic() < give_up_at_s, found
            time.sleep(0.2)
            try:
                found = page(port)
            except (urllib.error.URLError, ConnectionError):
                continue
    finally:
        process.terminate()
        process.wait(30)
    for name in (
        "wsync_fire_lateness_seconds",
        "wsync_ready",
        "wsync_ready_age_seconds",
        "wsync_lease_expired_total",
        "wsync_clock_skew_seconds",
    ):
        assert f"# TYPE {name}" in found


def test_no_label_names_a_tenant_a_sync_or_a_run() -> None:
    labels = {label for metric in REGISTRY.collect() for sample in metric.samples for label in sample.labels}

    assert labels <= {"priority", "decision", "result", "ending", "signal", "kind", "state", "shard", "le"}


def test_every_label_is_documented_with_each_value_that_the_code_gives_it() -> None:
    constants = {name: label for name, label in vars(metrics).items() if isinstance(label, Counter | Gauge | Histogram)}
    given = set()
    for path in Path(wsync_engine.__file__).parent.rglob("*.py"):
        for name, value in re.findall(r"metrics\.(\w+)\.labels\(\"(\w+)\"\)", path.read_text()):
            (label,) = LABELS_OF[constants[name].describe()[0].name + "_total"]
            given.add((label, value))

    assert {label for labels in LABELS_OF.values() for label in labels} == set(LABELS)
    assert {("ending", "died"), ("result", "claimed"), ("kind", "orphan")} <= given
    assert {(label, value) for label, value in given if value not in LABELS[label]} == set()


def test_every_way_that_a_run_leaves_its_slot_is_documented() -> None:
    kinds = set(get_args(get_type_hints(Ended)["kind"])) - {"concluded"}

    assert set(LABELS["ending"]) == kinds | set(get_args(Outcome)) | {"died", "helper"}


@pytest.mark.parametrize("address", ["9464", "here:", ":x", "127.0.0.1:70000", "192.0.2.1:9464"])
def test_an_address_that_can_not_be_served_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        serve(address)

    assert refused.value.next_step
