"""What is sent: bodies, URLs, headers, keys, and over which connections."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from wsync_http.sink import HttpSink
from wsync_sdk import ConfigError, Operation, RowError, RowRange, Secret, Target

from .conftest import RUN, SCHEMA, Server, answer, chunk, rows

MakeSink = Callable[..., HttpSink]


def test_an_array_holds_the_records(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(f"{server.url}/bulk")

    result = sink.write(chunk(sink, rows(1, 2)), b"")

    assert (result.accepted_rows, result.rejections, result.unknown) == (2, (), ())
    (request,) = server.received
    assert (request.method, request.target) == ("POST", "/bulk")
    assert request.json == [{"id": 1, "name": "name 1"}, {"id": 2, "name": "name 2"}]
    assert request.headers["content-type"] == "application/json"


def test_an_array_can_be_a_member_of_an_object(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, wrap='in"puts')

    sink.write(chunk(sink, rows(1)), b"")

    assert server.received[0].json == {'in"puts': [{"id": 1, "name": "name 1"}]}


def test_ndjson_has_a_record_per_line(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, format="ndjson")

    sink.write(chunk(sink, rows(1, 2)), b"")

    assert server.received[0].body == b'{"id":1,"name":"name 1"}\n{"id":2,"name":"name 2"}\n'
    assert server.received[0].headers["content-type"] == "application/x-ndjson"


def test_an_object_is_one_record_to_a_url_of_its_own(server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([("id", pa.string()), ("name", pa.string())])
    sink = make_sink(server.url + "/{stream}/{id}?by={name}", method="PUT", format="object")

    sink.write(chunk(sink, [{"op": "upsert", "id": "a/b?c#d é", "name": "x&y"}], schema=schema, stream="crm/people"), b"")

    (request,) = server.received
    assert (request.method, request.target) == ("PUT", "/crm%2Fpeople/a%2Fb%3Fc%23d%20%C3%A9?by=x%26y")
    assert request.json == {"id": "a/b?c#d é", "name": "x&y"}
    assert sink.stream("any").limits.max_rows == 1


def test_rows_of_one_chunk_have_distinct_keys_where_each_has_a_request(server: Server, make_sink: MakeSink) -> None:
    server.script = [answer(), answer(422), answer()]
    sink = make_sink(server.url + "/{id}", format="object", delete={"url": server.url + "/{id}"})

    result = sink.write(chunk(sink, [*rows(1, 2), *rows(3, op="delete")]), b"")

    assert [(r.method, r.target, r.headers["idempotency-key"]) for r in server.received] == [
        ("POST", "/1", "run-1.0.0-9:0"),
        ("POST", "/2", "run-1.0.0-9:1"),
        ("DELETE", "/3", "run-1.0.0-9:2"),
    ]
    assert result.accepted_rows == 2
    assert [(rejection.row, rejection.code) for rejection in result.rejections] == [(1, "http_422")]


@pytest.mark.parametrize("value", [None, "", ".", ".."])
def test_a_value_that_would_make_another_url_refuses_the_row(server: Server, make_sink: MakeSink, value: str | None) -> None:
    schema = pa.schema([("id", pa.string())])
    sink = make_sink(server.url + "/users/{id}", format="object")

    with pytest.raises(RowError) as caught:
        sink.write(chunk(sink, [{"op": "upsert", "id": value}], schema=schema), b"")

    assert caught.value.code == "url_value"
    assert server.received == []


def test_a_url_that_names_an_unmapped_field_is_refused_before_the_run(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url + "/{email}", format="object")

    with pytest.raises(ConfigError, match="`email`, which is no field of the mapping"):
        sink.begin(RUN, Target(stream="people", key=("id",), schema=SCHEMA))


def test_a_url_for_deletes_can_name_the_key_only(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, delete={"url": server.url + "/{name}"})

    with pytest.raises(ConfigError, match="no field of the key"):
        sink.begin(RUN, Target(stream="people", key=("id",), schema=SCHEMA))


def test_a_type_without_json_is_refused_before_the_run(server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([("id", pa.int64()), ("every", pa.month_day_nano_interval())])

    with pytest.raises(ConfigError, match="`every`"):
        make_sink(server.url).begin(RUN, Target(stream="people", key=("id",), schema=schema))


# -- deletes


def test_without_a_way_to_delete_a_stream_takes_upserts_only(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url)

    assert sink.stream("people").operations == {Operation.UPSERT}
    with pytest.raises(ConfigError, match="no deletes"):
        sink.write(chunk(sink, rows(1, op="delete")), b"")
    assert server.received == []


def test_deletes_go_with_upserts_and_are_told_apart_by_a_field(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, op_field="op")

    sink.write(chunk(sink, [*rows(1), *rows(2, op="delete"), *rows(3)]), b"")

    assert sink.stream("people").operations == {Operation.UPSERT, Operation.DELETE}
    (request,) = server.received
    assert request.headers["idempotency-key"] == "run-1.0.0-9"
    assert request.json == [
        {"op": "upsert", "id": 1, "name": "name 1"},
        {"op": "delete", "id": 2},
        {"op": "upsert", "id": 3, "name": "name 3"},
    ]


def test_deletes_have_a_request_and_a_key_of_their_own(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url + "/up", delete={"url": server.url + "/{stream}/down", "method": "POST", "format": "ndjson"})
    mixed = [*rows(1), *rows(2, op="delete"), *rows(3), *rows(4, op="delete")]

    for _ in range(2):
        assert sink.write(chunk(sink, mixed), b"").accepted_rows == 4

    sent = [(r.method, r.target, r.headers["idempotency-key"], r.body) for r in server.received]
    assert sent[:2] == [
        ("POST", "/up", "run-1.0.0-9", b'[{"id":1,"name":"name 1"},{"id":3,"name":"name 3"}]'),
        ("POST", "/people/down", "run-1.0.0-9:delete", b'{"id":2}\n{"id":4}\n'),
    ]
    assert sent[2:] == sent[:2], "the same rows are sent under the same keys"


def test_verdicts_of_both_requests_name_the_rows_of_the_chunk(server: Server, make_sink: MakeSink) -> None:
    results = {"items": "/errors", "lists": "errors", "index": "/at"}
    server.script = [answer(200, {"errors": [{"at": 1}]}), answer(200, {"errors": [{"at": 0}]})]
    sink = make_sink(server.url, results=results, delete={"url": server.url, "method": "POST", "format": "array", "results": results})

    result = sink.write(chunk(sink, [*rows(1), *rows(2, op="delete"), *rows(3), *rows(4, op="delete")]), b"")

    assert (result.accepted_rows, sorted(rejection.row for rejection in result.rejections)) == (2, [1, 2])


def test_a_delete_without_a_body_says_no_length(server: Server, make_sink: MakeSink) -> None:
    server.then = answer(404)
    sink = make_sink(server.url, format="object", delete={"url": server.url + "/{id}", "success": ["2xx", 404]})

    assert sink.write(chunk(sink, rows(5, op="delete")), b"").accepted_rows == 1
    (request,) = server.received
    assert (request.method, request.target, request.raw) == ("DELETE", "/5", b"")
    assert request.headers["idempotency-key"] == "run-1.0.0-9"
    assert "content-type" not in request.headers


# -- headers


def test_headers_literal_and_secret_are_sent_and_the_secret_is_asked_for_each_time(server: Server, make_sink: MakeSink) -> None:
    tokens = iter(["Bearer one", "Bearer two\n"])
    sink = make_sink(
        server.url,
        headers={"X-Source": "warehouse", "User-Agent": "acme"},
        secret_headers={"Authorization": Secret(lambda: next(tokens))},
        idempotency_header="X-Request-Key",
    )

    for _ in range(2):
        sink.write(chunk(sink, rows(1)), b"")

    first, second = (request.headers for request in server.received)
    assert (first["authorization"], second["authorization"]) == ("Bearer one", "Bearer two")
    assert (first["x-source"], first["user-agent"], first["x-request-key"]) == ("warehouse", "acme", "run-1.0.0-9")
    assert "idempotency-key" not in first


def test_a_secret_that_would_begin_another_header_is_refused_unsent(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, secret_headers={"Authorization": Secret("hunter2\r\nX-Admin: true")})

    with pytest.raises(ConfigError) as caught:
        sink.write(chunk(sink, rows(1)), b"")

    assert "hunter2" not in f"{caught.value} {caught.value.next_step}"
    assert server.received == []


def test_no_idempotency_header_where_none_is_wanted(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, idempotency_header=None)

    sink.write(chunk(sink, rows(1)), b"")

    assert "idempotency-key" not in server.received[0].headers


def test_gzip_is_announced_and_the_same_each_time(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, gzip=True)
    sent = chunk(sink, rows(*range(500)))

    for _ in range(2):
        sink.write(sent, b"")

    first, second = server.received
    assert first.headers["content-encoding"] == "gzip"
    assert len(first.raw) < len(first.body) / 3
    assert len(first.json) == 500
    assert first.raw == second.raw


# -- rows that are not sent


def test_rows_that_json_can_not_say_are_rejected_and_the_others_sent(server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([("id", pa.int64()), ("score", pa.float64())])
    sink = make_sink(server.url)
    changes = [{"op": "upsert", "id": number, "score": score} for number, score in ((1, 0.5), (2, float("nan")), (3, 1.5))]

    result = sink.write(chunk(sink, changes, schema=schema), b"")

    assert server.received[0].json == [{"id": 1, "score": 0.5}, {"id": 3, "score": 1.5}]
    assert result.accepted_rows == 2
    assert [(one.row, one.code, one.message) for one in result.rejections] == [
        (1, "not_finite", "`score` is NaN or infinite, which JSON has not")
    ]


def test_verdicts_count_the_rows_that_were_sent(server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([("id", pa.int64()), ("score", pa.float64())])
    server.then = answer(200, [{"ok": True}, {"ok": False}])
    sink = make_sink(server.url, results={"items": "", "accepted": {"at": "/ok", "values": [True]}})
    changes = [{"op": "upsert", "id": number, "score": score} for number, score in ((1, float("inf")), (2, 0.5), (3, 1.5))]

    result = sink.write(chunk(sink, changes, schema=schema), b"")

    assert [(one.row, one.code) for one in result.rejections] == [(0, "not_finite"), (2, "refused")]


def test_a_chunk_without_a_row_that_can_be_sent_makes_no_call(server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([("id", pa.int64()), ("score", pa.float64())])
    sink = make_sink(server.url)

    result = sink.write(chunk(sink, [{"op": "upsert", "id": 1, "score": float("nan")}], schema=schema), b"")

    assert (result.accepted_rows, len(result.rejections), server.received) == (0, 1, [])


def test_a_slice_of_rendered_rows_is_sent_as_it_is(server: Server, make_sink: MakeSink) -> None:
    from dataclasses import replace

    sink = make_sink(server.url)
    whole = chunk(sink, rows(*range(10)))
    part = replace(whole, range=RowRange(3, 5), changes=whole.changes.slice(3, 3), records=whole.records.slice(3, 3))  # type: ignore[union-attr]

    assert sink.write(part, b"").accepted_rows == 3
    assert [record["id"] for record in server.received[0].json] == [3, 4, 5]


# -- connections


def test_a_connection_is_used_again(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url)

    for _ in range(5):
        sink.write(chunk(sink, rows(1)), b"")

    assert (len(server.received), server.connections) == (5, 1)


def test_as_many_calls_at_once_as_the_limit_says_and_no_more_connections(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(server.url, limits={"concurrency": 3})
    sent = [chunk(sink, rows(number), key=f"key-{number}") for number in range(60)]

    with ThreadPoolExecutor(max_workers=3) as pool:
        results = list(pool.map(lambda one: sink.write(one, b""), sent))

    assert all(result.accepted_rows == 1 for result in results)
    assert sorted(request.headers["idempotency-key"] for request in server.received) == sorted(f"key-{number}" for number in range(60))
    assert 1 <= server.connections <= 3


def test_proxy_variables_are_not_honoured(server: Server, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sink = make_sink(server.url)

    assert sink.write(chunk(sink, rows(1)), b"").accepted_rows == 1


def test_limits_are_those_of_the_config(make_sink: MakeSink) -> None:
    sink = make_sink(
        "https://api.example.com", idempotent=False, limits={"max_rows": 7, "max_bytes": 5_000, "max_record_bytes": 900, "calls_per_s": 2.5}
    )

    limits = sink.stream("people").limits

    assert (limits.max_rows, limits.max_record_bytes, limits.calls_per_s, limits.concurrency, limits.idempotent) == (7, 900, 2.5, 4, False)
    assert limits.max_bytes < 5_000, "what stands around the records counts too"


def test_a_listed_stream_is_found_and_another_refused(make_sink: MakeSink) -> None:
    sink = make_sink("https://api.example.com/{stream}", streams=["contacts", "orders"])

    assert [spec.name for spec in sink.streams()] == ["contacts", "orders"]
    with pytest.raises(ConfigError) as caught:
        sink.stream("contact")
    assert caught.value.next_step == "did you mean `contacts`?"


def test_jsonb_text_is_nested_in_the_body(server: Server, make_sink: MakeSink) -> None:
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("extra", pa.string(), metadata={b"wsync.logical": b"json"})])
    sink = make_sink(server.url)

    sink.write(chunk(sink, [{"op": "upsert", "id": 1, "extra": json.dumps({"a": [1]})}], schema=schema), b"")

    assert server.received[0].json == [{"id": 1, "extra": {"a": [1]}}]
