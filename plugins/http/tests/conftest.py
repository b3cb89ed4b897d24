"""A real HTTP server on loopback that answers, or misbehaves, as each test says."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wsync_http.config import HttpConfig
from wsync_http.sink import HttpSink
from wsync_sdk import OP, AddressPolicy, Chunk, Fence, RowRange, RunRef, Target

LOOPBACK = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))
RUN = RunRef(tenant_id="acme", sync_id="people", run_id="run-1", delivery=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it arrived; `connection` counts from 1."""

    method: str
    target: str
    headers: dict[str, str]
    raw: bytes
    connection: int

    @property
    def body(self) -> bytes:
        return gzip.decompress(self.raw) if self.headers.get("content-encoding") == "gzip" else self.raw

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Hangup(Exception):
    """Close the connection now."""


Behaviour = Callable[[Received, socket.socket], None]


def answer(status: int = 200, body: Any = b"", headers: Sequence[tuple[str, str]] = ()) -> Behaviour:
    """A whole reply; what is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers), f"Content-Length: {len(data)}", "", ""]

    def behave(request: Received, connection: socket.socket) -> None:
        connection.sendall("\r\n".join(lines).encode() + (b"" if request.method == "HEAD" else data))

    return behave


def reset(after: bytes = b"") -> Behaviour:
    """Send some bytes, then a TCP reset."""

    def behave(_: Received, connection: socket.socket) -> None:
        if after:
            connection.sendall(after)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raise Hangup

    return behave


def hang_up(after: bytes = b"") -> Behaviour:
    """Send some bytes, then close."""

    def behave(_: Received, connection: socket.socket) -> None:
        connection.sendall(after)
        raise Hangup

    return behave


def trickle(start: bytes, drop: bytes, *, every_s: float = 0.05) -> Behaviour:
    """Send `start`, then `drop` again and again, until the other side is tired of it."""

    def behave(_: Received, connection: socket.socket) -> None:
        pause = threading.Event()
        connection.sendall(start)
        for _number in range(400):
            connection.sendall(drop)
            pause.wait(every_s)
        raise Hangup

    return behave


@dataclass
class Server:
    """Behaves as `script` says, request by request, then as `then`."""

    port: int = 0
    scheme: str = "http"
    script: list[Behaviour] = field(default_factory=list)
    then: Behaviour = field(default_factory=answer)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def wait_for(self, is_met: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        until_s, pause = time.monotonic() + timeout_s, threading.Event()
        while not is_met():
            assert time.monotonic() < until_s, "timed out"
            pause.wait(0.01)

    def take(self, request: Received) -> Behaviour:
        with self.lock:
            self.received.append(request)
            return self.script.pop(0) if self.script else self.then


def serve(server: Server, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with server.lock:
            server.connections += 1
            number = server.connections
        threading.Thread(target=serve_one, args=(server, connection, number, tls), daemon=True).start()


def serve_one(server: Server, connection: socket.socket, number: int, tls: ssl.SSLContext | None) -> None:
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            connection = tls.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as stream:
            while request := read_request(stream, number):
                server.take(request)(request, connection)
    except (Hangup, OSError):
        connection.close()


def read_request(stream: Any, number: int) -> Received | None:
    first = stream.readline().decode().split()
    if not first:
        return None
    headers: dict[str, str] = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    raw = stream.read(int(headers.get("content-length", 0)))
    return Received(method=first[0], target=first[1], headers=headers, raw=raw, connection=number)


def listening(server: Server, tls: ssl.SSLContext | None = None) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]
    threading.Thread(target=serve, args=(server, listener, tls), daemon=True).start()
    return listener


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with listening(made):
        yield made


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate for 127.0.0.1 and the file that says to trust it."""

    file: Path
    key_file: Path


def certificate(folder: Path, *, address: str = "127.0.0.1", name: str = "") -> Authority:
    """For an address, or for a name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wsync test")])
    host: x509.GeneralName = x509.DNSName(name) if name else x509.IPAddress(IPv4Address(address))
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file, key_file = folder / "ca.pem", folder / "key.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return Authority(file=file, key_file=key_file)


def tls_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.file, authority.key_file)
    return context


@pytest.fixture
def make_sink() -> Iterator[Callable[..., HttpSink]]:
    """Sinks that may call loopback, closed at the end."""
    opened: list[HttpSink] = []

    def make(url: str, *, network: AddressPolicy = LOOPBACK, **config: Any) -> HttpSink:
        sink = HttpSink(HttpConfig.model_validate({"url": url, **config}))
        sink.network = network
        opened.append(sink)
        return sink

    yield make
    for sink in opened:
        sink.close()


SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])


def rows(*ids: int, op: str = "upsert") -> list[dict[str, Any]]:
    return [{"op": op, "id": number, "name": None if op == "delete" else f"name {number}"} for number in ids]


def chunk(
    sink: HttpSink,
    changes: list[dict[str, Any]],
    *,
    schema: pa.Schema = SCHEMA,
    key: str = "run-1.0.0-9",
    stream: str = "people",
    timeout_s: float = 5.0,
) -> Chunk:
    """Rows with `op` as a chunk, rendered by the sink; the key is `id`."""
    target = Target(stream=stream, key=("id",), schema=schema)
    table = [{OP: row["op"], **{name: row.get(name) for name in schema.names}} for row in changes]
    batch = pa.RecordBatch.from_pylist(table, schema=pa.schema([pa.field(OP, pa.string(), nullable=False), *schema]))
    sink.begin(RUN, target)
    return Chunk(
        key=key,
        run=RUN,
        partition=0,
        range=RowRange(0, len(changes) - 1),
        target=target,
        changes=batch,
        records=sink.render(batch, target),
        fence=Fence(sync_id="people", delivery=1, partition=0, epoch=1),
        timeout_s=timeout_s,
    )
