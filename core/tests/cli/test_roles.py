from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import Run


def wait_for(is_met: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not is_met():
        assert time.monotonic() < until_s, "timed out"
        pause.wait(0.05)


def command(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "wsync_engine.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.fixture
def up(file: Path, run: Run) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler and a worker; what they say goes to the file `log`."""
    assert run("apply", file).exit_code == 0
    (file.parent / "redis.py").write_text("raise SystemExit('a module of the current folder')")
    with (file.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wsync_engine.cli", "up", "--slots", "1"], stdout=log, stderr=log, start_new_session=True
        )
    yield process
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
    process.kill()
    process.wait()


def test_up_runs_a_sync_from_end_to_end_and_ends_on_a_signal(up: subprocess.Popen[bytes], file: Path, run: Run, database: Any) -> None:
    first = run("sync", "run", "customers", "--wait", "--json")

    assert first.exit_code == 0, first.output + (file.parent / "log").read_text()
    assert json.loads(first.stdout.splitlines()[-1])["state"] == "succeeded"
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        row = owner.execute("SELECT count(*), min(id) FROM public.people").fetchone()
        assert row == (10, 1)
        owner.execute("DELETE FROM public.customers WHERE id > 2")
    guarded = run("sync", "run", "customers", "--wait")
    run_id = json.loads(run("runs", "list", "--state", "blocked", "--json").stdout)["run_id"]
    assert guarded.exit_code == 4, guarded.output
    assert run("runs", "approve", run_id).exit_code == 0
    assert run("runs", "watch", run_id).exit_code == 0
    with psycopg.connect(database.owner_url) as owner:
        assert owner.execute("SELECT count(*) FROM public.people").fetchone() == (2,)
    up.send_signal(signal.SIGTERM)
    assert up.wait(40) == 0


def test_a_dry_run_sends_nothing_and_exits_with_0(up: subprocess.Popen[bytes], file: Path, run: Run, database: Any) -> None:
    result = run("sync", "run", "customers", "--dry-run", "--wait")

    assert result.exit_code == 0, result.output + (file.parent / "log").read_text()
    with psycopg.connect(database.owner_url) as owner:
        assert owner.execute("SELECT count(*) FROM public.people").fetchone() == (0,)


def test_a_full_sink_is_adopted_and_a_resync_offers_everything_again(
    up: subprocess.Popen[bytes], file: Path, run: Run, database: Any
) -> None:
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute("INSERT INTO public.people SELECT id, 'older ' || email FROM public.customers")

        adopted = run("sync", "adopt", "customers", "--wait", "--json")

        assert adopted.exit_code == 0, adopted.output + (file.parent / "log").read_text()
        assert "nothing was sent" in json.loads(adopted.stdout.splitlines()[-1])["outcome_reason"]
        assert owner.execute("SELECT count(*) FROM public.people WHERE email LIKE 'older%'").fetchone() == (10,)
        assert "10 subscribers" in run("sync", "resync", "customers").stderr
        assert run("sync", "run", "customers", "--wait").exit_code == 0
        assert owner.execute("SELECT count(*) FROM public.people WHERE email LIKE 'older%'").fetchone() == (0,)


def test_on_a_terminal_a_run_is_followed_by_bars(file: Path, run: Run) -> None:
    run("apply", file)
    run_id = run("sync", "run", "customers").stdout.strip()
    run("runs", "cancel", run_id)
    ours, theirs = pty.openpty()

    process = subprocess.Popen(
        [sys.executable, "-m", "wsync_engine.cli", "runs", "watch", run_id],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    out, _ = process.communicate(timeout=60)

    assert b"changes delivered" in os.read(ours, 65_536)
    os.close(ours)
    assert (process.returncode, b"cancelled" in out, b"changes delivered" in out) == (1, True, False)


def test_a_worker_with_another_storage_refuses_to_start(up: subprocess.Popen[bytes], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for(lambda: b"worker.started" in (file.parent / "log").read_bytes())
    monkeypatch.setenv("WSYNC_STORAGE_URL", (file.parent / "elsewhere").as_uri())

    process = command("worker")
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 2
    assert b"next: set WSYNC_STORAGE_URL" in errors


def test_up_ends_with_the_exit_code_of_the_role_that_ended(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("OWNER", "ENGINE", "API"):
        monkeypatch.setenv(f"WSYNC_DATABASE_URL_{role}", "postgresql://u@127.0.0.1:1/db")

    process = command("up")
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 5
    assert b"the state store can't be reached" in errors


def test_waiting_can_be_interrupted_and_the_run_stays(file: Path, run: Run) -> None:
    run("apply", file)
    waiting = command("sync", "run", "customers", "--wait")
    assert waiting.stderr is not None
    assert b"queued" in waiting.stderr.readline()

    os.kill(waiting.pid, signal.SIGINT)
    waiting.communicate(timeout=20)

    assert waiting.returncode == 130
    assert json.loads(run("runs", "list", "--json").stdout)["state"] == "queued"
