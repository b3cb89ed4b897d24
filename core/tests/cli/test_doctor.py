from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from wsync_engine.model.declaration import sync_spec_from_json
from wsync_engine.model.ids import uuid7
from wsync_engine.model.reading import reading_fingerprint

from .conftest import TEXT, Run

Look = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def look(file: Path, run: Run) -> Look:
    """What the doctor finds, by name."""

    def call(*words: str) -> dict[str, dict[str, Any]]:
        assert run("apply", file).exit_code == 0
        result = run("doctor", *words, "--json")
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert result.exit_code == (0 if all(row["ok"] for row in found) else 1), result.output
        assert all(row["ok"] or row["next_step"] for row in found)
        return {row["check"]: row for row in found}

    return call


@pytest.fixture
def engine(database: Any) -> Any:
    with psycopg.connect(database.engine_url, autocommit=True) as connection:
        yield connection


def add_worker(engine: Any) -> None:
    engine.execute(
        "INSERT INTO wsync.worker (worker_id, host, pid, version, slots, running, heartbeat_at) VALUES (%s, 'h', 1, '1', 2, 1, now())",
        [uuid7()],
    )


def test_a_right_installation_and_sync_exit_with_0(look: Look, engine: Any, run: Run) -> None:
    add_worker(engine)

    found = look("customers")

    assert run("doctor", "customers").exit_code == 0  # also where this installation excludes plugins
    assert [name for name, row in found.items() if not row["ok"]] == []
    assert found["workers"]["message"] == "1 worker(s) with 2 slot(s), 1 in use"
    assert found["query"]["message"] == "the query gives 2 columns, the mapping sends 2 fields"
    assert "delete and upsert" in found["stream"]["message"]
    assert "due next at" in found["schedule"]["message"]


def test_without_a_worker_or_a_scheduler_it_says_what_to_start(look: Look, engine: Any, file: Path, run: Run) -> None:
    run("apply", file)
    engine.execute("UPDATE wsync.schedule_clock SET next_nominal_at = now() - interval '1 hour', next_due_at = now() - interval '1 hour'")

    found = look()

    assert found["workers"]["next_step"] == "start one: `wsync-engine worker`"
    assert found["schedulers"]["next_step"] == "start one: `wsync-engine scheduler`"


def test_a_queue_that_a_sync_names_and_nobody_serves_is_found_without_a_run(look: Look, engine: Any, file: Path, run: Run) -> None:
    run("queues", "add", "eu")
    file.write_text(TEXT.replace("    mode: mirror\n", "    mode: mirror\n    queue: eu\n"))
    run("apply", file)
    add_worker(engine)

    found = look()

    assert found["queues"]["message"] == "no worker serves the queue `eu`, which 1 sync(s) name"
    assert found["queues"]["next_step"] == "start one: `wsync-engine worker --queue eu`"


def test_a_mapping_that_does_not_fit_the_query_is_found_without_a_run(look: Look, file: Path) -> None:
    file.write_text(TEXT.replace("    mode: mirror\n", "    mode: mirror\n    mapping: {id: id, mail: e_mail}\n"))

    found = look("customers")

    assert not found["query"]["ok"]
    assert "e_mail" in found["query"]["message"]


def test_a_snapshot_whose_files_are_gone_is_found(look: Look, engine: Any, file: Path, run: Run) -> None:
    run("apply", file)
    engine.execute(
        "INSERT INTO wsync.snapshot (sync_id, tenant_id, version, manifest)"
        ' SELECT sync_id, tenant_id, 1, \'{"files": ["t/gone.parquet"], "rows": 7, "resync": 0}\' FROM wsync.sync'
    )

    assert "snapshot_lost" in look("customers")["snapshot"]["message"]
    run("sync", "resync", "customers")
    assert "offers all again" in look("customers")["snapshot"]["message"]


def test_servers_that_are_away_are_findings(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSYNC_REDIS_URL", "redis://127.0.0.1:1/0")
    for role in ("OWNER", "ENGINE", "API"):
        monkeypatch.setenv(f"WSYNC_DATABASE_URL_{role}", "postgresql://u:hunter2@127.0.0.1:1/db")

    result = run("doctor")

    assert result.exit_code == 1
    assert result.stdout.count("WRONG state_store") == 2
    assert result.stdout.count("WRONG index") == 1
    assert "hunter2" not in result.output


def test_a_sync_that_is_not_there_is_refused(look: Look, file: Path, run: Run) -> None:
    run("apply", file)

    assert run("doctor", "nobody").exit_code == 2
    stranger = run("doctor", "--tenant", "stranger")
    assert (stranger.exit_code, "stranger" in stranger.stderr) == (2, True)


@pytest.mark.parametrize(("change", "words"), [
    ("UPDATE wsync.run SET state = 'queued'", "no worker serves the queue `default`"),
    ("UPDATE wsync.run SET ready_at = now() + interval '1 hour', error = 'the warehouse is busy'", "after: the warehouse is busy"),
    ("UPDATE wsync.run SET state = 'blocked', guards = '[\"too many deletes\"]'", "waits for a person: too many deletes"),
    ("WORKER UPDATE wsync.run SET ready_at = now() - interval '1 minute'", "although slots are free"),
    ("WORKER UPDATE wsync.worker SET running = 2; UPDATE wsync.run SET ready_at = now() - interval '1 minute'", "all slots"),
    ("WORKER INSERT INTO wsync.resource_cap (tenant_id, kind, resource_id, max_running) SELECT tenant_id, 'K', credential_id, 0 FROM wsync.run",
     "nothing may run now, the cap is 0 of the sink's credential"),
    ("WORKER INSERT INTO wsync.breaker (tenant_id, credential_id, state, reason, opened_at, retry_at)"
     " SELECT tenant_id, credential_id, 'open', '503', now(), now() + interval '1 h' FROM wsync.run",
     "until its destination is tried again at"),
    ("WORKER INSERT INTO wsync.breaker (tenant_id, credential_id, state, reason, opened_at, retry_at)"
     " SELECT tenant_id, credential_id, 'half_open', '503', now(), now() FROM wsync.run",
     "while one run at a time tries its destination again"),
    ("WORKER INSERT INTO wsync.resource_cap (tenant_id, kind, resource_id, max_running) SELECT tenant_id, 'S', sync_id, 0 FROM wsync.run",
     "`wsync-engine caps set N --sync NAME` raises it"),
])  # fmt: skip
def test_it_says_why_a_run_does_not_start(look: Look, engine: Any, run: Run, change: str, words: str) -> None:
    look("customers")
    run("sync", "run", "customers")
    if change.startswith("WORKER"):
        add_worker(engine)
    engine.execute(change.removeprefix("WORKER "))

    found = look("customers")["open_run"]

    assert not found["ok"]
    assert words in found["message"] + found["next_step"]


def test_it_says_why_a_schedule_does_not_fire(look: Look, engine: Any, file: Path, run: Run) -> None:
    run("apply", file)
    run("schedules", "pause", "customers", "--note", "audit")
    paused = look("customers")["schedule"]
    run("schedules", "resume", "customers")
    engine.execute(
        "INSERT INTO wsync.run_event (tenant_id, schedule_id, kind, detail)"
        " SELECT tenant_id, schedule_id, 'schedule.skipped', '{\"reason\": \"open\"}' FROM wsync.schedule"
    )
    skipped = look("customers")["schedule"]
    engine.execute("UPDATE wsync.schedule_clock SET next_nominal_at = NULL, next_due_at = NULL")
    exhausted = look("customers")["schedule"]

    assert "audit" in paused["message"]
    assert "was skipped, as a run was open" in skipped["message"]
    assert (exhausted["ok"], "exhausted" in exhausted["message"]) == (False, True)


def open_breaker(engine: Any) -> None:
    engine.execute(
        "INSERT INTO wsync.breaker (tenant_id, credential_id, state, failures, openings, reason, opened_at, retry_at)"
        " SELECT tenant_id, connection_id, 'open', 5, 1, '503', now(), now() + interval '1 h' FROM wsync.connection"
    )


def test_a_destination_that_is_left_alone_is_found_until_a_person_saw_to_it(look: Look, engine: Any, run: Run) -> None:
    add_worker(engine)
    assert look("customers")["destinations"]["ok"]
    open_breaker(engine)

    found = look("customers")
    tested = run("connections", "test", "here")
    after = look("customers")

    assert (found["destination"]["ok"], found["destinations"]["ok"]) == (False, True)
    assert found["destinations"]["message"].endswith("their runs wait: acme/here")
    assert "`here` failed again and again, so no run starts until" in found["destination"]["message"]
    assert "the last time: 503" in found["destination"]["message"]
    assert "`wsync-engine connections test here`" in found["destination"]["next_step"]
    assert tested.exit_code == 0, tested.output
    assert "they may go now" in tested.stdout
    assert "destination" not in after
    assert after["destinations"]["message"] == "none is left alone"
    assert engine.execute("SELECT state, openings FROM wsync.breaker").fetchone() == ("closed", 1)


def test_a_changed_connection_is_tried_at_once(look: Look, engine: Any, file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    look("customers")
    open_breaker(engine)
    assert run("apply", file).exit_code == 0
    assert engine.execute("SELECT state FROM wsync.breaker").fetchone() == ("open",)

    monkeypatch.setenv("HERE_URL", os.environ["HERE_URL"] + "?application_name=moved")
    assert run("apply", file).exit_code == 0

    assert engine.execute("SELECT state, openings FROM wsync.breaker").fetchone() == ("closed", 0)


def test_a_test_that_finds_a_connection_ill_changes_nothing(
    look: Look, engine: Any, file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE_URL", "postgresql://nobody@127.0.0.1:1/x")
    assert run("apply", file).exit_code == 0
    open_breaker(engine)

    assert run("connections", "test", "here").exit_code == 1

    assert engine.execute("SELECT state FROM wsync.breaker").fetchone() == ("open",)


INCREMENTAL = (
    TEXT.replace("FROM public.customers", "FROM public.customers WHERE id >= :cursor")
    .replace("mode: mirror", "mode: upsert\n    read: incremental\n    cursor: {column: id}")
)  # fmt: skip
STORED = "INSERT INTO wsync.snapshot (sync_id, tenant_id, version, manifest, cursor) SELECT sync_id, tenant_id, 1, %s, %s FROM wsync.sync"


def store_cursor(engine: Any, cursor: dict[str, str]) -> None:
    spec = sync_spec_from_json(engine.execute("SELECT spec FROM wsync.sync").fetchone()[0])
    stored = {"version": 1, "fingerprint": reading_fingerprint(spec, {}), "last_sync_at": "2026-03-01T00:00:00+00:00", "cursor": cursor}
    engine.execute(STORED, [json.dumps({"files": [], "rows": 7, "resync": 0}), json.dumps(stored)])


def test_it_says_where_the_next_run_reads_from(look: Look, engine: Any, file: Path, run: Run) -> None:
    file.write_text(INCREMENTAL)
    found = look("customers")
    assert (found["query"]["ok"], found["cursor"]["message"]) == (
        True,
        "the next run reads from the start: no run has settled all of its changes yet",
    )

    store_cursor(engine, {"kind": "integer", "value": "42"})

    assert look("customers")["cursor"]["message"].startswith(
        "the next run reads on from `id` 42, less the overlap; the last settled run began"
    )
    run("sync", "resync", "customers")
    assert look("customers")["cursor"]["message"].startswith("the next run reads from the start: a resync was asked for")


def test_it_shows_no_text_that_is_a_cursor(look: Look, engine: Any, file: Path, run: Run) -> None:
    file.write_text(INCREMENTAL.replace("WHERE id", "WHERE email").replace("column: id", "column: email"))
    run("apply", file)
    store_cursor(engine, {"kind": "text", "sealed": "c2VhbGVk"})

    message = look("customers")["cursor"]["message"]

    assert message.startswith("the next run reads on from `email` a text, encrypted, less")


def test_a_cursor_that_does_not_fit_the_query_is_found_without_a_run(look: Look, file: Path) -> None:
    file.write_text(INCREMENTAL.replace("column: id", "column: id, overlap: 10m"))
    found = look("customers")
    assert (found["query"]["ok"], found["query"]["next_step"]) == (False, "write a number")

    file.write_text(INCREMENTAL.replace("column: id", "column: ids"))
    assert look("customers")["query"]["next_step"] == "did you mean `id`?"
