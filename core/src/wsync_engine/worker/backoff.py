"""When a worker asks a server again that did not answer."""

from __future__ import annotations

import psycopg
import structlog

from wsync_engine.worker.host import Clocks
from wsync_sdk.errors import WsyncError

__all__ = ["Backoff"]

LONGEST_S = 2.0
_log = structlog.get_logger()


class Backoff:
    """Whether to ask a server again, after it failed: from `again_s` on, by the monotonic clock."""

    def __init__(self, server: str, clocks: Clocks) -> None:
        self._server = server
        self._clocks = clocks
        self._failures = 0
        self.again_s = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it may be asked."""
        return self._clocks.monotonic_s() >= self.again_s

    def failed(self, exc: Exception) -> None:
        """It did not answer, or we made a mistake: longer each time."""
        self._failures += 1
        limit_s: float = min(LONGEST_S, 0.05 * 2.0 ** min(self._failures, 10))
        self.again_s = self._clocks.monotonic_s() + limit_s * self._clocks.draw(0.5, 1)
        if isinstance(exc, psycopg.Error | WsyncError):
            _log.warning("worker.waiting", server=self._server, error=type(exc).__name__, failures=self._failures)
        else:
            _log.error("worker.failed", server=self._server, error=type(exc).__name__, next_step="report this: the worker goes on")

    def succeeded(self) -> None:
        """It answered."""
        if self._failures:
            _log.info("worker.recovered", server=self._server, failures=self._failures)
        self._failures = 0
