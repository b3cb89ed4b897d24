"""A line to the server that loses what the server says to a COMMIT: the rows are there, and nobody was told."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BUFFER_BYTES = 1 << 16
# CommandComplete with the tag COMMIT (PostgreSQL 18, "Message Formats", read 2026-11-24).
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"


class Proxy:
    """Listens on a port of its own for as long as the context lasts."""

    def __init__(self, server_port: int) -> None:
        self.is_losing = False
        proxy = self

        class Line(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", server_port)) as server:
                    threading.Thread(target=proxy._pump, args=(self.request, server), daemon=True).start()
                    proxy._pump(server, self.request, losing=True)

        self._listener = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Line)
        self._listener.daemon_threads = True
        self.port = int(self._listener.server_address[1])

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    @contextmanager
    def losing(self) -> Iterator[None]:
        """While it is open, a line is cut where the answer to a COMMIT would go through."""
        self.is_losing = True
        try:
            yield
        finally:
            self.is_losing = False

    def _pump(self, source: socket.socket, sink: socket.socket, *, losing: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(BUFFER_BYTES):
                if losing and self.is_losing and COMMITTED in data:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
