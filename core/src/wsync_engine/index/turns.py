"""Places for calls on a destination's credential, shared by all workers and tenants. What is lost with the index is made up within a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import RedisClusterException, RedisError

from wsync_engine.index.connection import Client
from wsync_engine.index.layout import rate_key
from wsync_engine.index.scripts import run_script
from wsync_sdk.errors import RetryableError

__all__ = ["AHEAD_S", "LONGEST_HOLD_S", "Places", "Turns"]

AHEAD_S = 2.0
"""No place lies further in the future: what a process took and died with is lost for so long."""
LONGEST_HOLD_S = 600.0
"""A destination that asks for more is held for so long and then asked again: nobody could take the hold back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """`count` calls may start: the first in `first_s`, each other `1 / calls_per_s` later. If none: it is worth asking again in `again_s`.

    :param held_s: so long the destination wants to be left alone.
    """

    count: int
    first_s: float
    again_s: float
    held_s: float


class Turns:
    """The rate budgets. Any thread.

    :param client: of the index. :param clock: milliseconds since 1970 for tests; None: the server's own time decides.
    """

    def __init__(self, client: Client, *, clock: Callable[[], int] | None = None) -> None:
        self._client = client
        self._clock = clock

    def take(self, credential: str, calls: int, calls_per_s: float | None, *, hold_s: float = 0.0) -> Places:
        """Take up to `calls` places.

        :param calls_per_s: as the caller's connection says it; None: no places, only how long the hold lasts. :param hold_s: what the destination
            just asked for, from now on.
        :raises RetryableError: the index can't be reached.
        """
        clock = "" if self._clock is None else self._clock()
        apart_us = round(1e6 / calls_per_s) if calls_per_s else 0
        hold_us = round(min(hold_s, LONGEST_HOLD_S) * 1e6)
        try:
            reply = run_script(
                self._client,
                "take_turns",
                [rate_key(credential)],
                [clock, calls, max(apart_us, 1) if calls_per_s else 0, round(AHEAD_S * 1e6), hold_us],
            )
        except (RedisError, RedisClusterException) as exc:
            raise RetryableError("the index can't be reached", next_step="start Redis, or correct WSYNC_REDIS_URL") from exc
        places, first_us, again_us, held_us = (int(number) for number in reply)
        return Places(count=places, first_s=first_us / 1e6, again_s=again_us / 1e6, held_s=held_us / 1e6)
