"""Workers as real processes: what becomes of runs when anything dies, is cancelled, grows or drains."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil


def test_a_queued_run_is_executed_to_its_end(world: Any) -> None:
    world.add_sync(rows=40)
    run_id = world.add_run()
    world.start_worker()

    row = world.until_state(run_id, "succeeded", "failed")

    assert (row["state"], row["counts"]["accepted"], row["epoch"]) == ("succeeded", 40, 1), row["error"]
    assert sorted(i for chunk in world.sent() for i in chunk["ids"]) == list(range(40))
