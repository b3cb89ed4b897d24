"""Whatever a destination does, no row is lost or skipped, the same rows come under the same key, and the run says what happened."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import MappingEntry, Mode, SyncSpec
from wsync_engine.pipeline.deliver import RetryPolicy
from wsync_sdk import AddressPolicy, FatalError, RetryableError, Sink
from wsync_suprsend.double.server import Call, Handler
from wsync_suprsend.double.server import Server as Double
from wsync_suprsend.double.server import serving as doubling
from wsync_suprsend.double.workspace import Workspace

from .misbehaving import WIRES, Endpoint, Request, Way, Wire, after_taking, answer, instead, retry_after, serving, trickle
from .one_sync import OneSync

ROWS = 200
CALL_S = 1.0
LOOPBACK = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))
SCHEMA = "CREATE TABLE public.customer AS SELECT n AS id, 'user' || n || '@example.com' AS email FROM generate_series(1, 200) n"
QUERY = "SELECT id, email FROM public.customer"
RESULTS = {"items": "/results", "index": "/row", "accepted": {"at": "/ok"}}


class World(OneSync):
    """A warehouse table and an endpoint that may misbehave; calls end after a second, waits up to three are spent in the run."""

    sink_plugin = "http"

    def __init__(self, database: Any, admin_url: str, folder: Path, endpoint: Endpoint) -> None:
        super().__init__(database, admin_url, folder)
        self.endpoint = endpoint
        self.admin.execute(SCHEMA)
        self.spec = SyncSpec(name="people", source="w", sink="s", query=QUERY, key=("id",), stream="people", mode=Mode.MIRROR)
        self.config: dict[str, Any] = {"url": endpoint.url, "op_field": "op", "limits": {"max_rows": 10}}
        self.retry, self.call_timeout_s = RetryPolicy(first_wait_s=0.01, max_wait_s=3.0), CALL_S

    def open_sink(self) -> Sink:
        return self.host.open_sink("http", self.config, lambda _: "", network=LOOPBACK)

    def assert_all_arrived(self) -> None:
        """Under as few keys as there are chunks, each always with the same bytes."""
        assert self.endpoint.records.keys() == set(range(1, ROWS + 1))
        by_key = self.endpoint.bodies_by_key()
        assert len(by_key) == ROWS / 10
        assert all(len(bodies) == 1 for bodies in by_key.values())


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path) -> Iterator[World]:
    with serving(Endpoint()) as endpoint:
        made = World(database, servers.endpoints.admin_url, tmp_path, endpoint)
        yield made
        made.close()


@pytest.mark.parametrize("kind", [instead, after_taking])
@pytest.mark.parametrize("name", WIRES)
def test_a_destination_that_fails_now_and_then_gets_every_row(world: World, name: str, kind: Callable[[Wire], Way]) -> None:
    fine: Way = lambda endpoint, request: endpoint.accept(request)  # noqa: E731
    world.endpoint.script = [kind(WIRES[name]), fine, fine, fine, kind(WIRES[name]), fine]
    world.config["results"] = RESULTS

    outcome = world.run()

    assert (outcome.state, outcome.counts["accepted"]) == ("succeeded", ROWS)
    assert len(world.endpoint.requests) == ROWS / 10 + 2
    world.assert_all_arrived()


def test_a_byte_now_and_then_holds_a_call_no_longer_than_it_may_take(world: World) -> None:
    world.endpoint.script = [instead(trickle)]

    assert world.run().state == "succeeded"

    assert world.endpoint.noticed.wait(30), "it sends on for as long as somebody listens"
    assert world.endpoint.given_up_after_s < CALL_S + 1.0


def test_one_call_that_is_told_to_wait_stops_all_calls_for_so_long(world: World) -> None:
    world.endpoint.script = [*[lambda endpoint, request: endpoint.accept(request)] * 8, instead(retry_after(1))]

    assert world.run().state == "succeeded"

    times = [request.at_s for request in world.endpoint.requests]
    told_at_s = times[8]
    assert not [at_s for at_s in times if told_at_s + 0.2 < at_s < told_at_s + 0.95]
    world.assert_all_arrived()


def test_a_destination_that_asks_for_an_hour_is_called_by_few_and_asked_again_in_an_hour(world: World) -> None:
    world.endpoint.then = instead(retry_after(3_600))
    run_id = world.new_run()

    with pytest.raises(RetryableError, match="answers 429") as caught:
        world.attempt(run_id)
    called = len(world.endpoint.requests)
    world.endpoint.then = lambda endpoint, request: endpoint.accept(request)

    assert 3_500 < (caught.value.retry_after_s or 0) <= 3_600 * 1.1
    assert called <= 2
    assert world.attempt(run_id).state == "succeeded"
    world.assert_all_arrived()


@pytest.mark.parametrize(
    ("name", "words"), [("500", "answers 500"), ("reset", "connection"), ("no_http", "not HTTP"), ("silence", "whole reply")]
)
def test_a_destination_that_is_broken_is_told_in_words_and_gets_all_rows_when_it_is_mended(world: World, name: str, words: str) -> None:
    world.endpoint.then = instead(WIRES[name])
    run_id = world.new_run()

    with pytest.raises(RetryableError, match=words) as caught:
        world.attempt(run_id)
    called = len(world.endpoint.requests)
    world.endpoint.then = lambda endpoint, request: endpoint.accept(request)

    assert caught.value.next_step
    assert called <= 2 * world.retry.tries, "two chunks at a time, and no more when it fails"
    assert world.attempt(run_id).state == "succeeded"
    world.assert_all_arrived()


def test_where_nobody_listens_the_run_waits_and_goes_on_under_the_same_keys(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    address, world.config["url"] = world.config["url"], f"http://127.0.0.1:{free}/people"
    run_id = world.new_run()
    with pytest.raises(RetryableError, match="can't be reached"):
        world.attempt(run_id)
    world.config["url"] = address

    assert world.attempt(run_id).state == "succeeded"
    world.assert_all_arrived()


# -- lies about success


def results(*rows: int, is_ok: bool = True) -> Wire:
    return answer(200, {"results": [{"row": row, "ok": is_ok} for row in rows]})


LIES: dict[str, tuple[Wire, int]] = {
    "an_error_in_the_body": (answer(200, {"error": "quota"}), 0),
    "a_web_page": (answer(200, b"<html>log in</html>", Content_Type="text/html"), 0),
    "an_empty_body": (answer(200), 0),
    "another_document": (answer(200, [1, 2, 3]), 0),
    "no_result": (results(), 10),
    "fewer_results": (results(0, 1, 2), 7),
    "results_of_rows_that_were_not_sent": (results(*range(10, 20)), 10),
    "one_row_twice_and_otherwise": (
        answer(200, {"results": [*({"row": row, "ok": True} for row in range(10)), {"row": 3, "ok": False}]}),
        1,
    ),
    "more_results": (results(*range(15)), 0),
}
"""What is answered to the first call, and of how many of its rows nothing is known then; 0: of none, or it is called again."""


@pytest.mark.parametrize("name", LIES)
def test_what_the_reply_does_not_say_of_a_row_is_not_believed_and_offered_again(world: World, name: str) -> None:
    wire, unknown = LIES[name]
    world.endpoint.script = [instead(wire)]
    world.config["results"] = RESULTS
    is_believed = name == "more_results"  # each row of the request is named

    first = world.run()
    offered = len(world.endpoint.requests)
    second = world.run()

    assert (first.state, first.counts["unsure"]) == ("partial" if unknown else "succeeded", unknown)
    assert (second.state, second.counts["accepted"]) == ("succeeded", unknown)
    assert len(world.endpoint.requests) == offered + bool(unknown)
    lost = {"fewer_results": 3, "one_row_twice_and_otherwise": 9, "more_results": 10}.get(name, 0)
    assert len(world.endpoint.records) == ROWS - lost, "but what it said it took"
    assert is_believed or first.state == "partial" or offered == ROWS / 10 + 1


def test_a_success_without_its_list_for_good_ends_the_attempt_with_what_to_look_at(world: World) -> None:
    world.endpoint.then = instead(answer(200, {"error": "quota"}))
    world.config["results"] = RESULTS

    with pytest.raises(RetryableError, match="answers 200, but its reply has no list at `/results`") as caught:
        world.run()

    assert "results.items" in caught.value.next_step


def test_a_207_that_nobody_can_read_ends_the_run(world: World) -> None:
    world.endpoint.then = instead(answer(207, {"some": "thing"}))

    with pytest.raises(FatalError, match="207") as caught:
        world.run()

    assert "results" in caught.value.next_step


def test_rows_that_may_be_taken_later_are_listed_as_such_and_offered_again_in_their_time(world: World) -> None:
    def busy(endpoint: Endpoint, request: Request) -> Wire:
        endpoint.apply(request)
        items = [{"row": row, "ok": row != 4, "code": "busy", "later": row == 4} for row in range(len(request.ids))]
        endpoint.records.pop(request.ids[4])
        return answer(200, {"results": items})

    world.endpoint.script = [busy]
    world.config["results"] = {**RESULTS, "code": "/code", "retryable": {"at": "/later"}}

    first, second = world.run(), world.run()

    assert (first.state, first.counts["rejected"], second.counts["held_back"]) == ("partial", 1, 1)
    assert world.engine.execute("SELECT code, retryable FROM wsync.rejection").fetchall() == [("busy", True)]


# -- through the SuprSend sink


class Users(World):
    """The same to a workspace, behind a server that may misbehave."""

    sink_plugin = "suprsend"

    def __init__(self, database: Any, admin_url: str, folder: Path, double: Double) -> None:
        super().__init__(database, admin_url, folder, Endpoint())
        self.double = double
        mapping = (MappingEntry(target="distinct_id", column="id"), MappingEntry(target="channels.email", column="email"))
        self.spec = SyncSpec(
            name="people", source="w", sink="s", query=QUERY, key=("distinct_id",), stream="profiles", mode=Mode.UPSERT, mapping=mapping
        )
        secret = {"workspace_key": double.workspace.key, "workspace_secret": "env:SECRET"}
        self.config = {"base_url": double.url, **secret, "limits": {"max_rows": 10}}

    def open_sink(self) -> Sink:
        return self.host.open_sink("suprsend", self.config, lambda _: self.double.workspace.secret, network=LOOPBACK)


@pytest.fixture
def users(database: Any, servers: Any, tmp_path: Path) -> Iterator[Users]:
    with doubling(Workspace()) as double:
        made = Users(database, servers.endpoints.admin_url, tmp_path, double)
        yield made
        made.close()


@pytest.mark.parametrize("name", WIRES)
def test_a_workspace_that_fails_now_and_then_has_every_user_and_each_record_under_one_id(users: Users, name: str) -> None:
    def behave(handler: Handler, call: Call) -> None:
        handler.server.workspace.answer(call.method, call.target, call.headers, call.body)
        handler.close_connection = True
        try:
            WIRES[name](handler.connection)
        except OSError:
            raise
        except Exception:  # a whole answer
            return

    users.double.script = [behave]

    outcome = users.run()

    assert (outcome.state, outcome.counts["accepted"]) == ("succeeded", ROWS)
    assert len(users.double.workspace.users) == ROWS
    assert len(users.double.calls) == ROWS / 10 + 1
    sent: dict[str, set[str]] = {}
    for call in users.double.calls:
        for record in call.json:
            sent.setdefault(record["distinct_id"], set()).add(json.dumps(record.get("$insert_id")))
    assert all(len(ids) == 1 for ids in sent.values())
