"""The main job to SuprSend: a Postgres warehouse to profiles and to a list, at least once, through the real connectors and the package's double."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import MappingEntry, Mode, SyncSpec
from wsync_sdk import AddressPolicy, ConfigError, RetryableError, Sink
from wsync_suprsend.double import Answer, User, Workspace, serving
from wsync_suprsend.double.server import Call, Handler, Server

from .one_sync import Crash, OneSync

ROWS = 1_000
LOOPBACK = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))
SCHEMA = """
CREATE TABLE public.customer AS SELECT n AS id, 'user' || n || '@example.com' AS email, CASE WHEN n % 7 > 0 THEN 'Zoë 日本 ' || n END AS full_name,
 CASE WHEN n % 3 = 0 THEN ARRAY['+49151' || (1000000 + n), '+49152' || (1000000 + n)] END AS phones, (n % 100 / 8.0)::numeric(8, 3) AS score,
 jsonb_build_object('n', n, 'tags', jsonb_build_array('a', NULL)) AS extra, 'Europe/Berlin' AS zone FROM generate_series(1, 1000) n
"""
QUERY = "SELECT id, email, phones, full_name, score, extra, zone FROM public.customer"
MAPPING = tuple(
    MappingEntry(target=target, column=column)
    for target, column in {
        "distinct_id": "id",
        "channels.email": "email",
        "channels.sms": "phones",
        "properties.name": "full_name",
        "properties.score": "score",
        "properties.extra": "extra",
        "properties.$timezone": "zone",
    }.items()
)


class World(OneSync):
    """A warehouse table and a workspace."""

    sink_plugin = "suprsend"

    def __init__(self, database: Any, admin_url: str, folder: Path, server: Server) -> None:
        super().__init__(database, admin_url, folder)
        self.server, self.workspace = server, server.workspace
        self.admin.execute(SCHEMA)
        self.spec = SyncSpec(
            name="people", source="w", sink="s", query=QUERY, key=("distinct_id",), stream="profiles", mode=Mode.MIRROR, mapping=MAPPING
        )
        self.config: dict[str, Any] = {
            "base_url": server.url,
            "workspace_key": self.workspace.key,
            "workspace_secret": "env:SECRET",
            "profiles": {"on_delete": "delete_user"},
            "limits": {"max_rows": 100},
        }

    def open_sink(self) -> Sink:
        return self.host.open_sink("suprsend", self.config, lambda _: self.workspace.secret, network=LOOPBACK)

    def expected(self) -> dict[str, User]:
        """What the workspace should hold, by Postgres' own JSON."""
        found = self.admin.execute(
            "SELECT id::text, jsonb_strip_nulls(jsonb_build_object('name', full_name, 'score', score, '$timezone', zone))"
            " || jsonb_build_object('extra', extra), email, phones FROM customer"
        ).fetchall()
        return {
            one: User(properties=properties, channels={"$email": [email], **({"$sms": phones} if phones else {})})
            for one, properties, email, phones in found
        }


def lose_reply(handler: Handler, call: Call) -> None:
    handler.server.workspace.answer(call.method, call.target, call.headers, call.body)
    handler.close_connection = True


def slow_down(handler: Handler, _: Call) -> None:
    handler.reply(Answer(status=429), Retry_After="0")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Workspace()) as made:
        yield made


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path, server: Server) -> Iterator[World]:
    made = World(database, servers.endpoints.admin_url, tmp_path, server)
    yield made
    made.close()


def test_the_workspace_equals_the_query_and_the_second_run_sends_only_the_changes(world: World) -> None:
    first = world.run()
    assert (first.state, first.counts["accepted"], len(world.server.calls)) == ("succeeded", ROWS, ROWS / 100)
    assert world.workspace.users == world.expected()
    world.admin.execute(
        "UPDATE customer SET full_name = full_name || '!', email = 'new' || id || '@example.com', phones = CASE WHEN id % 2 = 0 THEN phones[2:] END"
        " WHERE id <= 30 AND id % 7 > 0"
    )
    world.admin.execute("DELETE FROM customer WHERE id BETWEEN 201 AND 220")
    world.admin.execute(
        "INSERT INTO customer SELECT n, 'new' || n || '@example.com', NULL, NULL, NULL, '{}', 'UTC' FROM generate_series(2001, 2050) n"
    )
    world.workspace.records.clear()

    second = world.run()

    assert (second.state, second.counts["upserts"], second.counts["deletes"]) == ("succeeded", 26 + 50, 20)
    assert len(world.workspace.records) == 76
    assert world.workspace.users == world.expected()
    assert world.workspace.clashes == []


@pytest.mark.parametrize(("on_delete", "left"), [("unset_channels", {}), ("remove_addresses", {"$email": ["theirs@example.com"]})])
def test_who_left_loses_addresses_as_was_chosen(world: World, on_delete: str, left: dict[str, list[str]]) -> None:
    world.config["profiles"] = {"on_delete": on_delete}
    world.run()
    world.workspace.users["3"].channels["$email"].append("theirs@example.com")
    world.admin.execute("DELETE FROM customer WHERE id <= 20")

    outcome = world.run()

    assert (outcome.state, outcome.counts["deletes"]) == ("succeeded", 20)
    assert world.workspace.users["3"].channels == left
    assert world.workspace.users["20"].channels == {}
    assert world.workspace.users["21"].channels.keys() == {"$email", "$sms"}


def test_a_change_without_a_verdict_leaves_no_address_behind(world: World) -> None:
    world.run()
    world.admin.execute("UPDATE customer SET email = 'second@example.com' WHERE id = 7")
    world.server.script = [lose_reply] * 5
    run_id = world.new_run()
    with pytest.raises(RetryableError):
        world.attempt(run_id)
    assert world.end(run_id).state == "cancelled"
    world.admin.execute("UPDATE customer SET email = 'third@example.com' WHERE id = 7")

    outcome = world.run()

    assert outcome.state == "succeeded"
    assert world.workspace.users["7"].channels == {"$email": ["third@example.com"]}


def test_a_mirror_run_ends_before_it_reads_where_no_way_to_delete_was_chosen(world: World) -> None:
    world.config["profiles"] = {}

    with pytest.raises(ConfigError, match="takes no deletes"):
        world.run()

    assert world.server.calls == []
    assert world.engine.execute("SELECT warehouse_query FROM wsync.run").fetchall() == [(None,)]


def test_refused_and_oversized_rows_are_listed_and_the_others_arrive(world: World) -> None:
    world.workspace.refuse = lambda record: "not wanted" if record["distinct_id"] == "77" else None
    world.admin.execute("UPDATE customer SET full_name = repeat('x', 11000) WHERE id = 500")

    outcome = world.run()

    assert (outcome.state, outcome.counts["accepted"], outcome.counts["rejected"]) == ("partial", ROWS - 2, 2)
    assert world.workspace.users.keys() == world.expected().keys() - {"77", "500"}
    assert world.engine.execute("SELECT code FROM wsync.rejection ORDER BY code").fetchall() == [("invalid",), ("record_too_large",)]


@pytest.mark.parametrize("step", ["after_mark_sent", "after_write", "before_ack", "after_ack", "fold"])
def test_wherever_the_process_dies_the_next_holder_sends_the_same_insert_ids(world: World, step: str) -> None:
    run_id = world.new_run()

    def die(name: str) -> None:
        if name == step:
            raise Crash(step)

    with pytest.raises(Crash):
        world.attempt(run_id, die)
    outcome = world.attempt(run_id)

    assert (outcome.state, outcome.counts["accepted"]) == ("succeeded", ROWS)
    assert world.workspace.users == world.expected()
    assert len({record["$insert_id"] for record in world.workspace.records}) == ROWS


def test_lost_replies_and_limits_of_rate_cost_no_row(world: World) -> None:
    world.server.script = [lose_reply, slow_down, lose_reply, slow_down]

    outcome = world.run()

    assert (outcome.state, outcome.counts["accepted"]) == ("succeeded", ROWS)
    assert world.workspace.users == world.expected()
    assert len({record["$insert_id"] for record in world.workspace.records}) == ROWS


def test_a_list_is_kept_in_step_and_who_is_no_user_is_a_rejection_for_later(world: World) -> None:
    world.workspace.lists["vip"] = set()
    world.workspace.users = {str(number): User() for number in range(11, ROWS + 1)}
    world.spec = replace(world.spec, query="SELECT id FROM public.customer WHERE id % 10 = 0", stream="list:vip", mapping=MAPPING[:1])

    first = world.run()
    assert (first.state, first.counts["rejected"]) == ("partial", 1)
    assert world.engine.execute("SELECT code, retryable FROM wsync.rejection").fetchall() == [("unknown_user", True)]
    assert world.workspace.lists["vip"] == {str(number) for number in range(20, ROWS + 1, 10)}
    world.admin.execute("DELETE FROM customer WHERE id IN (20, 30)")

    second = world.run()

    assert (second.counts["upserts"], second.counts["deletes"]) == (0, 2)
    assert world.workspace.lists["vip"] == {str(number) for number in range(40, ROWS + 1, 10)}
