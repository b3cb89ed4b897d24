"""Waiting for a message, with an end: a lost message costs at most the timeout, so nothing depends on its arrival."""

from __future__ import annotations

import time

import redis
from redis.exceptions import RedisClusterException, RedisError

from wsync_engine.index.connection import Client
from wsync_sdk.errors import RetryableError

__all__ = ["SUBSCRIBED", "Wakes"]

SUBSCRIBED = "subscribed"


class Wakes:
    """Messages on some channels, reconnected as needed. One thread.

    :param client: a connection is taken from it for as long as this lives. On a cluster, every node passes every message on.
    """

    def __init__(self, client: Client, *channels: str) -> None:
        self._client = client
        self._channels = channels
        self._pubsub: redis.client.PubSub | None = None

    def wait(self, timeout_s: float) -> frozenset[str]:
        """The texts of the messages as soon as there is one, `SUBSCRIBED` when the subscription is new (something may have been missed);
        empty after `timeout_s`.

        :raises RetryableError: the server can't be reached.
        """
        try:
            if self._pubsub is None:
                self._pubsub = self._client.pubsub()  # type: ignore[no-untyped-call]  # redis-py leaves it bare
                self._pubsub.subscribe(*self._channels)
                return frozenset({SUBSCRIBED})
            return self._next_messages(timeout_s)
        except (RedisError, RedisClusterException, OSError) as exc:
            self.close()
            raise RetryableError(
                "wait for messages: the index can't be reached", next_step="start Redis, or correct WSYNC_REDIS_URL"
            ) from exc

    def close(self) -> None:
        """Give the connection back."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()

    def _next_messages(self, timeout_s: float) -> frozenset[str]:
        assert self._pubsub is not None
        until_s = time.monotonic() + timeout_s
        while (left_s := until_s - time.monotonic()) > 0:
            texts = set()
            message = self._pubsub.get_message(timeout=left_s)
            while message is not None:  # a burst of messages is one wake-up
                if message["type"] == "message":
                    texts.add(message["data"].decode("utf-8", "replace"))
                message = self._pubsub.get_message(timeout=0)
            if texts:
                return frozenset(texts)
        return frozenset()
