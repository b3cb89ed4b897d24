"""The demo's HTTP endpoint: takes JSON arrays of subscribers on 127.0.0.1 and keeps them, as a subscriber store behind an API would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Endpoint"]


class Endpoint:
    """What was received: subscribers by id, and how many calls came under each idempotency key."""

    def __init__(self) -> None:
        self.subscriber_by_id: dict[int, dict[str, Any]] = {}
        self.calls_by_key: dict[str, int] = {}
        self.url = ""
        self._lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Until the end of the block."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}/{{stream}}"
        threading.Thread(target=server.serve_forever, name="endpoint", daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()

    def take(self, key: str, body: bytes) -> None:
        """Apply one call; the same one twice changes nothing."""
        records = json.loads(body, parse_float=Decimal)
        with self._lock:
            self.calls_by_key[key] = self.calls_by_key.get(key, 0) + 1
            for record in records:
                if record.pop("op") == "delete":
                    self.subscriber_by_id.pop(record["id"], None)
                else:
                    self.subscriber_by_id[record["id"]] = record


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            endpoint.take(self.headers["Idempotency-Key"], body)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    return Handler
