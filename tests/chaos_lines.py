"""TCP lines that can be cut, silenced and slowed: one between each process and each server.

A small proxy, and not a network namespace although many kernels allow one: the servers listen on 127.0.0.1 only, tests talk to nothing else, and a
namespace has a loopback of its own; and a proxy can cut one process's line while all others stay. A silent line is what a lost network looks like:
nothing is refused, bytes arrive late or never.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

CHUNK_BYTES = 1 << 16


class Lines:
    """The thread that carries all lines."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def to(self, port: int) -> Line:
        """A new line to a port of 127.0.0.1."""
        line = Line(self, port)
        self.wait(line.open())
        return line

    def wait(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have it done, from another thread."""
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(10)

    def close(self) -> None:
        """All lines end."""
        self.wait(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Line:
    """One of them; `port` is where its process connects to."""

    def __init__(self, lines: Lines, server_port: int) -> None:
        self._lines = lines
        self._server_port = server_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._speaks = asyncio.Event()
        self._is_down = False
        self._delay_s = 0.0
        self.port = 0

    async def open(self) -> None:
        """Listen."""
        self._speaks.set()
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    # -- from other threads

    def cut(self, *, stays_down: bool = False) -> None:
        """Every connection is reset, in the middle of whatever it carries; `stays_down`: and so is every new one."""
        self._lines.wait(self._cut(stays_down))

    def silence(self) -> None:
        """Bytes wait until `restore`."""
        self._lines.wait(self._set(speaks=False))

    def slow_down(self, delay_s: float) -> None:
        """Each piece is late."""
        self._lines.wait(self._set(delay_s=delay_s))

    def restore(self) -> None:
        """As if nothing had been."""
        self._lines.wait(self._set())

    # -- in the thread

    async def _cut(self, stays_down: bool) -> None:
        self._is_down = stays_down
        for writer in list(self._writers):
            writer.transport.abort()

    async def _set(self, *, speaks: bool = True, delay_s: float = 0.0) -> None:
        self._is_down = False
        self._delay_s = delay_s
        (self._speaks.set if speaks else self._speaks.clear)()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            if self._is_down:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            self._writers |= {writer, far_writer}
            try:
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            finally:
                self._writers -= {writer, far_writer}
                far_writer.close()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._speaks.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()
