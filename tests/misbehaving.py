"""A destination over real sockets that misbehaves: ways to answer, down to bytes, resets and silence, and an endpoint that uses them call by call."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

__all__ = ["WIRES", "Endpoint", "Request", "Way", "Wire", "after_taking", "answer", "instead", "reset", "retry_after", "serving", "trickle"]

Wire = Callable[[socket.socket], None]
"""What is sent instead of a proper answer; the connection ends after it, unless it was a whole one."""


class _Keep(Exception):
    """The answer was whole: the connection goes on."""


def answer(status: int, body: Any = b"", **headers: str) -> Wire:
    """A whole answer; what is not bytes is sent as JSON. Names of headers with `_` for `-`."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode()

    def send(connection: socket.socket) -> None:
        connection.sendall(head + data)
        raise _Keep

    return send


def raw(data: bytes) -> Wire:
    """Some bytes, then the end."""
    return lambda connection: connection.sendall(data)


def reset(connection: socket.socket) -> None:
    """A TCP reset instead of an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def trickle(connection: socket.socket) -> None:
    """A header, and then a byte of the body now and then, until the other side is tired of it."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    pause = threading.Event()
    for _ in range(300):
        connection.sendall(b" ")
        pause.wait(0.1)


def retry_after(seconds: int, *, is_date: bool = False, status: int = 429) -> Wire:
    """Asks for a wait, in seconds or as a date; the date is this server's, whose clock is an hour fast."""

    def send(connection: socket.socket) -> None:
        now = datetime.now(UTC) + timedelta(hours=1)
        said = format_datetime(now + timedelta(seconds=seconds), usegmt=True) if is_date else str(seconds)
        answer(status, Retry_After=said, Date=format_datetime(now, usegmt=True))(connection)

    return send


OK = b"HTTP/1.1 200 OK\r\n"
WIRES: dict[str, Wire] = {
    "429": answer(429),
    "429_seconds": retry_after(1),
    "429_date": retry_after(1, is_date=True),
    "503_seconds": retry_after(1, status=503),
    "500": answer(500, {"error": "database is locked"}),
    "502_page": answer(502, b"<html>Bad Gateway</html>", Content_Type="text/html"),
    "silence": lambda connection: None,
    "half_a_head": raw(b"HTTP/1.1 20"),
    "half_a_body": raw(OK + b'Content-Length: 100\r\n\r\n{"records": '),
    "half_a_chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc"),
    "no_http": raw(b"220 mail.example.com ESMTP ready\r\n"),
    "broken_gzip": raw(OK + b"Content-Encoding: gzip\r\nContent-Length: 7\r\n\r\nno gzip"),
    "reset": reset,
    "trickle": trickle,
}
"""All may be followed by another try of the same rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """As it arrived, `at_s`, monotonic."""

    key: str
    body: bytes
    at_s: float

    @property
    def ids(self) -> list[int]:
        return [record["id"] for record in json.loads(self.body)]


Way = Callable[["Endpoint", Request], Wire]


@dataclass
class Endpoint:
    """Takes arrays of records. `script`: what is done with the first requests; `then`: with all others.

    `noticed`: somebody left before the answer was whole, `given_up_after_s` after the request.
    """

    url: str = ""
    script: list[Way] = field(default_factory=list)
    then: Way = lambda endpoint, request: endpoint.accept(request)
    records: dict[int, Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    given_up_after_s: float = 0.0
    noticed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def accept(self, request: Request) -> Wire:
        """Apply and say so."""
        self.apply(request)
        return answer(200, {"results": [{"row": row, "ok": True} for row in range(len(request.ids))]})

    def apply(self, request: Request) -> None:
        for record in json.loads(request.body):
            if record.pop("op", "upsert") == "delete":
                self.records.pop(record["id"], None)
            else:
                self.records[record["id"]] = record

    def bodies_by_key(self) -> dict[str, set[bytes]]:
        found: dict[str, set[bytes]] = {}
        for request in self.requests:
            found.setdefault(request.key, set()).add(request.body)
        return found


def instead(wire: Wire) -> Way:
    """Nothing of the request is applied."""
    return lambda endpoint, request: wire


def after_taking(wire: Wire) -> Way:
    """All of the request is applied, and then that."""

    def way(endpoint: Endpoint, request: Request) -> Wire:
        endpoint.apply(request)
        return wire

    return way


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """The endpoint on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        endpoint.url = f"http://127.0.0.1:{listener.getsockname()[1]}/people"
        threading.Thread(target=_accept, args=(endpoint, listener), daemon=True).start()
        yield endpoint


def _accept(endpoint: Endpoint, listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(endpoint, connection), daemon=True).start()


def _serve(endpoint: Endpoint, connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as stream, suppress(OSError):
        while (request := _read(stream)) is not None:
            with endpoint.lock:
                endpoint.requests.append(request)
                wire = (endpoint.script.pop(0) if endpoint.script else endpoint.then)(endpoint, request)
            try:
                wire(connection)
                return
            except _Keep:
                continue
            except OSError:
                endpoint.given_up_after_s = time.monotonic() - request.at_s
                endpoint.noticed.set()
                raise


def _read(stream: Any) -> Request | None:
    if not stream.readline().strip():
        return None
    headers: dict[str, str] = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", 0)))
    return Request(key=headers.get("idempotency-key", ""), body=body, at_s=time.monotonic())
