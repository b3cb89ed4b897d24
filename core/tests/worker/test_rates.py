"""Runs on one credential share its rate, and what its destination asks for, also where different workers execute them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from wsync_engine.secrets.keyring import Keyring
from wsync_engine.worker.credentials import shared_credential
from wsync_engine.worker.messages import ConnectionPart

from .conftest import KEY, World

RATE = 10.0
CALLS = 16
"""Of two runs of 40 rows."""
ASKED_S = 2.0
"""What the destination asks for, once."""


def test_two_workers_keep_to_the_rate_of_one_credential_between_them(world: World) -> None:
    world.add_sync(rows=40, calls_per_s=RATE)
    runs = [world.add_run(), world.add_run(sync_id=world.copy_sync())]
    for _ in runs:
        world.start_worker()
    for run_id in runs:
        world.until_state(run_id, "succeeded")

    times = sorted(call["at_s"] for call in world.sent())
    assert len(times) == CALLS
    assert times[-1] - times[0] >= (CALLS - 1) / RATE - 0.3, "each by itself would take half as long"


def test_what_one_run_is_asked_to_wait_another_workers_run_waits_too(world: World) -> None:
    world.add_sync(rows=40, calls_per_s=1_000.0)
    world.shut("write")
    first = world.add_run()
    world.start_worker()
    world.until_reached("write")
    (world.folder / "throttle").touch()
    second = world.add_run(sync_id=world.copy_sync())
    world.start_worker()
    world.until(lambda: any(world.client.hexists(name, "held") for name in world.client.scan_iter("ws2:{k:*")))
    opened_at_s = time.monotonic()
    world.open("write")
    for run_id in (first, second):
        world.until_state(run_id, "succeeded")

    later = [call["at_s"] for call in world.sent() if call["at_s"] > opened_at_s]
    assert len(later) == 3 + CALLS / 2, "those of the first run after the one that it stood in, and all of the second one"
    assert min(later) - opened_at_s > ASKED_S / 2


KEYRING = Keyring.from_text(KEY)
SINK = ConnectionPart(
    plugin="http",
    config={"url": "https://api.example.com/people", "secret_headers": {"Authorization": "env:TOKEN"}},
    secret_by_reference={"env:TOKEN": "Bearer secret"},
)


def of(sink: ConnectionPart) -> str:
    return shared_credential(sink, KEYRING)


def test_tenants_that_call_one_host_with_one_secret_share_a_budget_whatever_they_call_it() -> None:
    other = replace(
        SINK,
        config={
            "url": "https://API.example.com/lists",
            "secret_headers": {"Authorization": "file:/run/secrets/b/token"},
            "limits": {"max_rows": 7},
        },
        secret_by_reference={"file:/run/secrets/b/token": "Bearer secret"},
    )

    assert of(SINK) == of(other) != ""


@pytest.mark.parametrize(
    "other",
    [
        replace(SINK, secret_by_reference={"env:TOKEN": "Bearer another"}),
        replace(SINK, plugin="suprsend"),
        replace(SINK, config={**SINK.config, "url": "https://evil.example.net/people"}),
    ],
    ids=["secret", "plugin", "host"],
)
def test_another_secret_plugin_or_host_is_another_budget(other: ConnectionPart) -> None:
    assert of(other) != of(SINK)


def test_the_name_of_a_credential_tells_nothing_without_the_installations_key() -> None:
    assert of(SINK) != shared_credential(SINK, Keyring.throwaway())


@pytest.mark.parametrize("secrets", [{}, {"env:ANOTHER": "x"}])
def test_who_has_no_secret_or_one_that_leads_nowhere_shares_with_nobody(secrets: dict[str, str]) -> None:
    assert of(replace(SINK, secret_by_reference=secrets)) == ""
    assert of(replace(SINK, config={"url": "https://api.example.com"}, secret_by_reference={})) == ""
