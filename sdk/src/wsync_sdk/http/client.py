"""HTTP/1.1 over sockets of our own: a pool of kept connections, each call with one deadline, each connection to a checked address. Only here is httpcore.

httpcore hands the numbers in a request's `timeout` extension to the network backend as they are. Here they are not seconds from the last byte, with which a
server that sends a byte now and then holds a call for ever, but the instant (`time.monotonic`) at which the call is over: every read and write gets what is
left until then. Nothing reads proxy variables, follows redirects or keeps cookies.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpcore

from wsync_sdk.errors import ConfigError, RetryableError, WsyncError
from wsync_sdk.http.reply import Body, Reply
from wsync_sdk.network import AddressPolicy

__all__ = ["Client", "Request"]

KEEP_ALIVE_S = 4.0
"""Many servers end idle connections after five seconds; one that dies under a request costs a retry."""
_AGAIN = "nothing to do: it is tried again"
Policy = Callable[[], AddressPolicy]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request; never shown, as header and body hold secrets and rows."""

    method: str
    url: str = field(repr=False)
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def doing(self) -> str:
        """Method and host, for messages: a path may hold a key, and a query a token."""
        return f"{self.method} {urlsplit(self.url).hostname}"


class Client:
    """Makes requests, from several threads at once.

    :param policy: which addresses may be connected to, asked at each new connection. :param ca_file: PEM file of further authorities to trust.
    :raises ConfigError: `ca_file` can't be read.
    """

    def __init__(self, *, policy: Policy, connections: int, ca_file: str | None, reply_max_bytes: int) -> None:
        self._backend = _Backend(policy)
        self._reply_max_bytes = reply_max_bytes
        self._tls = _tls_context(ca_file)
        self._pool = httpcore.ConnectionPool(
            ssl_context=self._tls,
            max_connections=connections,
            keepalive_expiry=KEEP_ALIVE_S,
            retries=0,
            network_backend=self._backend,
        )

    def send(self, request: Request, *, until_s: float) -> Reply:
        """One attempt, over by `until_s` (`time.monotonic`), whatever the other side does.

        :raises RetryableError: no whole reply came: whether the request was seen is not known.
        :raises ConfigError: the address is not allowed, the certificate is not valid, or a header can't be sent.
        """
        timeouts = {"connect": until_s, "read": until_s, "write": until_s, "pool": max(0.0, until_s - time.monotonic())}
        try:
            with self._pool.stream(
                request.method,
                _url(request.url),
                headers=[(name, value.encode("latin-1")) for name, value in _headers(request)],
                content=request.body or None,
                extensions={"timeout": timeouts},
            ) as response:
                headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                body, state = self._read(response.iter_stream(), headers.get("content-encoding", ""))
                return Reply(status=response.status, headers=headers, body=body, state=state)
        except WsyncError:
            raise
        except httpcore.LocalProtocolError as exc:
            raise ConfigError(
                f"{request.doing}: the request can't be sent", next_step="correct the address and the headers in the connection's config"
            ) from exc
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as exc:
            raise RetryableError(f"{request.doing}: {_why(exc)}", next_step=_AGAIN) from exc

    def connect(self, url: str, *, until_s: float) -> str:
        """Connect and do TLS, then hang up; says how it went.

        :raises WsyncError: as `send`.
        """
        parts = urlsplit(url)
        try:
            stream: httpcore.NetworkStream = self._backend.connect_tcp(str(parts.hostname), _port(url), timeout=until_s)
            try:
                if parts.scheme == "http":
                    return "connected, without TLS"
                stream = stream.start_tls(self._tls, server_hostname=parts.hostname, timeout=until_s)
                return f"connected, {stream.get_extra_info('ssl_object').version()}"
            finally:
                stream.close()
        except (httpcore.TimeoutException, httpcore.NetworkError) as exc:
            raise RetryableError(f"`{parts.hostname}`: {_why(exc)}", next_step="check host, port and network") from exc

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    def _read(self, pieces: Iterable[bytes], encoding: str) -> tuple[bytes, Body]:
        """The body as far as it comes; a broken one does not hide the status that came before it."""
        body = bytearray()
        try:
            for piece in _decoded(pieces, encoding, self._reply_max_bytes):
                body += piece
                if len(body) > self._reply_max_bytes:
                    return bytes(body[: self._reply_max_bytes]), Body.OVERSIZED
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError, zlib.error):
            return bytes(body), Body.BROKEN
        return bytes(body), Body.WHOLE


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Trusts the system's authorities, Mozilla's, and those in `ca_file`."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    try:
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except OSError as exc:  # also what is no PEM
        raise ConfigError("`ca_file` can't be read as PEM certificates", next_step="correct the file where the worker runs") from exc
    return context


def _decoded(pieces: Iterable[bytes], encoding: str, max_bytes: int) -> Iterable[bytes]:
    """Pieces without their gzip; none is much larger than `max_bytes`, however well it was packed.

    :raises zlib.error: it is not what the header says, or is cut off.
    """
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        yield from pieces
        return
    if kind not in ("gzip", "x-gzip"):
        raise zlib.error("an encoding that was not asked for")
    unpacker = zlib.decompressobj(wbits=31)
    for piece in pieces:
        yield unpacker.decompress(piece, max_bytes + 1)
    if not unpacker.eof:
        raise zlib.error("cut off")


def _headers(request: Request) -> list[tuple[str, str]]:
    """With those that HTTP wants; a request without a body says so where its method expects one."""
    host = urlsplit(request.url).netloc
    length = [("Content-Length", str(len(request.body)))] if request.body or request.method not in ("GET", "HEAD", "DELETE") else []
    return [("Host", host), *request.headers, *length]


def _url(url: str) -> httpcore.URL:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore.URL(scheme=parts.scheme.encode(), host=str(parts.hostname).encode(), port=_port(url), target=target.encode())


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _why(exc: BaseException) -> str:
    """In words of our own: a library's may quote what was sent or received."""
    if isinstance(exc, httpcore.PoolTimeout):
        return "no connection was free in time"
    if isinstance(exc, httpcore.ConnectTimeout | httpcore.ConnectError):
        return "can't be reached" if isinstance(exc, httpcore.ConnectError) else "can't be reached in time"
    if isinstance(exc, httpcore.TimeoutException | TimeoutError):
        return "no whole reply in time"
    if isinstance(exc, httpcore.ProtocolError):
        return "the connection ended without a whole reply, or with one that is not HTTP"
    return "the connection was lost"


# -- sockets


class _Backend(httpcore.NetworkBackend):
    """Connects to what the policy permits. `timeout` is an instant, here and in the stream."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        until_s = _instant(timeout)
        addresses = self._policy().resolve(host, port, timeout_s=_left_s(until_s, httpcore.ConnectTimeout))
        failure: Exception = httpcore.ConnectError("no address")
        for number, address in enumerate(addresses):
            connection = socket.socket(address.family, socket.SOCK_STREAM)
            try:
                # A dead address must leave time for those after it.
                connection.settimeout(_left_s(until_s, httpcore.ConnectTimeout) / (len(addresses) - number))
                connection.connect(address.sockaddr)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Stream(connection)
            except (OSError, httpcore.ConnectTimeout) as exc:
                connection.close()
                is_late = isinstance(exc, TimeoutError | httpcore.ConnectTimeout)
                failure = httpcore.ConnectTimeout() if is_late else httpcore.ConnectError()
                failure.__cause__ = exc
        raise failure


class _Stream(httpcore.NetworkStream):
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._socket.settimeout(_left_s(_instant(timeout), httpcore.ReadTimeout))
            return self._socket.recv(max_bytes)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout from exc
        except OSError as exc:
            raise httpcore.ReadError from exc

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            rest = memoryview(buffer)
            while rest:  # not `sendall`: under TLS its timeout begins anew with each piece
                self._socket.settimeout(_left_s(_instant(timeout), httpcore.WriteTimeout))
                rest = rest[self._socket.send(rest) :]
        except TimeoutError as exc:
            raise httpcore.WriteTimeout from exc
        except OSError as exc:
            raise httpcore.WriteError from exc

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(_left_s(_instant(timeout), httpcore.ConnectTimeout))
            return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))  # the timeout is for the handshake
        except ssl.SSLCertVerificationError as exc:
            self.close()
            raise ConfigError(
                f"`{server_hostname}`: its certificate is not valid: {exc.verify_message}",
                next_step="correct the host, or name the authority that signed it as `ca_file`",
            ) from exc
        except TimeoutError as exc:
            self.close()
            raise httpcore.ConnectTimeout from exc
        except OSError as exc:
            self.close()
            raise httpcore.ConnectError from exc

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self._socket, ssl.SSLSocket):
            return self._socket
        if info == "is_readable":  # of an idle connection: the other side has hung up
            return self._socket.fileno() < 0 or bool(_readable(self._socket))
        return None


def _readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _instant(timeout: float | None) -> float:
    if timeout is None:
        raise ValueError("every call has a deadline")
    return timeout


def _left_s(until_s: float, late: type[Exception]) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise late()
    return left_s
