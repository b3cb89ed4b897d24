"""Who is on a list: added and removed by id, and never believed to be on it without SuprSend's word."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsync_sdk import ConfigError, FatalError, RetryableError
from wsync_suprsend.double import User, Workspace
from wsync_suprsend.double.server import Server
from wsync_suprsend.lists import list_id

from .conftest import MakeSink, answer, chunk_of, gone, lose_reply, people

IDS = pa.schema([("id", pa.string())])


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(users={one: User() for one in ("1", "2", "3", "a/b")}, lists={"vip": {"3"}, "mine": set()}, query_lists={"mine"})


def test_users_are_added_and_removed(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()

    result = sink.write(chunk_of(sink, [*people("1", "a/b"), *gone("3")], schema=IDS, stream="list:vip"), b"")

    assert result.accepted_rows == 3
    assert workspace.lists["vip"] == {"1", "a/b"}
    assert [call.target.rsplit("/", 2)[1] for call in server.calls] == ["vip", "add", "remove"]


def test_upper_case_is_the_same_list(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink()

    sink.write(chunk_of(sink, people("1"), schema=IDS, stream="list:VIP"), b"")

    assert workspace.lists["vip"] == {"1", "3"}
    assert sink.stream("list:VIP").name == "list:VIP"


def test_a_user_that_is_not_there_is_a_rejection_that_comes_again(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink()

    result = sink.write(chunk_of(sink, people("1", "nobody", "3"), schema=IDS, stream="list:vip"), b"")

    assert result.accepted_rows == 2, "one was added, one was there already"
    assert [(one.row, one.code, one.retryable) for one in result.rejections] == [(1, "unknown_user", True)]


def test_users_that_are_not_asked_for_are_accepted_where_that_is_wanted(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink(lists={"check_users": False})

    result = sink.write(chunk_of(sink, people("1", "nobody"), schema=IDS, stream="list:vip"), b"")

    assert result.accepted_rows == 2
    assert [call.method for call in server.calls] == ["GET", "POST"]


def test_users_that_could_not_be_asked_for_are_unknown(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()
    chunk = chunk_of(sink, people("1", "2", "3"), schema=IDS, stream="list:vip")
    server.script = [answer(201, {"success": True}), answer(200, {}), answer(503)]

    result = sink.write(chunk, b"")

    assert (result.accepted_rows, result.unknown) == (1, (1, 2))


def test_a_success_that_says_it_was_none_is_not_believed(server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()
    chunk = chunk_of(sink, people("1"), schema=IDS, stream="list:vip")
    server.script = [answer(201, {"success": False, "affected_count": 1})]

    with pytest.raises(RetryableError, match="no success"):
        sink.write(chunk, b"")


@pytest.mark.parametrize("body", ["OK", {"success": True, "affected_count": 9}, {"success": True, "affected_count": "2"}])
def test_a_count_that_can_not_be_is_looked_into(server: Server, make_sink: MakeSink, body: object) -> None:
    sink = make_sink()
    chunk = chunk_of(sink, people("1", "nobody"), schema=IDS, stream="list:vip")
    server.script = [answer(201, body)]

    assert [one.row for one in sink.write(chunk, b"").rejections] == [1]


def test_a_repetition_after_a_lost_reply_ends_right(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    sink = make_sink()
    chunk = chunk_of(sink, people("1", "2"), schema=IDS, stream="list:vip")
    server.script = [lose_reply]

    with pytest.raises(RetryableError):
        sink.write(chunk, b"")

    assert sink.write(chunk, b"").accepted_rows == 2
    assert workspace.lists["vip"] == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("stream", "schema", "words"),
    [
        ("list:nowhere", IDS, "no list `nowhere`"),
        ("list:mine", IDS, "made by a query"),
        ("list:vip", pa.schema([("id", pa.string()), ("name", pa.string())]), "`name` is mapped too"),
        ("list:", IDS, "no list id"),
        ("list:a b", IDS, "no list id"),
        ("list:../user", IDS, "no list id"),
        ("lists", IDS, "no stream"),
    ],
)
def test_what_can_not_be_a_list_is_refused_before_the_run(make_sink: MakeSink, stream: str, schema: pa.Schema, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chunk_of(make_sink(), people("1"), schema=schema, stream=stream)


def test_a_list_that_went_away_ends_the_run(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink()
    chunk = chunk_of(sink, people("1"), schema=IDS, stream="list:vip")
    workspace.lists.clear()

    with pytest.raises(FatalError):
        sink.write(chunk, b"")


def test_a_call_holds_as_many_users_as_the_config_says(make_sink: MakeSink) -> None:
    assert make_sink(lists={"max_rows": 10_000}).stream("list:vip").limits.max_rows == 10_000
    assert make_sink().stream("list:vip").limits.max_rows == 100


def test_ten_thousand_users_fit_into_a_call(workspace: Workspace, server: Server, make_sink: MakeSink) -> None:
    ids = [f"user-{number}" for number in range(10_000)]
    workspace.users.update({one: User() for one in ids})
    sink = make_sink(lists={"max_rows": 10_000})

    result = sink.write(chunk_of(sink, people(*ids), schema=IDS, stream="list:vip"), b"")

    assert (result.accepted_rows, len(server.calls)) == (10_000, 2)


@given(name=st.text(max_size=70))
def test_a_list_id_is_what_the_documents_say_or_is_refused(name: str) -> None:
    try:
        found = list_id(f"list:{name}")
    except ConfigError:
        return

    assert 1 <= len(found) <= 64
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    assert found == name.lower()
