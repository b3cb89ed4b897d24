"""What the index is told for live views only, and the wake-ups that come through it: losing any of it costs lateness."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from uuid import UUID

from redis.exceptions import RedisClusterException, RedisError

from wsync_engine.index.connection import Client
from wsync_engine.index.due_index import INTERRUPT
from wsync_engine.index.layout import key, shard_of
from wsync_engine.index.wakes import SUBSCRIBED, Wakes
from wsync_sdk.errors import RetryableError

__all__ = ["LiveProgress", "WakeListener"]

_AGAIN_S = 1.0
_KEPT_S = 60
_BEAT = b"b"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, RedisClusterException) as exc:
        raise RetryableError("the index can't be reached", next_step="start Redis, or correct WSYNC_REDIS_URL") from exc


class LiveProgress:
    """Hash `prog` of each shard: run → counters, at most one write a second."""

    def __init__(self, client: Client, shards: int, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._client = client
        self._shards = shards
        self._key_by_run: dict[UUID, str] = {}
        self._shown: dict[UUID, Mapping[str, int]] = {}
        self._next_s = 0.0

    def show(self, tenant_by_run: Mapping[UUID, UUID], counters_by_run: Mapping[UUID, Mapping[str, int]]) -> None:
        """Store the counters that changed and tell who watches the tenant.

        :raises RetryableError: the index can't be reached.
        """
        changed = {run_id: counters for run_id, counters in counters_by_run.items() if counters and self._shown.get(run_id) != counters}
        if not changed or self._monotonic_s() < self._next_s:
            return
        self._next_s = self._monotonic_s() + 1.0
        with _translated():  # one by one: a pipeline of a cluster does not publish
            for run_id, counters in changed.items():
                tenant_id = tenant_by_run[run_id]
                name = self._key_by_run.setdefault(run_id, key(shard_of(tenant_id, self._shards), "prog"))
                self._client.hset(name, run_id.hex, json.dumps(dict(counters)))
                self._client.expire(name, _KEPT_S)  # what a dead worker left is not kept for ever
                self._client.publish(f"ws:ev:{tenant_id.hex}", run_id.hex)
        self._shown |= changed

    def forget(self, run_id: UUID) -> None:
        """The run ended here; raises as `show`."""
        self._shown.pop(run_id, None)
        name = self._key_by_run.pop(run_id, None)
        if name is not None:
            with _translated():
                self._client.hdel(name, run_id.hex)


class WakeListener:
    """Turns messages on the worker's channel into bytes of a pipe, beside which the supervisor waits for its children."""

    def __init__(self, client: Client, channel: str) -> None:
        self._wakes = Wakes(client, channel)
        self._stop = threading.Event()
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(self._writing, False)
        self._thread = threading.Thread(target=self._listen, name="wakes", daemon=True)
        self._thread.start()

    def wake(self, *, shall_beat: bool = False) -> None:
        """From any thread, and from a signal handler."""
        with suppress(OSError):  # full: it will wake anyway
            os.write(self._writing, _BEAT if shall_beat else b"w")

    def clear(self) -> bool:
        """Forget the wake-ups so far; True: one of them asked for a heartbeat, because a run has to end."""
        found = b""
        with suppress(BlockingIOError):
            while read := os.read(self.reading, 4096):
                found += read
        return _BEAT in found

    def close(self) -> None:
        """End the thread, then the pipe."""
        self._stop.set()
        self._thread.join()
        os.close(self.reading)
        os.close(self._writing)

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                messages = self._wakes.wait(0.5)
                if messages:
                    self.wake(shall_beat=not messages.isdisjoint({INTERRUPT, SUBSCRIBED}))
            except RetryableError:
                self._stop.wait(_AGAIN_S)
        self._wakes.close()
