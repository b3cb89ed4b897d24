"""`append` and `replace` through the real connectors: what a destination holds after runs that died, and were given up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from wsync_engine.model.sync import Cursor, Guards, MappingEntry, Mode, Read
from wsync_sdk import ConfigError, FatalError, RetryableError
from wsync_suprsend.double import User, Workspace, serving
from wsync_suprsend.double.server import Call, Handler

from .misbehaving import Endpoint
from .misbehaving import serving as endpoint_serving
from .one_sync import Crash, OneSync
from .test_misbehaving_destination import World as HttpWorld
from .test_postgres_to_postgres import ROWS
from .test_postgres_to_postgres import World as PostgresWorld
from .test_postgres_to_suprsend import World as SuprSendWorld


def crash_at(step: str, occurrence: int) -> Any:
    left = [occurrence]

    def faults(name: str) -> None:
        left[0] -= name == step
        if name == step and left[0] == 0:
            raise Crash(step)

    return faults


def given_up(world: OneSync, step: str, occurrence: int = 1) -> UUID:
    """A run that died at a step, and was ended without its process."""
    run_id = world.new_run()
    with pytest.raises(Crash):
        world.attempt(run_id, crash_at(step, occurrence))
    world.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now(), worker_id = NULL WHERE run_id = %s", (run_id,))
    return run_id


# -- append


@pytest.fixture
def postgres(database: Any, servers: Any, tmp_path: Path) -> Iterator[PostgresWorld]:
    made = PostgresWorld(database, servers.endpoints.admin_url, tmp_path)
    made.admin.execute("CREATE TABLE subscriber (id bigint, email text, full_name text, score numeric, extra jsonb, seen_at timestamptz)")
    made.spec = replace(made.spec, mode=Mode.APPEND)
    yield made
    made.close()


def counted(world: PostgresWorld) -> tuple[Any, ...]:
    row = world.admin.execute("SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE full_name LIKE '%!') FROM subscriber").fetchone()
    assert row is not None
    return row


@pytest.mark.parametrize(
    ("step", "occurrence"), [("after_mark_sent", 1), ("after_write", 1), ("before_ack", 1), ("after_ack", 1), ("before_commit", 1)]
)
def test_a_table_without_a_key_has_each_row_once_though_a_run_died_and_was_given_up(
    postgres: PostgresWorld, step: str, occurrence: int
) -> None:
    given_up(postgres, step, occurrence)
    postgres.change()

    after = postgres.run()

    assert (after.state, after.counts["upserts"]) == ("succeeded", 50)
    assert counted(postgres) == (ROWS + 50, ROWS + 50, 0)
    assert postgres.run().counts["upserts"] == 0


def test_a_window_is_appended_once_by_its_cursor(postgres: PostgresWorld) -> None:
    query = "SELECT id, email, full_name, score, extra, seen_at FROM customer WHERE seen_at >= :cursor"
    postgres.spec = replace(
        postgres.spec, query=query, split_by=None, read=Read.INCREMENTAL, cursor=Cursor(column="seen_at", overlap_ms=60_000)
    )
    postgres.run()
    postgres.change()

    after = postgres.run()

    assert (after.state, after.counts["upserts"]) == ("succeeded", 50)
    assert after.counts["unchanged"] > 0, "the overlap is read again"
    assert counted(postgres) == (ROWS + 50, ROWS + 50, 0)


def test_a_table_is_not_replaced(postgres: PostgresWorld) -> None:
    postgres.spec = replace(postgres.spec, mode=Mode.REPLACE)

    with pytest.raises(ConfigError, match="has no versions"):
        postgres.run()


@pytest.fixture
def http(database: Any, servers: Any, tmp_path: Path) -> Iterator[HttpWorld]:
    with endpoint_serving(Endpoint()) as endpoint:
        made = HttpWorld(database, servers.endpoints.admin_url, tmp_path, endpoint)
        made.spec = replace(made.spec, mode=Mode.APPEND)
        yield made
        made.close()


def test_an_endpoint_gets_what_was_left_under_the_keys_it_knows(http: HttpWorld) -> None:
    left = given_up(http, "after_write", 3)

    after = http.run()

    assert (after.state, after.counts["upserts"]) == ("succeeded", 0)
    assert {len(bodies) for bodies in http.endpoint.bodies_by_key().values()} == {1}
    assert all(str(left) in key for key in http.endpoint.bodies_by_key())
    http.assert_all_arrived()


# -- replace


@pytest.fixture
def suprsend(database: Any, servers: Any, tmp_path: Path) -> Iterator[SuprSendWorld]:
    workspace = Workspace(users={str(number): User() for number in range(1, 1_001)}, lists={"vip": {"1", "777"}})
    with serving(workspace) as server:
        made = SuprSendWorld(database, servers.endpoints.admin_url, tmp_path, server)
        made.spec = replace(
            made.spec,
            query="SELECT id FROM customer WHERE id <= 250",
            stream="list:vip",
            mode=Mode.REPLACE,
            mapping=(MappingEntry(target="distinct_id", column="id"),),
            guards=Guards(max_delete_percent=None),
        )
        yield made
        made.close()


def ids(first: int, last: int) -> set[str]:
    return {str(number) for number in range(first, last + 1)}


def vip(world: SuprSendWorld) -> set[str]:
    return world.workspace.lists["vip"]


def test_a_list_is_the_result_and_nobody_else(suprsend: SuprSendWorld) -> None:
    first = suprsend.run()
    members = set(vip(suprsend))
    calls = len(suprsend.server.calls)
    same = suprsend.run()
    read_only = {call.method for call in suprsend.server.calls[calls:]} <= {"GET"}
    suprsend.admin.execute("DELETE FROM customer WHERE id <= 50")

    second = suprsend.run()

    assert (first.state, members) == ("succeeded", ids(1, 250))
    assert (same.counts["unchanged"], same.counts["upserts"], read_only) == (250, 0, True)
    assert (second.state, second.counts["upserts"], vip(suprsend)) == ("succeeded", 200, ids(51, 250))
    assert suprsend.workspace.drafts["vip"] == {}


@pytest.mark.parametrize(
    "step", ["after_start_delivery", "after_mark_sent", "after_write", "after_ack", "before_commit", "after_commit", "before_finish"]
)
def test_the_list_is_whole_wherever_a_run_dies_and_is_given_up(suprsend: SuprSendWorld, step: str) -> None:
    suprsend.run()
    suprsend.admin.execute("DELETE FROM customer WHERE id <= 50")
    given_up(suprsend, step)
    assert vip(suprsend) in (ids(1, 250), ids(51, 250))
    suprsend.admin.execute("DELETE FROM customer WHERE id > 200")

    assert suprsend.run().state == "succeeded"
    assert (vip(suprsend), suprsend.workspace.drafts["vip"]) == (ids(51, 200), {})


@pytest.mark.parametrize("step", ["after_start_delivery", "after_write", "before_commit", "after_commit", "before_finish"])
def test_a_run_that_is_taken_up_again_goes_on_in_its_draft(suprsend: SuprSendWorld, step: str) -> None:
    run_id = suprsend.new_run()
    with pytest.raises(Crash):
        suprsend.attempt(run_id, crash_at(step, 1))

    assert suprsend.attempt(run_id).state == "succeeded"
    assert vip(suprsend) == ids(1, 250)
    assert len([call for call in suprsend.server.calls if call.target.endswith("/start_sync/")]) == 1


def test_a_user_that_is_not_there_leaves_the_list_as_it_was(suprsend: SuprSendWorld) -> None:
    del suprsend.workspace.users["7"]
    run_id = suprsend.new_run()

    with pytest.raises(FatalError, match="1 of 250 rows were rejected"):
        suprsend.attempt(run_id)
    suprsend.end(run_id)

    assert (vip(suprsend), suprsend.workspace.drafts["vip"]) == ({"1", "777"}, {})
    suprsend.spec = replace(suprsend.spec, guards=Guards(max_rejection_percent=1, max_delete_percent=None))
    assert (suprsend.run().state, vip(suprsend)) == ("partial", ids(1, 250) - {"7"})


def test_a_finish_that_was_not_answered_is_looked_up(suprsend: SuprSendWorld) -> None:
    lost = []

    def lose_the_finish(handler: Handler, call: Call) -> None:
        answer = handler.server.workspace.answer(call.method, call.target, call.headers, call.body)
        if call.method == "PATCH":
            lost.append(call.target)
            handler.close_connection = True
        else:
            handler.reply(answer)

    suprsend.server.script = [lose_the_finish] * 100
    run_id = suprsend.new_run()
    with pytest.raises(RetryableError):
        suprsend.attempt(run_id)
    suprsend.server.script = []

    assert suprsend.attempt(run_id).state == "succeeded"
    assert (len(lost), vip(suprsend)) == (1, ids(1, 250))
    assert suprsend.run().counts["unchanged"] == 250
