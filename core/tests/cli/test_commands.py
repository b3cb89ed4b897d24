from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("words", [[], ["runs"], ["sync", "run"], ["schedules"], ["apply"], ["worker"], ["up"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom wsync_engine.cli.main import app\n"
        f"try: app({[*words, '--help']!r})\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'pyarrow', 'duckdb', 'psycopg', 'redis', 'sqlalchemy'} & set(sys.modules)\nassert not heavy, heavy"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("module", ["wsync_engine.scheduler.loop", "wsync_engine.worker.supervisor", "wsync_engine.worker.connectors"])
def test_processes_that_touch_no_rows_load_no_arrow(module: str) -> None:
    code = f"import sys, wsync_engine.cli.session, {module}\nsys.exit(bool({{'pyarrow', 'duckdb'}} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout.startswith("wsync-engine ")


def test_plugins_are_listed_one_object_per_line(file: Path, run: Run) -> None:
    found = {row["distribution"]: row for row in objects(run("plugins", "list", "--json"))}

    assert found["wsync-postgres"]["ok"]
    assert found["wsync-postgres"]["sources"] == ["postgres"]


def test_init_writes_a_file_that_plan_accepts_and_never_overwrites(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_URL", "postgresql://h/d")
    monkeypatch.setenv("CRM_URL", "postgresql://h/d")

    first, again = run("init", "new.yaml"), run("init", "new.yaml")

    assert (first.exit_code, again.exit_code) == (0, 2)
    assert run("plan", "new.yaml").exit_code == 0


def test_plan_shows_the_change_and_tells_by_its_exit_code(file: Path, run: Run) -> None:
    before = run("plan", file, "--exit-code")
    applied = run("apply", file)
    after = run("plan", file, "--exit-code")

    assert (before.exit_code, applied.exit_code, after.exit_code) == (3, 0, 0)
    assert "+ sync customers" in before.stdout
    assert "nothing to change" in after.stderr
    assert after.stdout == ""


def test_without_a_name_the_file_of_the_current_folder_is_planned_and_applied(file: Path, run: Run) -> None:
    planned, applied = run("plan", "--exit-code"), run("apply")
    file.rename("other.yaml")
    missing = [run("plan"), run("apply")]

    assert (planned.exit_code, applied.exit_code) == (3, 0)
    for result in missing:
        assert result.exit_code == 2
        assert result.stderr == (
            "error: there is no wsync.yaml in this folder\nnext: name the file, or write one with `wsync-engine init`\n"
        )


def test_a_plan_makes_neither_servers_nor_a_key_nor_a_folder(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    beside_own_servers = run("plan", "--exit-code")
    for name in ("DATABASE_URL_OWNER", "DATABASE_URL_ENGINE", "DATABASE_URL_API", "REDIS_URL"):
        monkeypatch.delenv(f"WSYNC_{name}")

    embedded = run("plan", "--exit-code")

    assert (beside_own_servers.exit_code, embedded.exit_code) == (3, 3)
    assert embedded.stdout == beside_own_servers.stdout
    assert "there is no installation in" in embedded.stderr
    assert [path.name for path in file.parent.iterdir()] == ["wsync.yaml"]


def test_a_mistake_in_the_file_makes_no_installation(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL_OWNER", "DATABASE_URL_ENGINE", "DATABASE_URL_API", "REDIS_URL"):
        monkeypatch.delenv(f"WSYNC_{name}")
    file.write_text(file.read_text().replace("mode:", "mod:"))

    assert [run("plan", file).exit_code, run("apply", file).exit_code] == [2, 2]
    assert [path.name for path in file.parent.iterdir()] == ["wsync.yaml"]


def test_a_changed_field_is_shown_with_both_values(file: Path, run: Run) -> None:
    run("apply", file)
    file.write_text(file.read_text().replace("mode: mirror", "mode: upsert"))

    assert run("plan", file).stdout == "~ sync customers\n  ~ mode: mirror -> upsert\n"
    assert objects(run("plan", file, "--json"))[0]["fields"] == [{"path": "mode", "old": "mirror", "new": "upsert"}]


def test_a_mistake_exits_with_2_and_says_what_to_do(file: Path, run: Run) -> None:
    file.write_text(file.read_text().replace("mode:", "mod:"))

    result = run("plan", file)

    assert result.exit_code == 2
    assert "syncs.customers.mod: `mod` is not known; next: did you mean `mode`?" in result.stderr
    assert "Traceback" not in result.output


def error_of(result: Any) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(result.stderr.splitlines()[-1])
    assert list(error)[:3] == ["error", "where", "next_step"]
    assert "error: " not in result.stderr
    return error


def test_with_json_a_mistake_in_the_file_is_an_object_with_its_place(file: Path, run: Run) -> None:
    file.write_text(file.read_text().replace("mode:", "mod:"))
    for name in ("plan", "apply"):
        result = run(name, "--json")

        error = error_of(result)
        assert (result.exit_code, result.stdout) == (2, "")
        assert (error["error"], error["where"], error["next_step"]) == ("2 mistakes", "wsync.yaml", "correct these 2 mistakes")
        assert {"error": "`mod` is not known", "where": "wsync.yaml:12: syncs.customers.mod", "next_step": "did you mean `mode`?"} in error[
            "mistakes"
        ]


@pytest.mark.parametrize(("words", "code", "where"), [
    (("sync", "run", "nobody", "--json"), 2, None),
    (("sync", "run", "customers", "--json", "--overlap", "bogus"), 2, "--overlap"),
    (("sync", "run", "--json"), 2, "name"),
    (("rusn", "--json"), 2, ""),
])  # fmt: skip
def test_with_json_every_error_is_one_object_and_the_exit_code_stays(
    file: Path, run: Run, words: tuple[str, ...], code: int, where: str | None
) -> None:
    run("apply")
    as_text, as_object = run(*[word for word in words if word != "--json"]), run(*words)

    error = error_of(as_object)
    assert (as_text.exit_code, as_object.exit_code, as_object.stdout) == (code, code, "")
    assert (where is None) == (error["where"] is None)
    assert error["where"] is None or error["where"].endswith(where)
    assert error["error"]
    assert error["next_step"]


def test_with_json_a_state_store_that_is_away_is_an_object_too(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSYNC_DATABASE_URL_API", "postgresql://u:hunter2@127.0.0.1:1/d")

    result = run("runs", "list", "--json")

    assert (result.exit_code, error_of(result)["where"]) == (5, None)
    assert "hunter2" not in result.output


def test_a_state_store_that_is_away_exits_with_5(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSYNC_DATABASE_URL_API", "postgresql://u:hunter2@127.0.0.1:1/d")

    result = run("runs", "list")

    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1].startswith("next: ")
    assert "hunter2" not in result.output


def test_without_a_file_the_tenant_must_be_named(file: Path, run: Run) -> None:
    run("apply", file)
    file.rename("other.yaml")

    unnamed, named, unknown = run("runs", "list"), run("runs", "list", "--tenant", "acme"), run("runs", "list", "--tenant", "nobody")

    assert (unnamed.exit_code, named.exit_code, unknown.exit_code) == (2, 0, 2)


def test_a_connection_is_tested_in_each_role_it_has(file: Path, run: Run) -> None:
    run("apply", file)

    found = objects(run("connections", "test", "here", "--json"))

    assert {row["role"] for row in found} == {"source", "sink"}
    assert run("connections", "test", "nowhere").exit_code == 2


def test_a_run_is_queued_listed_shown_and_cancelled(file: Path, run: Run) -> None:
    run("apply", file)

    queued = run("sync", "run", "customers")
    run_id = queued.stdout.strip()

    assert "no worker is running" in queued.stderr
    assert [row["run_id"] for row in objects(run("runs", "list", "--json"))] == [run_id]
    assert "skipped" in run("sync", "run", "customers", "--wait").stderr
    assert run("runs", "cancel", run_id[:13]).exit_code == 0
    shown = objects(run("runs", "show", run_id, "--json"))[0]
    assert (shown["state"], [event["kind"] for event in shown["events"]]) == ("cancelled", ["run.queued", "run.cancelled"])
    assert run("runs", "watch", run_id).exit_code == 1
    assert run("runs", "list", "--state", "asleep").exit_code == 2


def test_the_changes_of_a_run_that_has_found_none_out_yet_are_an_error_with_a_next_step(file: Path, run: Run) -> None:
    run("apply", file)
    run_id = run("sync", "run", "customers").stdout.strip()

    early = run("runs", "changes", run_id)
    unknown = run("runs", "changes", run_id, "--op", "insert")

    assert (early.exit_code, "has no change log" in early.stderr) == (2, True)
    assert f"`wsync-engine runs show {run_id}`" in early.stderr
    assert (unknown.exit_code, "upsert or delete" in unknown.stderr) == (2, True)


def test_a_blocked_run_is_approved_only_once(file: Path, run: Run) -> None:
    run("apply", file)
    run_id = run("sync", "run", "customers").stdout.strip()

    assert run("runs", "approve", run_id).exit_code == 2
    assert run("runs", "discard", run_id).exit_code == 2


def test_a_schedule_is_paused_and_resumed(file: Path, run: Run) -> None:
    run("apply", file)

    run("schedules", "pause", "customers", "--note", "holiday")
    paused = objects(run("schedules", "list", "--json"))[0]
    run("schedules", "resume", "customers")

    assert (paused["paused"], paused["pause_note"], paused["next_due_at"]) == (True, "holiday", None)
    assert objects(run("schedules", "list", "--json"))[0]["next_due_at"]
    assert run("schedules", "trigger", "customers").exit_code == 0


def test_a_second_pause_says_whose_note_stays_and_a_new_note_takes_its_place(file: Path, run: Run) -> None:
    run("apply", file)
    run("schedules", "pause", "customers", "--note", "holiday")

    again, noted = run("schedules", "pause", "customers"), run("schedules", "pause", "customers", "--note", "audit")

    assert again.stderr.startswith("customers was paused already, by cli")
    assert again.stderr.endswith("; the note stays: holiday\n")
    assert noted.stderr == "customers was paused already; its note is now: audit\n"
    assert objects(run("schedules", "list", "--json"))[0]["pause_note"] == "audit"


def test_upgrading_twice_does_nothing(file: Path, run: Run) -> None:
    assert [run("db", "upgrade").exit_code for _ in range(2)] == [0, 0]
