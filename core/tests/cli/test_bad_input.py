"""What a person can get wrong in a sync, each through real processes: one clear message at the right place, and nothing half-done."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import Run
from .test_roles import command, wait_for

CONNECTIONS = """\
version: 1
tenant: acme
connections:
  here: {plugin: postgres, config: {url: env:HERE_URL}}
  wrong_password: {plugin: postgres, config: {url: env:WRONG_URL}}
  nowhere: {plugin: postgres, config: {url: env:NOWHERE_URL}}
syncs:
"""
GOOD = {
    "source": "here",
    "query": "SELECT id, email FROM public.customers",
    "key": "id",
    "sink": "here",
    "stream": "public.people",
    "mode": "mirror",
}


@pytest.fixture
def worker(file: Path, run: Run, database: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    login, _, place = database.owner_url.partition("@")
    monkeypatch.setenv("WRONG_URL", f"{login.rpartition(':')[0]}:hunter2@{place}")
    monkeypatch.setenv("NOWHERE_URL", f"{login}@127.0.0.1:1/db")
    process = command("up", "--slots", "1")
    yield process
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=40)
    process.kill()


def outcome(run: Run, file: Path, **changes: str) -> dict[str, Any]:
    """Apply one sync and run it to its end."""
    lines = [f"    {name}: {json.dumps(value)}" for name, value in {**GOOD, **changes}.items()]
    file.write_text(CONNECTIONS + "  customers:\n" + "\n".join(lines) + "\n")
    assert run("apply", file).exit_code == 0
    result = run("sync", "run", "customers", "--wait", "--json")
    assert result.exit_code == 1, result.output
    shown: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert f"next: {shown['next_step']}" in result.stderr or shown["state"] == "partial"
    return shown


def test_mistakes_in_a_sync_end_its_run_with_what_where_and_what_next(
    worker: subprocess.Popen[bytes], file: Path, run: Run, database: Any
) -> None:
    bad_sql = outcome(run, file, query="SELECT id, e_mail FROM public.customers")
    bad_password = outcome(run, file, source="wrong_password")
    bad_column = outcome(run, file, mapping={"id": "id", "mail": "e_mail"})  # type: ignore[arg-type]
    bad_table = outcome(run, file, stream="no_schema.people")

    assert (bad_sql["state"], bad_sql["error_class"]) == ("failed", "ConfigError")
    assert 'column "e_mail" does not exist' in bad_sql["error"]
    assert bad_password["error_class"] == "ConfigError"
    assert "hunter2" not in json.dumps([bad_password, run("runs", "show", bad_password["run_id"]).output])
    assert "e_mail" in bad_column["error"]
    assert "no_schema" in bad_table["error"]
    with psycopg.connect(database.owner_url) as owner:
        assert owner.execute("SELECT count(*) FROM public.people").fetchone() == (0,)


def test_rows_that_can_not_be_sent_are_listed_and_the_others_arrive(
    worker: subprocess.Popen[bytes], file: Path, run: Run, database: Any
) -> None:
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE public.people ADD CHECK (email <> 'poison')")
        owner.execute("UPDATE public.customers SET email = 'poison' WHERE id = 1")
        query = "SELECT id, email FROM public.customers UNION ALL VALUES (NULL, 'nobody'), (2, 'twice')"

        partial = outcome(run, file, query=query)
        rejected = json.loads(run("runs", "show", partial["run_id"], "--json").stdout)["rejected"]

        assert partial["state"] == "partial"
        assert {(row["code"], row["rows"]) for row in rejected} == {("check_violation", 1), ("key_null", 1), ("duplicate_key", 1)}
        one_by_one = [json.loads(line) for line in run("runs", "rejections", partial["run_id"], "--json").stdout.splitlines()]
        refused = {row["code"]: row["refused"] for row in one_by_one}
        assert refused["check_violation"] == {"wsync_op": "upsert", "id": 1, "email": "poison"}
        assert (refused["key_null"], refused["duplicate_key"]) == ({"email": "nobody"}, {"id": 2})
        assert owner.execute("SELECT array_agg(id ORDER BY id) FROM public.people").fetchone() == ([3, 4, 5, 6, 7, 8, 9, 10],)


def test_a_warehouse_that_is_away_is_tried_again_and_said_meanwhile(
    worker: subprocess.Popen[bytes], file: Path, run: Run, database: Any
) -> None:
    file.write_text(CONNECTIONS + "  customers:\n" + "\n".join(f"    {k}: {v}" for k, v in {**GOOD, "source": "nowhere"}.items()) + "\n")
    run("apply", file)
    run_id = run("sync", "run", "customers").stdout.strip()

    wait_for(lambda: json.loads(run("runs", "show", run_id, "--json").stdout)["attempt"] == 1)

    shown = json.loads(run("runs", "show", run_id, "--json").stdout)
    assert (shown["state"], shown["error_class"]) == ("queued", "RetryableError")
    assert shown["next_step"]
    assert run("runs", "cancel", run_id).exit_code == 0
