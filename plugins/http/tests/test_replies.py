"""What replies, and their absence, are taken for: against a server that misbehaves."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from wsync_http.replies import error_of_status
from wsync_http.sink import HttpSink
from wsync_sdk import AddressPolicy, ConfigError, FatalError, RetryableError, RowError, Secret, SocketAddress, WsyncError
from wsync_sdk.http import Reply

from .conftest import Server, answer, certificate, chunk, hang_up, listening, reset, rows, tls_context, trickle

MakeSink = Callable[..., HttpSink]
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
STATUSES = {
    RetryableError: [408, 425, 429, 500, 502, 503, 504, 507, 599],
    ConfigError: [301, 302, 303, 304, 307, 308, 401, 403, 407],
    FatalError: [404, 405, 410, 501],
    RowError: [400, 402, 406, 409, 413, 415, 418, 422, 431, 451],
}


@pytest.mark.parametrize(("kind", "status"), [(kind, status) for kind, statuses in STATUSES.items() for status in statuses])
def test_each_status_has_its_error(server: Server, make_sink: MakeSink, kind: type[WsyncError], status: int) -> None:
    server.then = answer(status, b"" if status == 304 else b"row value and token", [("Location", f"{server.url}/elsewhere")])
    sink = make_sink(server.url + "/in", secret_headers={"Authorization": Secret("hunter2")})

    with pytest.raises(kind) as caught:
        sink.write(chunk(sink, rows(1, 2)), b"")

    assert type(caught.value) is kind
    assert [request.target for request in server.received] == ["/in"], "not followed, not repeated"
    said = f"{caught.value} {caught.value.next_step}"
    assert not any(secret in said for secret in ("row value", "hunter2", "name 1", "/in"))
    if isinstance(caught.value, RowError):
        assert caught.value.code == f"http_{status}"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226])
def test_any_success_accepts_all_rows(server: Server, make_sink: MakeSink, status: int) -> None:
    server.then = answer(status)
    sink = make_sink(server.url)

    assert sink.write(chunk(sink, rows(1, 2)), b"").accepted_rows == 2


def test_a_success_is_what_the_config_says(server: Server, make_sink: MakeSink) -> None:
    server.script = [answer(409), answer(200)]
    sink = make_sink(server.url, success=[202, 409])

    assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1
    with pytest.raises(ConfigError, match="answers 200"):
        sink.write(chunk(sink, rows(1)), b"")


def test_a_multi_status_that_nothing_reads_is_not_believed(server: Server, make_sink: MakeSink) -> None:
    server.then = answer(207, [{"status": 500}])
    sink = make_sink(server.url)

    with pytest.raises(FatalError, match="207"):
        sink.write(chunk(sink, rows(1)), b"")


# -- Retry-After


def test_what_a_429_asks_for_reaches_the_engine(server: Server, make_sink: MakeSink) -> None:
    server.then = answer(429, headers=[("Retry-After", "3")])
    sink = make_sink(server.url)

    with pytest.raises(RetryableError) as caught:
        sink.write(chunk(sink, rows(1)), b"")

    assert caught.value.retry_after_s == 3.0
    assert error_of_status("POST x", Reply(status=503), now=NOW).__dict__["retry_after_s"] is None


# -- no whole reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
LOST = {
    "reset before the reply": reset(),
    "reset in the headers": reset(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "reset in the body": reset(HEAD + b"half"),
    "hung up before the reply": hang_up(),
    "half the headers": hang_up(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half the body": hang_up(HEAD + b"half"),
    "half a chunked body": hang_up(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal"),
    "no HTTP": hang_up(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "endless headers": trickle(b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"x" * 10_000 + b"\r\n", every_s=0),
    "half a gzip": answer(200, gzip.compress(b"{}" * 100)[:20], [("Content-Encoding", "gzip")]),
    "an encoding nobody asked for": answer(200, b"x", [("Content-Encoding", "br")]),
}


@pytest.mark.parametrize("name", LOST)
def test_a_reply_that_is_not_whole_may_be_asked_for_again(server: Server, make_sink: MakeSink, name: str) -> None:
    server.then = LOST[name]
    sink = make_sink(server.url)

    with pytest.raises(RetryableError):
        sink.write(chunk(sink, rows(1)), b"")

    assert len(server.received) == 1, "the sink itself repeats nothing"


@pytest.mark.parametrize("status", [429, 400])
def test_a_status_counts_though_its_body_is_cut_off(server: Server, make_sink: MakeSink, status: int) -> None:
    server.then = hang_up(f"HTTP/1.1 {status} No\r\nRetry-After: 4\r\nContent-Length: 100\r\n\r\nhalf".encode())
    sink = make_sink(server.url)

    with pytest.raises(WsyncError) as caught:
        sink.write(chunk(sink, rows(1)), b"")

    assert isinstance(caught.value, RowError) if status == 400 else getattr(caught.value, "retry_after_s", None) == 4.0


SLOW = {
    "nothing": trickle(b"", b"", every_s=0.05),
    "a byte of the headers now and then": trickle(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
    "a byte of the body now and then": trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"a"),
    "a chunk now and then": trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "one informational reply after the other": trickle(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_call_ends_in_time_however_the_server_trickles(server: Server, make_sink: MakeSink, name: str) -> None:
    server.then = SLOW[name]
    sink = make_sink(server.url)
    sent = chunk(sink, rows(1), timeout_s=0.4)
    started_s = time.monotonic()

    with pytest.raises(RetryableError):
        sink.write(sent, b"")

    assert 0.3 < time.monotonic() - started_s < 3.0


def test_a_call_ends_in_time_though_the_server_reads_nothing(make_sink: MakeSink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = make_sink(f"http://127.0.0.1:{listener.getsockname()[1]}", limits={"max_bytes": 64_000_000})
        sent = chunk(sink, [{"op": "upsert", "id": 1, "name": "x" * 20_000_000}], timeout_s=0.4)
        started_s = time.monotonic()

        with pytest.raises(RetryableError):
            sink.write(sent, b"")

    assert time.monotonic() - started_s < 3.0


def test_a_call_ends_in_time_though_no_connection_is_free(server: Server, make_sink: MakeSink) -> None:
    server.script = [trickle(b"", b"")]
    sink = make_sink(server.url, limits={"concurrency": 1})
    slow, other = chunk(sink, rows(1), timeout_s=2.0), chunk(sink, rows(2), timeout_s=0.3)
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(sink.write, slow, b"")
        server.wait_for(lambda: bool(server.received))

        with pytest.raises(RetryableError, match="no connection was free"):
            sink.write(other, b"")

    assert isinstance(first.exception(), RetryableError)


def test_both_requests_of_a_chunk_share_its_time(server: Server, make_sink: MakeSink) -> None:
    server.script = [answer(), trickle(b"", b"")]
    sink = make_sink(server.url, delete={"url": server.url, "method": "POST", "format": "array"})
    sent = chunk(sink, [*rows(1), *rows(2, op="delete")], timeout_s=0.4)
    started_s = time.monotonic()

    with pytest.raises(RetryableError):
        sink.write(sent, b"")

    assert time.monotonic() - started_s < 3.0


def test_a_closed_port_may_be_tried_again(make_sink: MakeSink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    sink = make_sink(f"http://127.0.0.1:{port}")

    with pytest.raises(RetryableError, match="can't be reached"):
        sink.write(chunk(sink, rows(1)), b"")


def test_a_connection_that_died_while_idle_is_replaced(server: Server, make_sink: MakeSink) -> None:
    closed = threading.Event()

    def answer_then_close(request: Any, connection: socket.socket) -> None:
        answer()(request, connection)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    server.script = [answer_then_close]
    sink = make_sink(server.url)
    sink.write(chunk(sink, rows(1)), b"")
    assert closed.wait(5)

    assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1
    assert server.connections == 2


# -- large replies


def test_a_large_reply_costs_no_more_than_the_cap(server: Server, make_sink: MakeSink) -> None:
    server.then = trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n", b"x" * 100_000, every_s=0)
    sink = make_sink(server.url, reply_max_bytes=50_000)

    assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1, "the status alone is needed"


@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_too_large_for_its_results_is_said_so(server: Server, make_sink: MakeSink, packed: bool) -> None:
    body = b"[" + b" " * 10_000_000 + b"]"
    server.then = answer(200, gzip.compress(body), [("Content-Encoding", "gzip")]) if packed else answer(200, body)
    sink = make_sink(server.url, reply_max_bytes=50_000, results={"items": "", "accepted": {"at": "/ok"}})

    with pytest.raises(FatalError, match="too large"):
        sink.write(chunk(sink, rows(1)), b"")


# -- results per row

ALL = {"items": "/results", "accepted": {"at": "/status", "values": ["ok", 200]}, "code": "/code", "message": "/error/text"}
ERRORS = {
    "items": "/errors",
    "lists": "errors",
    "index": "/row",
    "statuses": [422],
    "code": "/code",
    "retryable": {"at": "/code", "values": ["busy"]},
}


def test_each_rows_item_is_its_verdict(server: Server, make_sink: MakeSink) -> None:
    items = [{"status": "ok"}, {"status": "bad", "code": "Invalid Email!", "error": {"text": "no\n such domain"}}, {"status": 200}]
    server.then = answer(200, {"results": items})
    sink = make_sink(server.url, results=ALL)

    result = sink.write(chunk(sink, rows(1, 2, 3)), b"")

    assert result.accepted_rows == 2
    assert [(one.row, one.code, one.message, one.retryable) for one in result.rejections] == [(1, "invalid_email", "no such domain", False)]


@pytest.mark.parametrize("status", [200, 207, 422])
def test_listed_errors_are_rejections_whatever_the_status(server: Server, make_sink: MakeSink, status: int) -> None:
    server.then = answer(status, {"errors": [{"row": 2, "code": "busy"}, {"row": "0", "code": "bad"}]})
    sink = make_sink(server.url, results=ERRORS)

    result = sink.write(chunk(sink, rows(1, 2, 3)), b"")

    assert result.accepted_rows == 1
    assert [(one.row, one.code, one.retryable) for one in result.rejections] == [(0, "bad", False), (2, "busy", True)]


def test_a_gzipped_reply_is_read(server: Server, make_sink: MakeSink) -> None:
    server.then = answer(200, gzip.compress(b'{"errors": []}'), [("Content-Encoding", "gzip"), ("Content-Type", "text/plain")])
    sink = make_sink(server.url, results=ERRORS)

    assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1


LIES = {
    "an empty body": b"",
    "a page": b"<html>all is well</html>",
    "half of it": b'{"errors": [',
    "another document": {"ok": True},
    "no list": {"errors": {"row": 1}},
    "null": {"errors": None},
    "too deep": b"[" * 100_000,
    "a number that is too long": b"9" * 10_000,
}


@pytest.mark.parametrize("name", LIES)
def test_a_success_without_its_results_is_not_believed(server: Server, make_sink: MakeSink, name: str) -> None:
    server.then = answer(200, LIES[name], [("Content-Type", "text/html")])
    sink = make_sink(server.url, results=ERRORS)

    with pytest.raises(RetryableError):
        sink.write(chunk(sink, rows(1)), b"")


def test_a_refusal_that_names_no_row_is_one_of_all(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, results=ERRORS)

    for body in (b"<html>", {"errors": []}):
        server.then = answer(422, body)
        with pytest.raises(RowError):
            sink.write(chunk(sink, rows(1, 2)), b"")


def test_a_missing_list_is_none_where_the_config_says_so(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, results={**ERRORS, "when_missing": "accept"})

    for body in (b"", {}, {"errors": None}, {"errors": []}):
        server.then = answer(200, body)
        assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1
    server.then = answer(200, b"<html>")
    with pytest.raises(RetryableError):
        sink.write(chunk(sink, rows(1)), b"")


def test_what_a_destination_says_of_a_row_goes_on_without_the_rows_values_and_secrets(server: Server, make_sink: MakeSink) -> None:
    server.then = answer(200, {"results": [{"status": "bad", "error": {"text": "NAME 4711 of 4711 is taken, says hunter2"}}]})
    sink = make_sink(server.url, results=ALL, secret_headers={"Authorization": Secret("hunter2")})

    result = sink.write(chunk(sink, rows(4711)), b"")

    assert result.rejections[0].message == "*** of *** is taken, says ***"


def test_values_inside_jsonb_are_blotted_out_too(server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("extra", pa.string(), metadata={b"wsync.logical": b"json"})])
    server.then = answer(200, {"results": [{"status": "bad", "error": {"text": "zoe@example.com owes 12.50"}}]})
    sink = make_sink(server.url, results=ALL)

    result = sink.write(
        chunk(sink, [{"op": "upsert", "id": 1, "extra": '{"mail": ["zoe@example.com"], "owes": 12.50}'}], schema=schema), b""
    )

    assert result.rejections[0].message == "*** owes ***"


# -- addresses and TLS


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]"])
def test_loopback_is_refused_unless_the_installation_allows_it(server: Server, make_sink: MakeSink, host: str) -> None:
    sink = make_sink(f"http://{host}:{server.port}", network=AddressPolicy(allowed=(IPv4Network("10.0.0.0/8"),)))

    with pytest.raises(ConfigError, match="not a public address"):
        sink.write(chunk(sink, rows(1)), b"")

    assert server.connections == 0
    assert [(one.name, one.ok) for one in sink.check().findings] == [("secret_headers", True), ("reachable", False)]


def test_a_sink_whose_policy_was_never_set_calls_public_addresses_only(server: Server) -> None:
    from wsync_http.config import HttpConfig

    with HttpSink(HttpConfig(url=server.url)) as sink, pytest.raises(ConfigError, match="not a public address"):
        sink.write(chunk(sink, rows(1)), b"")


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    authority = certificate(tmp_path)
    made = Server(scheme="https")
    with listening(made, tls_context(authority)):
        yield made, authority.file


def test_tls_is_verified_against_the_configured_authority(tls: tuple[Server, Path], make_sink: MakeSink) -> None:
    server, ca_file = tls
    sink = make_sink(server.url, ca_file=str(ca_file))

    for _ in range(2):
        assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1

    assert server.connections == 1
    reachable = next(one for one in sink.check().findings if one.name == "reachable")
    assert (reachable.ok, reachable.message) == (True, "`127.0.0.1`: connected, TLSv1.3")


def test_an_unknown_authority_is_refused(tls: tuple[Server, Path], make_sink: MakeSink) -> None:
    server, _ = tls
    sink = make_sink(server.url)

    with pytest.raises(ConfigError, match="certificate is not valid"):
        sink.write(chunk(sink, rows(1)), b"")
    assert server.received == []
    assert not sink.check().ok


def test_a_certificate_for_another_host_is_refused(tmp_path: Path, make_sink: MakeSink) -> None:
    authority = certificate(tmp_path, address="127.0.0.2")
    server = Server(scheme="https")
    with listening(server, tls_context(authority)):
        sink = make_sink(server.url, ca_file=str(authority.file))

        with pytest.raises(ConfigError, match="certificate is not valid"):
            sink.write(chunk(sink, rows(1)), b"")


@dataclass(frozen=True, slots=True)
class Answering(AddressPolicy):
    """Every name is at this port of loopback, as a policy may find."""

    at_port: int = 0

    def resolve(self, host: str, port: int, *, timeout_s: float = 10.0) -> tuple[SocketAddress, ...]:
        return (
            SocketAddress(family=socket.AF_INET, sockaddr=("127.0.0.1", 1)),  # nobody is there: the next one is tried
            SocketAddress(family=socket.AF_INET, sockaddr=("127.0.0.1", self.at_port)),
        )


@pytest.mark.parametrize("name", ["store.example", "other.example"])
def test_the_connection_goes_to_the_address_that_was_checked_and_tls_verifies_the_name(
    tmp_path: Path, make_sink: MakeSink, name: str
) -> None:
    authority = certificate(tmp_path, name=name)
    server = Server(scheme="https")
    with listening(server, tls_context(authority)):
        sink = make_sink("https://store.example/in", ca_file=str(authority.file), network=Answering(at_port=server.port))

        if name == "store.example":
            assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1
            assert server.received[0].headers["host"] == "store.example"
        else:
            with pytest.raises(ConfigError, match="certificate is not valid"):
                sink.write(chunk(sink, rows(1)), b"")


def test_a_call_ends_in_time_though_the_handshake_does_not(make_sink: MakeSink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = make_sink(f"https://127.0.0.1:{listener.getsockname()[1]}")
        started_s = time.monotonic()

        with pytest.raises(RetryableError):
            sink.write(chunk(sink, rows(1), timeout_s=0.4), b"")

    assert time.monotonic() - started_s < 3.0


def test_a_call_under_tls_ends_in_time_though_the_server_trickles(tls: tuple[Server, Path], make_sink: MakeSink) -> None:
    server, ca_file = tls
    server.then = SLOW["a byte of the body now and then"]
    sink = make_sink(server.url, ca_file=str(ca_file))
    started_s = time.monotonic()

    with pytest.raises(RetryableError):
        sink.write(chunk(sink, rows(1), timeout_s=0.6), b"")

    assert time.monotonic() - started_s < 3.0


# -- check


def test_a_check_connects_and_sends_nothing(server: Server, make_sink: MakeSink) -> None:
    report = make_sink(server.url).check()

    assert report.ok
    assert [one.name for one in report.findings] == ["secret_headers", "reachable", "encryption"]
    server.wait_for(lambda: server.connections == 1)  # the backlog answers before the server does
    assert server.received == []


def test_a_check_can_make_a_request_that_changes_nothing(server: Server, make_sink: MakeSink) -> None:
    server.script = [answer(200), answer(401), answer(500), answer(404)]
    config = {"secret_headers": {"Authorization": Secret("token")}, "check": {"url": server.url + "/ping", "method": "HEAD"}}
    sink = make_sink(server.url, **config)

    found = [next(one for one in sink.check().findings if one.name == "request") for _ in range(4)]

    assert [one.ok for one in found] == [True, False, False, False]
    assert "secret_headers" in found[1].next_step
    assert {(request.method, request.target, request.headers["authorization"]) for request in server.received} == {
        ("HEAD", "/ping", "token")
    }


def test_a_check_finds_a_secret_that_is_not_there(server: Server, make_sink: MakeSink) -> None:
    def missing() -> str:
        raise ConfigError("`env:TOKEN` is not set", next_step="set it")

    report = make_sink(server.url, secret_headers={"Authorization": Secret(missing)}).check()

    assert [(one.name, one.ok) for one in report.findings if not one.ok] == [("secret_headers", False)]
