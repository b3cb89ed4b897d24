"""An HTTP endpoint that keeps records per stream, notes each request's key, applies a key once, and may lose replies."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

SLOW_S = 0.03
"""So that faults meet deliveries."""


@dataclass(slots=True)
class Endpoint:
    """`requests` are (stream, idempotency key, body) in the order in which they came; `records` are stream → id → version."""

    url: str = ""
    records: dict[str, dict[int, int]] = field(default_factory=dict)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    replies_to_lose: int = 0
    _known: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: ThreadingHTTPServer | None = None

    def take(self, stream: str, key: str, body: bytes) -> bool:
        """Apply a request; False: its reply is lost on the way."""
        with self._lock:
            self.requests.append((stream, key, body))
            if key not in self._known:
                self._known.add(key)
                self._apply(self.records.setdefault(stream, {}), json.loads(body))
            if self.replies_to_lose:
                self.replies_to_lose -= 1
                return False
            return True

    def _apply(self, records: dict[int, int], changes: list[dict[str, Any]]) -> None:
        for change in changes:
            if change["op"] == "delete":
                records.pop(change["id"], None)
            else:
                records[change["id"]] = change["v"]

    def __enter__(self) -> Self:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                threading.Event().wait(SLOW_S)
                if not endpoint.take(self.path.strip("/"), self.headers["Idempotency-Key"], body):
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A caller that was killed hangs up where it likes."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
