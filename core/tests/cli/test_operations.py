"""What an operator and a producer do from the command line: look ahead, fill up the past, try again, serve queues, drain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.backfill import step_backfill

from .conftest import TEXT, Run


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def with_schedule(schedule: str, **sync: str) -> str:
    words = "".join(f"\n    {name}: {value}" for name, value in sync.items())
    return TEXT.replace('schedule: {cron: "0 0 1 1 *"}', f"schedule: {schedule}{words}").replace("mode: mirror", "mode: upsert")


def test_the_coming_times_of_a_schedule_are_shown_in_its_zone_and_in_utc(file: Path, run: Run) -> None:
    file.write_text(with_schedule('{cron: "30 2 * * *", timezone: Europe/Berlin, max_runs: 2, start: 2031-03-29T12:00:00+01:00}'))
    run("apply", file)

    shown, times = run("schedules", "next", "customers"), objects(run("schedules", "next", "customers", "--json"))

    assert shown.stdout.splitlines() == [
        "Sun 2031-03-30 03:00:00 Europe/Berlin  = 2031-03-30 01:00:00Z",
        "Mon 2031-03-31 02:30:00 Europe/Berlin  = 2031-03-31 00:30:00Z",
    ]
    assert [x["at"] for x in times] == ["2031-03-30T01:00:00+00:00", "2031-03-31T00:30:00+00:00"]


@pytest.mark.parametrize("words", [
    ("--cron", "0 0 * 2 1#5"), ("--cron", "*/5 * * * *", "--timezone", "Asia/Kathmandu"), ("--every", "90m"),
    ("--every", "1d", "--anchor", "2026-01-31T08:00:00+01:00"),
])  # fmt: skip
def test_any_expression_can_be_looked_at_before_it_is_used(run: Run, words: tuple[str, ...]) -> None:
    assert len(objects(run("schedules", "next", *words, "-n", "3", "--json"))) == 3


@pytest.mark.parametrize(("words", "message"), [
    (("--cron", "61 * * * *"), "minute"), (("--cron", "0 0 31 2 *"), "never fires"), (("--cron", "* * * * *", "--timezone", "Mars"), "zone"),
    (("--every", "1h", "--timezone", "UTC"), "--cron"), (("--every", "soon"), "duration"), (("--every", "1500ms"), "whole seconds"), ((), "name a schedule"), (("--every", "1s", "--anchor", "x"), "instant"),
    (("--every", "1s", "--anchor", "0001-01-01T00:00:00+05:00"), "calendar"), (("--every", "999999999999d"), "36500d"),
])  # fmt: skip
def test_what_is_wrong_with_an_expression_is_said(run: Run, words: tuple[str, ...], message: str) -> None:
    result = run("schedules", "next", *words)

    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("words", [
    ("sync", "run", "customers"), ("schedules", "trigger", "customers"),
    ("schedules", "backfill", "customers", "--from", "2026-01-01", "--to", "2026-01-02"),
])  # fmt: skip
def test_a_policy_that_there_is_not_is_refused_in_plain_words(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words, "--overlap", "bogus")

    said = " ".join(result.stderr.replace("│", " ").split())
    assert (result.exit_code, "'--overlap': 'bogus' is not one of 'skip'" in said) == (2, True), said


def test_a_schedule_takes_every_option_of_the_file_and_applying_again_changes_nothing(file: Path, run: Run) -> None:
    options = (
        "{every: 15m, anchor: 2026-01-01T00:00:00Z, start: 2026-01-01T00:00:00Z, end: 2099-01-01T00:00:00Z, max_runs: 9, priority: high,"
        " jitter: 10s, overlap: buffer_all, max_buffer: 5, catch_up: all, catch_up_window: 2h, max_attempts: 5, attempt_timeout: 1h,"
        " timeout: 12h, stall_timeout: 20m, pause_after_failures: 4, parameters: {least: 3}}"
    )
    file.write_text(
        with_schedule(options, parameters="{least: 0}").replace("FROM public.customers", "FROM public.customers WHERE id >= :least")
    )

    applied, again = run("apply", file), run("plan", file)

    assert applied.exit_code == 0, applied.stderr
    assert "nothing to change" in again.stderr
    shown = objects(run("schedules", "show", "customers", "--json"))[0]
    assert (shown["overlap"], shown["max_buffer"], shown["catchup_ms"], shown["params"]) == ("buffer_all", 5, 7_200_000, {"least": 3})
    assert [event["kind"] for event in shown["events"]] == ["schedule.created"]


def test_a_schedule_is_shown_in_the_words_of_the_file(file: Path, run: Run) -> None:
    file.write_text(with_schedule("{every: 90m, priority: high, catch_up_window: 2h}"))
    run("apply", file)

    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in run("schedules", "show", "customers").stdout.splitlines() if line}

    assert (shown["sync"], shown["every"], shown["priority"], shown["catch_up_window"]) == ("customers", "90m", "high", "2h")
    assert not {"every_ms", "catchup_ms", "queue"} & set(shown)
    assert objects(run("schedules", "list", "--json"))[0]["timing"] == "every 90m"


def test_a_change_is_planned_in_the_words_of_the_file(file: Path, run: Run) -> None:
    file.write_text(with_schedule("{every: 15m}"))
    run("apply", file)
    file.write_text(with_schedule("{every: 90m, catch_up_window: 2h, overlap: buffer_one}"))

    planned = run("plan", file).stdout

    assert {line.strip() for line in planned.splitlines()} == {
        "~ schedule customers",
        "~ every: 15m -> 90m",
        "~ catch_up_window: 1h -> 2h",
        "~ overlap: skip -> buffer_one",
    }


def test_a_schedule_for_a_past_instant_is_refused_and_one_for_a_future_one_is_taken(file: Path, run: Run) -> None:
    file.write_text(with_schedule("{at: 2020-01-01T00:00:00Z}"))
    past = run("apply", file)
    file.write_text(with_schedule("{at: 2099-01-01T00:00:00Z}"))
    future = run("apply", file)

    assert (past.exit_code, "never fire" in past.stderr, future.exit_code) == (2, True, 0)
    assert run("schedules", "next", "customers").stdout == "Thu 2099-01-01 00:00:00 UTC\n"


@pytest.mark.parametrize("schedule", [
    "{at: 2099-01-01}", "{at: 2099-01-01T00:00:00}", '{cron: "* * * * *", every: 1h}', "{}", '{cron: "* * * * *", anchor: 2026-01-01T00:00:00Z}',
    "{every: 1h, overlap: never}", "{every: 1h, catch_up_window: 1s}", "{every: 1h, max_runs: 0}",
    "{every: 999999999999d}", "{every: 1h, start: 2027-01-02T00:00:00Z, end: 2027-01-01T00:00:00Z}", "{every: 1h, parameters: {nobody: 1}}",
])  # fmt: skip
def test_a_schedule_that_makes_no_sense_is_refused_with_its_place(file: Path, run: Run, schedule: str) -> None:
    file.write_text(with_schedule(schedule))

    results = run("plan", file), run("apply", file)

    assert [result.exit_code for result in results] == [2, 2]
    assert all("syncs.customers.schedule" in result.stderr for result in results)


def test_a_run_is_given_parameters_that_the_sync_declares(file: Path, run: Run) -> None:
    file.write_text(
        with_schedule('{cron: "0 0 1 1 *"}', parameters="{least: 0}").replace(
            "FROM public.customers", "FROM public.customers WHERE id > :least"
        )
    )
    run("apply", file)

    given = run("schedules", "trigger", "customers", "--param", "least=7")
    unknown = run("sync", "run", "customers", "--param", "lest=7", "--overlap", "allow_all")
    malformed = run("sync", "run", "customers", "--param", "least")

    assert given.exit_code == 0
    assert (unknown.exit_code, "there are: `least`" in unknown.stderr) == (2, True)
    assert malformed.exit_code == 2


def test_a_run_shows_the_parameters_it_was_given_its_time_and_why_it_was_cancelled(file: Path, run: Run) -> None:
    file.write_text(
        with_schedule("{every: 1h}", parameters="{least: 0}").replace("FROM public.customers", "FROM public.customers WHERE id > :least")
    )
    run("apply", file)
    run_id = run("sync", "run", "customers", "--param", "least=7").stdout.strip()

    run("runs", "cancel", run_id, "--reason", "the wrong day")

    (listed,) = objects(run("runs", "list", "--sync", "customers", "--json"))
    (shown,) = objects(run("runs", "show", run_id, "--json"))
    assert (listed["outcome_reason"], listed["nominal_at"]) == ("the wrong day", shown["nominal_at"])
    assert (shown["parameters"], shown["events"][-1]["detail"]["reason"]) == ({"least": 7}, "the wrong day")


def test_a_sync_without_a_schedule_is_said_to_have_none(file: Path, run: Run) -> None:
    file.write_text(TEXT.replace('    schedule: {cron: "0 0 1 1 *"}\n', ""))
    run("apply", file)

    result = run("schedules", "trigger", "customers")

    assert (result.exit_code, "has no schedule" in result.stderr, "`wsync-engine sync run customers`" in result.stderr) == (2, True, True)


def test_an_interval_has_no_times_before_its_anchor_and_a_backfill_says_so(file: Path, run: Run) -> None:
    file.write_text(with_schedule("{every: 1h}"))
    run("apply", file)

    result = run("schedules", "backfill", "customers", "--from", "2026-01-01", "--to", "2026-01-02")

    assert (result.exit_code, "set `anchor` to an earlier instant" in result.stderr) == (2, True)


def test_runs_of_a_sync_that_is_not_there_are_no_empty_list(file: Path, run: Run) -> None:
    run("apply", file)

    none, unknown = run("runs", "list", "--sync", "customers"), run("runs", "list", "--sync", "customer")

    assert none.exit_code == 0
    assert (unknown.exit_code, "there is no sync `customer`" in unknown.stderr) == (2, True)


def test_a_second_trigger_waits_if_it_is_told_to(file: Path, run: Run) -> None:
    run("apply", file)
    run("sync", "run", "customers")

    waiting = run("sync", "run", "customers", "--overlap", "buffer_one")
    refused = run("sync", "run", "customers", "--overlap", "buffer_one")

    assert "waits" in waiting.stderr
    assert "too many" in refused.stderr
    assert [row["state"] for row in objects(run("runs", "list", "--json"))] == ["buffered", "queued"]


def test_a_past_range_is_filled_up_listed_and_cancelled(file: Path, run: Run) -> None:
    file.write_text(with_schedule("{every: 1d, anchor: 2026-01-01T00:00:00Z}"))
    run("apply", file)

    begun = run("schedules", "backfill", "customers", "--from", "2026-01-01", "--to", "2026-02-01", "--concurrency", "2", "--note", "lost")
    listed = objects(run("schedules", "backfills", "--json"))[0]
    refused = run("schedules", "backfill", "customers", "--from", "2026-02-01", "--to", "2026-01-01")
    cancelled = run("schedules", "cancel-backfill", begun.stdout.strip()[-8:])

    assert (listed["state"], listed["max_open"], listed["note"]) == ("active", 2, "lost")
    assert (refused.exit_code, cancelled.exit_code) == (2, 0)
    assert objects(run("schedules", "backfills", "--json"))[0]["state"] == "cancelled"
    assert run("schedules", "cancel-backfill", begun.stdout.strip()[-8:]).exit_code == 2


@pytest.mark.parametrize("whose", ["its own", "of the sync, before it"])
def test_a_backfill_that_waits_for_a_decision_says_so_and_what_to_do(file: Path, run: Run, database: Any, whose: str) -> None:
    file.write_text(with_schedule("{every: 1d, anchor: 2026-01-01T00:00:00Z}"))
    run("apply", file)
    if whose != "its own":
        run("sync", "run", "customers")
    backfill_id = run("schedules", "backfill", "customers", "--from", "2026-01-01", "--to", "2026-02-01").stdout.strip()
    with psycopg.connect(database.engine_url, autocommit=True) as engine:
        step_backfill(engine, UUID(backfill_id), 1)
        (run_id,) = engine.execute("UPDATE wsync.run SET state = 'blocked' WHERE state = 'queued' RETURNING run_id").fetchone() or ()

    shown = run("schedules", "backfills")
    listed = objects(run("schedules", "backfills", "--json"))[0]
    run("runs", "discard", run_id)

    assert "  waits  " in shown.stdout
    assert f"next: `wsync-engine runs show {run_id}`, then `wsync-engine runs approve {run_id}`" in shown.stderr
    assert (listed["state"], listed["blocked_run_id"]) == ("active", str(run_id))
    assert objects(run("schedules", "backfills", "--json"))[0]["blocked_run_id"] is None


def test_a_run_that_ended_without_success_is_tried_again_with_its_parameters(file: Path, run: Run, database: Any) -> None:
    file.write_text(
        with_schedule('{cron: "0 0 1 1 *"}', parameters="{least: 0}").replace(
            "FROM public.customers", "FROM public.customers WHERE id > :least"
        )
    )
    run("apply", file)
    first = run("sync", "run", "customers", "--param", "least=7").stdout.strip()
    run("runs", "cancel", first)

    again = run("runs", "retry", first).stdout.strip()

    with psycopg.connect(database.engine_url) as engine:
        rows = engine.execute("SELECT params, nominal_at FROM wsync.run WHERE run_id = ANY(%s)", [[first, again]]).fetchall()
    assert (len(rows), rows[0], rows[0][0]) == (2, rows[1], {"least": 7})
    assert "run.retries" in [event["kind"] for event in objects(run("runs", "show", again, "--json"))[0]["events"]]


def test_a_run_that_waits_for_its_next_attempt_is_hastened(file: Path, run: Run, database: Any) -> None:
    run("apply", file)
    run_id = run("sync", "run", "customers").stdout.strip()
    with psycopg.connect(database.engine_url) as engine:
        engine.execute("UPDATE wsync.run SET ready_at = now() + interval '1 hour', attempt = 1")

    again = run("runs", "retry", run_id)

    assert again.stdout.strip() == run_id
    with psycopg.connect(database.engine_url) as engine:
        assert engine.execute("SELECT ready_at <= clock_timestamp() FROM wsync.run").fetchone() == (True,)


def test_a_queue_must_be_there_before_a_sync_names_it(file: Path, run: Run, database: Any) -> None:
    file.write_text(with_schedule("{every: 1h}", queue="eu"))
    unknown = run("apply", file)
    run("queues", "add", "eu")
    known = run("apply", file)

    assert (unknown.exit_code, "sync `customers`: there is no queue `eu`" in unknown.stderr, known.exit_code) == (2, True, 0)
    assert "`wsync-engine queues add eu`" in unknown.stderr
    assert [(row["name"], row["syncs"], row["workers"]) for row in objects(run("queues", "list", "--json"))] == [
        ("default", 0, 0),
        ("eu", 1, 0),
    ]
    with psycopg.connect(database.engine_url) as engine:
        assert engine.execute("SELECT queue FROM wsync.schedule").fetchall() == [(1,)]
    file.write_text(with_schedule("{every: 1h}"))
    assert "~ queue: eu -> default" in run("apply", file).stdout
    with psycopg.connect(database.engine_url) as engine:
        assert engine.execute("SELECT queue FROM wsync.schedule").fetchall() == [(0,)]


def test_there_are_sixteen_queues_at_most(file: Path, run: Run) -> None:
    codes = [run("queues", "add", f"q{n}").exit_code for n in range(16)]

    assert codes == [0] * 15 + [2]
    assert run("queues", "add", "no spaces").exit_code == 2


def test_workers_are_listed_and_asked_to_drain(file: Path, run: Run, database: Any) -> None:
    ids = [uuid7() for _ in range(3)]
    with psycopg.connect(database.engine_url) as engine:
        for number, worker_id in enumerate(ids):
            engine.execute(
                "INSERT INTO wsync.worker (worker_id, host, slots, running, heartbeat_at) VALUES (%s, 'h', 2, 0, now() - %s * interval '3 minutes')",
                [worker_id, number // 2],
            )

    assert [row["state"] for row in objects(run("workers", "list", "--json"))] == ["silent", "working", "working"]
    assert run("workers", "drain").exit_code == 2
    assert run("workers", "drain", str(ids[2])).exit_code == 2
    assert run("workers", "drain", ids[0].hex[-8:]).exit_code == 0
    assert sorted(row["state"] for row in objects(run("workers", "list", "--json"))) == ["draining", "silent", "working"]
    assert run("workers", "drain", "--all").exit_code == 0


def test_caps_are_set_of_a_tenant_a_connection_a_sink_and_a_sync(file: Path, run: Run) -> None:
    run("apply", file)

    codes = [
        run("caps", "set", "4", "--weight", "3").exit_code,
        run("caps", "set", "2", "--connection", "here").exit_code,
        run("caps", "set", "0", "--sink", "here").exit_code,
        run("caps", "set", "1", "--sync", "customers").exit_code,
        run("caps", "set", "none").exit_code,
    ]

    assert codes == [0] * 5
    assert objects(run("caps", "list", "--json")) == [
        {"of": "the tenant", "max_running": None, "running": 0, "weight": 3},
        {"of": "sync customers", "max_running": 1, "running": 0, "weight": 1},
        {"of": "connection here", "max_running": 2, "running": 0, "weight": 1},
        {"of": "sink here", "max_running": 0, "running": 0, "weight": 1},
    ]


@pytest.mark.parametrize("words", [
    ("many",), ("-1",), ("3000000000",), ("1", "--sync", "nothing"), ("1", "--sync", "customers", "--connection", "here"), ("1", "--sync", "customers", "--weight", "2"),
])  # fmt: skip
def test_a_cap_that_makes_no_sense_is_refused(file: Path, run: Run, words: tuple[str, ...]) -> None:
    run("apply", file)

    result = run("caps", "set", *words)

    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


def test_a_person_asks_for_what_was_rejected_and_takes_it_along_as_a_file(file: Path, run: Run) -> None:
    run("apply", file)
    run_id = run("sync", "run", "customers", "--rejected").stdout.strip()

    exported = run("runs", "rejections", run_id, "--export", "refused.csv", "--json")
    refused = run("runs", "rejections", run_id, "--export", "refused.pdf")

    assert objects(run("runs", "show", run_id, "--json"))[0]["offer_rejected"] is True
    assert objects(exported) == [{"file": "refused.csv", "rows": 0}]
    assert Path("refused.csv").read_text().startswith("phase,code,message")
    assert (refused.exit_code, "next: name a file" in refused.stderr) == (2, True)


def test_a_tenant_is_purged_only_by_who_means_it(file: Path, run: Run) -> None:
    run("apply", file)
    run("sync", "run", "customers")

    unsure, still_open = run("purge", "tenant", "acme"), run("purge", "tenant", "acme", "--yes")
    purged = run("purge", "tenant", "acme", "--yes", "--cancel", "--json")

    assert (unsure.exit_code, "add --yes" in unsure.stderr) == (2, True)
    assert (still_open.exit_code, "add `--cancel`" in still_open.stderr) == (2, True)
    assert objects(purged)[0] | {"events": 0} == {
        "tenant": "acme", "runs": 1, "rejections": 0, "events": 0, "schedules": 1, "syncs": 1, "connections": 1, "files": 0,
    }  # fmt: skip
    assert "there is no tenant `acme`" in run("purge", "tenant", "acme", "--yes").stderr
    assert run("apply", file).exit_code == 0


def test_a_subscriber_is_purged_only_by_who_means_it_and_names_one(file: Path, run: Run) -> None:
    run("apply", file)

    whose, unsure = run("purge", "key", "customers", "--yes"), run("purge", "key", "customers", "--key", "7")
    purged = run("purge", "key", "customers", "--key", "7", "--yes", "--json")

    assert (whose.exit_code, "give --key" in whose.stderr) == (2, True)
    assert (unsure.exit_code, "add --yes" in unsure.stderr) == (2, True)
    assert objects(purged) == [{"sync": "customers", "entries": 0, "carried_rows": 0, "changes": 0, "rejections": 0}]
