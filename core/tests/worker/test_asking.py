"""How soon a worker with a free slot asks an index again that is being loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wsync_engine.index.connection import connect
from wsync_engine.index.shards import Shards
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state import database as state
from wsync_engine.worker.child import ChildSetup
from wsync_engine.worker.host import Host, Listener
from wsync_engine.worker.messages import Assignment, Ended, Tick
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.slots import Slot
from wsync_engine.worker.supervisor import Worker

from .conftest import KEY

ROUNDS = 4


class FreeSlot(Slot):
    """Has no process, and is never given a run."""

    is_alive = True

    def start(self) -> None:
        self.runs_done = 0

    def messages(self) -> list[Tick | Ended]:
        return []

    def end(self, timeout_s: float) -> None:
        pass


class RestingHost(Host):
    """Notes how long the worker means to rest, and ends it after some rounds."""

    def __init__(self) -> None:
        self.rests_s: list[float] = []
        self.worker: Worker | None = None

    def start(self) -> None:
        pass

    def new_slot(self, setup: ChildSetup) -> Slot:
        return FreeSlot(setup, monotonic_s=self.clocks.monotonic_s)

    def wait(self, listener: Listener, slots: Sequence[Slot], timeout_s: float) -> bool:
        self.rests_s.append(timeout_s)
        if len(self.rests_s) == ROUNDS:
            assert self.worker is not None
            self.worker.stop()
        return super().wait(listener, [], timeout_s)


def no_connectors(_assignment: Assignment) -> Any:
    raise NotImplementedError


def test_an_index_that_is_not_loaded_is_asked_again_after_its_backoff_and_no_sooner(database: Any, redis_url: str) -> None:
    host = RestingHost()
    host.worker = Worker(
        WorkerOptions(api_url=database.api_url, storage_url="file:///nowhere", slots=1),
        index=Shards(connect(redis_url)),
        client=connect(redis_url),
        connect=lambda: state.connect(database.engine_url, application_name="worker"),
        keyring=Keyring.from_text(KEY),
        opener=no_connectors,
        host=host,
    )

    host.worker.run()

    # The backoffs grow from at most 0.1 s to 0.2 s, 0.4 s, and so on; without them it is asked with the timer, once a second.
    assert all(0.01 <= rest_s <= 0.1 * 2**number for number, rest_s in enumerate(host.rests_s[:ROUNDS]))
