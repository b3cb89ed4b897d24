"""What is sent for profiles, what each answer means, and that nothing secret is said."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pyarrow as pa
import pytest

from wsync_sdk import AddressPolicy, ConfigError, FatalError, Operation, RetryableError, RowError, Secret, WsyncError
from wsync_suprsend.double import Workspace
from wsync_suprsend.double.server import Behaviour, Server

from .conftest import SCHEMA, MakeSink, answer, chunk_of, gone, lose_reply, people, raw, trickle

EMAIL = pa.schema([("id", pa.string()), ("$email", pa.string())])
OK = b"HTTP/1.1 202 Accepted\r\nContent-Type: text/plain\r\nContent-Length: "


# -- requests


def test_users_arrive_with_channels_and_properties(workspace: Workspace, make_sink: MakeSink) -> None:
    schema = pa.schema([("id", pa.string()), ("$email", pa.list_(pa.string())), ("$timezone", pa.string()), ("plan", pa.string())])
    rows = [{"id": "a/b", "$email": ["a@b.c", "d@e.f"], "$timezone": "Asia/Kolkata", "plan": None}, {"id": "ü", "plan": "pro"}]
    sink = make_sink(tenant_id="brand")

    result = sink.write(chunk_of(sink, rows, schema=schema), b"")

    assert (result.accepted_rows, result.rejections, result.unknown) == (2, (), ())
    assert workspace.users["a/b"].channels == {"$email": ["a@b.c", "d@e.f"]}
    assert workspace.users["a/b"].properties == {"$timezone": "Asia/Kolkata"}
    assert workspace.users["ü"].properties == {"plan": "pro"}
    assert {record["tenant_id"] for record in workspace.records} == {"brand"}


def test_a_signature_is_over_the_bytes_and_headers_that_are_sent(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()

    sink.write(chunk_of(sink, people("日本")), b"")

    (call,) = server.calls
    key, _, signature = call.headers["authorization"].partition(":")
    words = "\n".join(("POST", hashlib.md5(call.body).hexdigest(), "application/json; charset=utf-8", call.headers["date"], "/event/"))
    expected = base64.b64encode(hmac.new(b"opensesame-7041", words.encode(), hashlib.sha256).digest()).decode()
    assert (key, signature) == ("acme-live", expected)
    assert call.headers["content-type"] == "application/json; charset=utf-8"


def test_each_attempt_is_signed_anew_and_names_the_same_rows(server: Server, make_sink: MakeSink) -> None:
    secrets = iter(["another", server.workspace.secret])
    sink = make_sink(workspace_secret=Secret(lambda: next(secrets)))
    chunk = chunk_of(sink, people("1", "2"))
    server.script = [answer(503)]

    with pytest.raises(RetryableError):
        sink.write(chunk, b"")
    assert sink.write(chunk, b"").accepted_rows == 2

    first, second = server.calls
    assert first.headers["authorization"] != second.headers["authorization"], "the secret and the time are asked for at each attempt"
    assert [record["$insert_id"] for record in first.json] == [record["$insert_id"] for record in second.json]


def test_an_api_key_goes_as_bearer_token_with_the_workspaces_uid(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(api_key=server.workspace.api_key, workspace_uid="acme_uid")

    assert sink.write(chunk_of(sink, people("1")), b"").accepted_rows == 1

    (call,) = server.calls
    assert call.headers["authorization"] == f"Bearer {server.workspace.api_key}"
    assert [record["env"] for record in call.json] == ["acme_uid"]


def test_a_chunk_sent_twice_leaves_what_one_leaves(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()
    schema = pa.schema([("id", pa.string()), ("$email", pa.list_(pa.string())), ("tags", pa.list_(pa.string()))])
    chunk = chunk_of(sink, [{"id": "1", "$email": ["a@b.c"], "tags": ["x", "x"]}], schema=schema)
    server.script = [lose_reply]

    with pytest.raises(RetryableError):
        sink.write(chunk, b"")
    sink.write(chunk, b"")

    assert workspace.users["1"].channels == {"$email": ["a@b.c"]}
    assert workspace.users["1"].properties == {"tags": ["x", "x"]}
    assert len(workspace.records) == 2


def test_where_no_old_value_is_known_an_address_stays_beside_the_new_one(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink()

    for address in ("old@example.com", "new@example.com"):
        sink.write(chunk_of(sink, [{"id": "1", "$email": address}], schema=EMAIL), b"")

    assert workspace.users["1"].channels == {"$email": ["old@example.com", "new@example.com"]}


def test_with_the_old_value_a_replaced_address_is_gone(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink()
    sink.write(chunk_of(sink, [{"id": "1", "$email": "old@example.com"}], schema=EMAIL), b"")
    row = {"id": "1", "$email": "new@example.com", "before": {"$email": ['"old@example.com"']}}

    sink.write(chunk_of(sink, [row], schema=EMAIL, before=["$email"]), b"")

    assert workspace.users["1"].channels == {"$email": ["new@example.com"]}


def test_remove_addresses_takes_what_the_sync_gave_and_nothing_else(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(profiles={"on_delete": "remove_addresses"})
    sink.write(chunk_of(sink, [{"id": "1", "$email": "ours@example.com"}], schema=EMAIL), b"")
    workspace.users["1"].channels["$email"].append("theirs@example.com")
    rows = [{"op": "delete", "id": "1", "before": {"$email": ['"ours@example.com"']}}, {"op": "delete", "id": "2"}]

    result = sink.write(chunk_of(sink, rows, schema=EMAIL, before=["$email"]), b"")

    assert result.accepted_rows == 2
    assert workspace.users["1"].channels == {"$email": ["theirs@example.com"]}
    assert [len(call.json) for call in server.calls] == [1, 1], "of a user without a known address there is nothing to say"


def test_rows_that_must_not_be_sent_are_rejections_and_the_others_arrive(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink()

    result = sink.write(chunk_of(sink, people("1", " 2", "3")), b"")

    assert result.accepted_rows == 2
    assert [(one.row, one.code) for one in result.rejections] == [(1, "untrimmed_id")]
    assert workspace.users.keys() == {"1", "3"}


def test_a_change_that_asks_for_nothing_is_accepted_and_not_sent(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()

    assert sink.write(chunk_of(sink, [{"id": "1"}], schema=EMAIL), b"").accepted_rows == 1

    assert server.calls == []


def test_the_largest_record_and_the_largest_body_are_taken(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()
    limits = sink.stream("profiles").limits
    assert limits.max_record_bytes is not None
    empty = chunk_of(sink, [{"id": "1000", "name": ""}])
    assert empty.records is not None
    room = limits.max_record_bytes - len(str(empty.records[0]))
    rows = [
        {"id": str(1000 + number), "name": "é" * (room // 2) + "a" * (room % 2)}
        for number in range(limits.max_bytes // limits.max_record_bytes)
    ]
    rest = limits.max_bytes - len(rows) * limits.max_record_bytes
    rows.append({"id": "9999", "name": "a" * (rest - len(str(empty.records[0])))})

    chunk = chunk_of(sink, rows)
    result = sink.write(chunk, b"")

    assert result.accepted_rows == len(rows)
    assert len(chunk.body()) == limits.max_bytes
    assert 819_200 - 20 < len(server.calls[0].body) <= 819_200
    assert max(len(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()) for record in workspace.records) == 10_240


def test_limits_are_those_of_the_documents_or_lower(make_sink: MakeSink) -> None:
    limits = make_sink(limits={"max_rows": 100, "concurrency": 3, "calls_per_s": 5}).stream("profiles").limits

    assert (limits.max_rows, limits.concurrency, limits.calls_per_s) == (100, 3, 5)
    assert make_sink().stream("profiles").limits.max_rows == 400


def test_chunks_side_by_side_hold_no_user_twice(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(limits={"concurrency": 8})
    chunks = [chunk_of(sink, people(*(f"{number}-{one}" for one in range(20))), key=f"k{number}") for number in range(24)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda chunk: sink.write(chunk, b""), chunks))

    assert sum(result.accepted_rows for result in results) == len(workspace.users) == 480
    assert workspace.clashes == []


# -- deletes


def test_without_a_choice_the_stream_takes_no_deletes(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()

    assert sink.stream("profiles").operations == {Operation.UPSERT}
    with pytest.raises(ConfigError, match="takes no deletes"):
        sink.write(chunk_of(sink, gone("1")), b"")
    assert server.calls == []


def test_ignored_deletes_are_accepted_and_change_nothing(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink(profiles={"on_delete": "ignore"})
    sink.write(chunk_of(sink, people("1", "2")), b"")

    result = sink.write(chunk_of(sink, [*gone("1"), *people("3")]), b"")

    assert result.accepted_rows == 2
    assert workspace.users.keys() == {"1", "2", "3"}


def test_unset_channels_takes_the_mapped_channels_and_leaves_the_rest(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([("id", pa.string()), ("$email", pa.string()), ("name", pa.string())])
    sink = make_sink(profiles={"on_delete": "unset_channels"})
    sink.write(chunk_of(sink, [{"id": "1", "$email": "a@b.c", "name": "A"}], schema=schema), b"")
    workspace.users["1"].channels["$inbox"] = ["box"]

    result = sink.write(chunk_of(sink, [*gone("1"), {"id": "2", "$email": "d@e.f"}], schema=schema), b"")

    assert result.accepted_rows == 2
    assert (workspace.users["1"].channels, workspace.users["1"].properties) == ({"$inbox": ["box"]}, {"name": "A"})
    assert len(server.calls) == 2, "deletes and upserts go together"


@pytest.mark.parametrize("on_delete", ["remove_addresses", "unset_channels"])
def test_taking_addresses_needs_a_mapped_channel(make_sink: MakeSink, on_delete: str) -> None:
    sink = make_sink(profiles={"on_delete": on_delete})

    with pytest.raises(ConfigError, match="it names none"):
        chunk_of(sink, people("1"))


@pytest.mark.parametrize("has_bulk_delete", [True, False])
def test_users_are_deleted_and_absent_ones_are_no_error(workspace: Workspace, make_sink: MakeSink, has_bulk_delete: bool) -> None:
    workspace.has_bulk_delete = has_bulk_delete
    sink = make_sink(profiles={"on_delete": "delete_user"})
    sink.write(chunk_of(sink, people("a/b", "..", "ü", "z")), b"")

    result = sink.write(chunk_of(sink, [*gone("..", "a/b", "never", "ü"), *people("new")]), b"")

    assert result.accepted_rows == 5
    assert workspace.users.keys() == {"z", "new"}


def test_a_refusal_of_many_deletes_is_looked_into_user_by_user(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(profiles={"on_delete": "delete_user"})
    sink.write(chunk_of(sink, people("1", "2", "3")), b"")
    chunk = chunk_of(sink, gone("1", "2", "3"))
    server.script = [answer(400), answer(204), answer(422)]

    result = sink.write(chunk, b"")

    assert (result.accepted_rows, [(one.row, one.code) for one in result.rejections]) == (2, [(1, "http_422")])
    assert workspace.users.keys() == {"1", "2"}, "the answers 204 and 422 were the script's"


def test_deletes_one_by_one_that_are_not_reached_in_time_are_unknown(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    workspace.has_bulk_delete = False
    sink = make_sink(profiles={"on_delete": "delete_user"})
    sink.write(chunk_of(sink, people("1", "2", "3")), b"")
    chunk = chunk_of(sink, gone("1", "2", "3"))
    server.script = [answer(404), answer(204), answer(503)]

    result = sink.write(chunk, b"")

    assert (result.accepted_rows, result.unknown) == (1, (1, 2))


# -- answers

STATUSES: list[tuple[int, type[WsyncError]]] = [
    *((status, RetryableError) for status in (408, 425, 429, 500, 502, 503, 504, 599)),
    *((status, ConfigError) for status in (301, 302, 307, 308, 401, 403, 407)),
    *((status, FatalError) for status in (404, 405, 410)),
    *((status, RowError) for status in (400, 409, 413, 415, 422)),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_each_status_has_its_error(server: Server, make_sink: MakeSink, status: int, kind: type[WsyncError]) -> None:
    sink = make_sink()
    server.script = [answer(status, "<html>no</html>", Content_Type="text/html", Location="http://127.0.0.1:1/event/")]

    with pytest.raises(kind) as caught:
        sink.write(chunk_of(sink, people("1", "2")), b"")

    assert type(caught.value) is kind
    assert caught.value.next_step
    assert len(server.calls) == 1, "nothing is followed"


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [({"Retry_After": "7"}, 7.0), ({"Retry_After": "soon"}, None), ({}, None)],
)
def test_what_a_429_asks_for_reaches_the_engine(
    server: Server, make_sink: MakeSink, headers: dict[str, str], expected_s: float | None
) -> None:
    sink = make_sink()
    server.script = [answer(429, "slow down", **headers)]

    with pytest.raises(RetryableError) as caught:
        sink.write(chunk_of(sink, people("1")), b"")

    assert caught.value.retry_after_s == expected_s


def test_a_429_may_name_a_date(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()
    server.script = [answer(429, Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))]

    with pytest.raises(RetryableError) as caught:
        sink.write(chunk_of(sink, people("1")), b"")

    assert caught.value.retry_after_s == pytest.approx(30, abs=3)


BROKEN: dict[str, Behaviour] = {
    "nothing": raw(b""),
    "a reset": raw(b"", resets=True),
    "half a status": raw(b"HTTP/1.1 20"),
    "half a head": raw(b"HTTP/1.1 202 Accepted\r\nContent-"),
    "half a body": raw(OK + b"10\r\n\r\nOK"),
    "a reset in the body": raw(OK + b"10\r\n\r\nOK", resets=True),
    "no HTTP": raw(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "a web page": answer(200, "<html>log in</html>", Content_Type="text/html; charset=utf-8"),
    "a 207 without verdicts": answer(207, {"records": []}),
    "a 207 that is no JSON": answer(207, "OK"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_is_not_whole_or_not_theirs_may_be_asked_for_again(server: Server, make_sink: MakeSink, name: str) -> None:
    sink = make_sink()
    chunk = chunk_of(sink, people("1"))
    server.script = [BROKEN[name]]

    with pytest.raises(RetryableError):
        sink.write(chunk, b"")

    assert sink.write(chunk, b"").accepted_rows == 1


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 202 Accepted\r\nX-Slow: ", OK + b"1000000\r\n\r\n"], ids=["silence", "head", "body"])
def test_a_call_ends_in_time_however_slowly_bytes_come(server: Server, make_sink: MakeSink, start: bytes) -> None:
    sink = make_sink(timeout_s=0.4)
    server.script = [trickle(start, b"a" if start else b"")]
    started_s = time.monotonic()

    with pytest.raises(RetryableError):
        sink.write(chunk_of(sink, people("1")), b"")

    assert time.monotonic() - started_s < 3


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_whole_success_accepts_all(server: Server, make_sink: MakeSink, status: int) -> None:
    sink = make_sink()
    server.script = [answer(status, "OK", Content_Type="text/plain")]

    assert sink.write(chunk_of(sink, people("1", "2")), b"").accepted_rows == 2


def test_verdicts_of_a_207_name_the_rows_of_the_chunk(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()
    error = {"message": "name 2 of opensesame-7041 is not good", "type": "Invalid Value"}
    told: list[dict[str, Any]] = [
        {"status": "success", "status_code": 202},
        {"status": "error", "status_code": 422, "error": error},
        {"status": "error", "status_code": 503, "error": {}},
        {"status": "perhaps"},
    ]
    server.script = [answer(207, {"records": told})]

    result = sink.write(chunk_of(sink, [{"id": " 0"}, *people("1", "2", "3", "4")]), b"")

    assert (result.accepted_rows, result.unknown) == (1, (4,))
    untrimmed, refused, transient = result.rejections
    assert (untrimmed.row, untrimmed.code) == (0, "untrimmed_id")
    assert (refused.row, refused.code, refused.retryable) == (2, "invalid_value", False)
    assert refused.message == "*** of *** is not good"
    assert (transient.row, transient.code, transient.retryable) == (3, "http_503", True)


def test_the_words_of_a_refusal_are_told_of_a_row_that_stands_alone(workspace: Workspace, make_sink: MakeSink) -> None:
    workspace.refuse = lambda record: f"name {record['distinct_id']} is not wanted, opensesame-7041"
    sink = make_sink()

    with pytest.raises(RowError) as alone:
        sink.write(chunk_of(sink, people("1234")), b"")
    with pytest.raises(RowError) as together:
        sink.write(chunk_of(sink, people("1234", "5678")), b"")

    assert alone.value.message.endswith("SuprSend answers 400: *** is not wanted, ***")
    assert alone.value.code == "invalid"
    assert together.value.message.endswith("SuprSend answers 400")


def test_loopback_is_refused_unless_the_installation_allows_it(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(network=AddressPolicy())

    with pytest.raises(ConfigError, match="not a public address"):
        sink.write(chunk_of(sink, people("1")), b"")

    assert server.calls == []


def test_a_wrong_secret_is_never_shown(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(workspace_secret="hunter2-hunter2")

    with pytest.raises(ConfigError) as caught:
        sink.write(chunk_of(sink, people("1")), b"")

    assert "hunter2" not in f"{caught.value!r} {caught.value.next_step} {sink!r} {sink.check()!r}"


@pytest.mark.parametrize("secret", ["", " ", "a\nb", "ä"])
def test_a_secret_that_no_header_can_hold_is_refused_unsent(server: Server, make_sink: MakeSink, secret: str) -> None:
    sink = make_sink(api_key=secret, workspace_uid="acme_uid")

    with pytest.raises(ConfigError, match="api_key"):
        sink.write(chunk_of(sink, people("1")), b"")

    assert server.calls == []


# -- check


def test_a_check_asks_for_a_user_and_writes_nothing(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    report = make_sink().check()

    assert report.ok
    assert [finding.name for finding in report.findings] == ["secret", "reachable", "encryption", "login"]
    assert [call.method for call in server.calls] == ["GET"]
    assert workspace.users == {}


@pytest.mark.parametrize(
    "behave", [answer(401, '"wrong"'), answer(403), answer(500), raw(b""), answer(200, "<html>", Content_Type="text/html")]
)
def test_a_check_finds_what_is_wrong(server: Server, make_sink: MakeSink, behave: Behaviour) -> None:
    server.script = [behave]

    report = make_sink().check()

    assert not report.ok
    assert report.findings[-1].name == "login"
    assert report.findings[-1].next_step


def test_a_check_finds_a_secret_that_is_not_there(server: Server, make_sink: MakeSink) -> None:
    def missing() -> str:
        raise ConfigError("SUPRSEND_SECRET is not set", next_step="export it")

    report = make_sink(workspace_secret=Secret(missing)).check()

    assert [(finding.name, finding.ok) for finding in report.findings] == [("secret", False)]
    assert server.calls == []


def test_a_slice_of_rendered_rows_is_sent_as_it_is(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink()
    whole = chunk_of(sink, people("1", "2", "3", "4"), schema=SCHEMA)
    assert whole.records is not None

    part = replace(whole, changes=whole.changes.slice(1, 2), records=whole.records.slice(1, 2), key="half")

    assert sink.write(part, b"").accepted_rows == 2
    assert workspace.users.keys() == {"2", "3"}
