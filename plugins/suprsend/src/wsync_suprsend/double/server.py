"""The double as an HTTP server on loopback, which can be told to misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wsync_suprsend.double.workspace import Answer, Workspace

__all__ = ["Behaviour", "Call", "Handler", "Server", "serving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request as it arrived; header names are lower case."""

    method: str
    target: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body's document."""
        return json.loads(self.body)


class Server(ThreadingHTTPServer):
    """Answers for one workspace.

    :ivar calls: every request, in the order of arrival.
    :ivar script: what is done instead of answering, request by request, as long as there is something.
    """

    daemon_threads = True

    def __init__(self, workspace: Workspace, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.workspace = workspace
        self.calls: list[Call] = []
        self.script: list[Behaviour] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """What a connection's `base_url` says."""
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, call: Call) -> Behaviour | None:
        """Note a request; how to misbehave, if at all."""
        with self.lock:
            self.calls.append(call)
            return self.script.pop(0) if self.script else None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle_one_request(self) -> None:
        """As the standard library's, and a connection that is gone is no news."""
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_any(self) -> None:
        """Answer as the workspace does, or misbehave as the script says."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(method=self.command, target=self.path, headers=headers, body=body)
        behave = self.server.take(call)
        with self.server.workspace.holding(body):
            if behave is None:
                self.reply(self.server.workspace.answer(call.method, call.target, call.headers, call.body))
            else:
                behave(self, call)

    do_GET = do_POST = do_PATCH = do_DELETE = do_any

    def reply(self, answer: Answer, **headers: str) -> None:
        """Send a whole answer; names of headers with `_` for `-`."""
        data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body, default=float).encode()
        self.send_response(answer.status)
        for name, value in {"Content_Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if answer.status != 204:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a request line holds users' ids."""


Behaviour = Callable[[Handler, Call], None]


@contextmanager
def serving(workspace: Workspace, *, port: int = 0) -> Iterator[Server]:
    """A server for the workspace, on a free port unless one is named."""
    with Server(workspace, port) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()
