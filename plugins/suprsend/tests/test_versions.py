"""A list that is replaced: filled as a draft, which takes its place in one step, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from wsync_sdk import Chunk, FatalError, Inspection, RetryableError, Target, WriteMode
from wsync_suprsend.double import User, Workspace
from wsync_suprsend.double.server import Server
from wsync_suprsend.sink import SuprSendSink
from wsync_suprsend.versions import VersionToken

from .conftest import RUN, MakeSink, answer, chunk_of, lose_reply, people

IDS = pa.schema([("id", pa.string())])
REPLACING = replace(RUN, write_mode=WriteMode.REPLACE, stream="list:vip")
TARGET = Target(stream="list:vip", key=("id",), schema=IDS)


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(users={one: User() for one in ("1", "2", "3")}, lists={"vip": {"3"}})


@pytest.fixture
def sink(make_sink: MakeSink) -> SuprSendSink:
    return make_sink()


def chunk(sink: SuprSendSink, *ids: str) -> Chunk:
    made = chunk_of(sink, people(*ids), schema=IDS, stream="list:vip")
    return replace(made, run=REPLACING)


def begun(sink: SuprSendSink, *ids: str) -> bytes:
    """A draft with these users."""
    token = sink.begin(REPLACING, TARGET)
    if ids:
        assert sink.write(chunk(sink, *ids), token).accepted_rows == len(ids)
    return token


def test_the_list_stays_as_it_is_until_the_draft_takes_its_place(workspace: Workspace, sink: SuprSendSink) -> None:
    token = begun(sink, "1", "2")
    before = set(workspace.lists["vip"])

    sink.commit(token, {"accepted": 2})

    assert (before, workspace.lists["vip"], workspace.drafts["vip"]) == ({"3"}, {"1", "2"}, {})


def test_a_draft_may_be_empty_where_the_engine_says_so(workspace: Workspace, sink: SuprSendSink) -> None:
    sink.commit(begun(sink), {"accepted": 0})

    assert workspace.lists["vip"] == set()


def test_a_user_that_is_not_there_is_a_rejection(sink: SuprSendSink) -> None:
    token = sink.begin(REPLACING, TARGET)

    result = sink.write(chunk(sink, "1", "nobody"), token)

    assert (result.accepted_rows, [one.code for one in result.rejections]) == (1, ["unknown_user"])


def test_a_chunk_that_comes_twice_is_in_the_draft_once(workspace: Workspace, sink: SuprSendSink) -> None:
    token = begun(sink, "1", "2")

    assert sink.write(chunk(sink, "1", "2"), token).accepted_rows == 2
    assert [set(members) for members in workspace.drafts["vip"].values()] == [{"1", "2"}]


def test_a_draft_that_lacks_users_does_not_become_the_list(workspace: Workspace, sink: SuprSendSink) -> None:
    token = begun(sink, "1")

    with pytest.raises(FatalError, match="has 1 users, and was given 2; the list stays"):
        sink.commit(token, {"accepted": 2})

    assert workspace.lists["vip"] == {"3"}


def test_users_that_are_not_asked_for_are_not_counted(workspace: Workspace, make_sink: MakeSink) -> None:
    sink = make_sink(lists={"check_users": False})
    token = begun(sink, "1", "nobody")

    sink.commit(token, {"accepted": 2})

    assert workspace.lists["vip"] == {"1"}


def test_a_dropped_draft_changes_nothing_and_may_be_dropped_twice(workspace: Workspace, sink: SuprSendSink) -> None:
    token = begun(sink, "1")

    for _ in range(2):
        sink.abort(token)

    assert (workspace.lists["vip"], workspace.drafts["vip"]) == ({"3"}, {})


def test_a_finish_that_was_made_and_not_answered_is_found_and_not_repeated(
    workspace: Workspace, server: Server, sink: SuprSendSink
) -> None:
    token = begun(sink, "1", "2")
    server.script = [
        lambda handler, call: handler.reply(server.workspace.answer(call.method, call.target, call.headers, call.body)),
        lose_reply,
    ]
    with pytest.raises(RetryableError):
        sink.commit(token, {"accepted": 2})
    calls = len(server.calls)

    assert sink.inspect(token) is Inspection.UNKNOWN
    sink.commit(token, {"accepted": 2})

    assert workspace.lists["vip"] == {"1", "2"}
    assert [call.method for call in server.calls[calls:]] == ["GET", "GET"]


def test_a_finish_that_was_not_made_is_repeated(workspace: Workspace, server: Server, sink: SuprSendSink) -> None:
    token = begun(sink, "1", "2")
    server.script = [
        lambda handler, call: handler.reply(server.workspace.answer(call.method, call.target, call.headers, call.body)),
        answer(504),
    ]
    with pytest.raises(RetryableError):
        sink.commit(token, {"accepted": 2})

    assert sink.inspect(token) is Inspection.OPEN
    sink.commit(token, {"accepted": 2})

    assert workspace.lists["vip"] == {"1", "2"}


def test_a_draft_that_somebody_deleted_is_not_taken_for_a_finished_one(workspace: Workspace, sink: SuprSendSink) -> None:
    token = begun(sink, "1", "2")
    workspace.drafts["vip"].clear()

    with pytest.raises(FatalError, match="is gone, and the list does not have its 2 users"):
        sink.commit(token, {"accepted": 2})
    with pytest.raises(FatalError, match="not the version of it"):
        sink.write(chunk(sink, "1"), token)


def test_forgotten_drafts_are_found_and_only_for_a_sync_that_replaces(workspace: Workspace, sink: SuprSendSink) -> None:
    token = begun(sink)

    assert list(sink.find_open(REPLACING)) == [token]
    assert list(sink.find_open(RUN)) == []


def test_a_list_that_is_gone_is_said(workspace: Workspace, sink: SuprSendSink) -> None:
    token = begun(sink)
    workspace.lists.clear()

    assert sink.inspect(token) is Inspection.GONE
    with pytest.raises(FatalError, match="is gone"):
        sink.commit(token, {"accepted": 1})


@pytest.mark.parametrize("body", [{}, {"version_id": None}, {"version_id": "../x"}, "OK"])
def test_a_start_that_names_no_version_ends_the_run(server: Server, sink: SuprSendSink, body: object) -> None:
    server.script = [
        lambda handler, call: handler.reply(server.workspace.answer(call.method, call.target, call.headers, call.body)),
        answer(201, body),
    ]

    with pytest.raises(FatalError, match="without saying its id"):
        sink.begin(REPLACING, TARGET)


def test_drafts_are_found_in_either_form(server: Server, sink: SuprSendSink) -> None:
    server.script = [answer(200, {"list_id": "vip", "drafts": ["v1", {"version_id": "v2"}]})]

    found = [VersionToken.decode(token) for token in sink.find_open(REPLACING)]

    assert [one.version_id for one in found if one is not None] == ["v1", "v2"]


def test_users_have_no_versions(sink: SuprSendSink) -> None:
    assert sink.stream("profiles").write_modes == {WriteMode.MERGE}
    assert sink.stream("list:vip").write_modes == {WriteMode.MERGE, WriteMode.REPLACE}
