from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
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
    """As from a terminal: whoever runs the tests in the background lets them ignore SIGINT, and what they start as well."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "wsync_engine.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no other thread holds a lock here
    )


@contextmanager
def line(port: int, server_port: int) -> Iterator[None]:
    """From a port of 127.0.0.1 to another, for as long as the context lasts."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", server_port)) as server:
                threading.Thread(target=pump, args=(self.request, server), daemon=True).start()
                pump(server, self.request)

    listener = socketserver.ThreadingTCPServer(("127.0.0.1", port), Line)
    listener.daemon_threads = True
    threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown()
        listener.server_close()


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
    assert "`wsync-engine runs changes" in guarded.stderr
    assert changes_of(run, run_id, "--op", "delete") == [{"operation": "delete", "record": {"id": n}} for n in range(3, 11)]
    assert changes_of(run, run_id, "--op", "upsert") == []
    assert len(changes_of(run, run_id, "--limit", "3")) == 3
    assert run("runs", "approve", run_id).exit_code == 0
    assert run("runs", "watch", run_id).exit_code == 0
    with psycopg.connect(database.owner_url) as owner:
        assert owner.execute("SELECT count(*) FROM public.people").fetchone() == (2,)
    up.send_signal(signal.SIGTERM)
    assert up.wait(40) == 0


def changes_of(run: Run, run_id: str, *options: str) -> list[dict[str, Any]]:
    shown = run("runs", "changes", run_id, *options, "--json")
    assert shown.exit_code == 0, shown.output
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    return sorted(found, key=lambda change: change["record"]["id"])


def test_a_dry_run_sends_nothing_and_exits_with_0(up: subprocess.Popen[bytes], file: Path, run: Run, database: Any) -> None:
    result = run("sync", "run", "customers", "--dry-run", "--wait", "--json")

    assert result.exit_code == 0, result.output + (file.parent / "log").read_text()
    run_id = json.loads(result.stdout.splitlines()[-1])["run_id"]
    record = {"id": 1, "email": "user1@example.com"}
    assert {"operation": "upsert", "record": record} in changes_of(run, run_id)
    assert "id=1 email=user1@example.com" in run("runs", "changes", run_id).stdout
    shutil.rmtree(file.parent / "data" / "storage")
    gone = run("runs", "changes", run_id)
    assert (gone.exit_code, "not in the storage folder of this host" in gone.stderr) == (2, True)
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
    assert b"trying again for 15 s" in errors
    assert b" ended with exit code 5\nnext: its last lines above say why" in errors
    assert b"running; Ctrl-C ends it" not in errors


def test_up_says_that_it_runs_when_both_roles_have_shown_themselves(up: subprocess.Popen[bytes], file: Path, database: Any) -> None:
    log = file.parent / "log"
    wait_for(lambda: b"running; Ctrl-C ends it" in log.read_bytes())

    before = log.read_bytes().partition(b"running; Ctrl-C ends it")[0]
    assert (b"scheduler.started" in before, b"worker.started" in before) == (True, True)
    with psycopg.connect(database.engine_url) as engine:
        assert engine.execute("SELECT count(*) FROM wsync.worker").fetchone() == (1,)


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_up_ends_and_says_so_when_a_role_is_killed(up: subprocess.Popen[bytes], file: Path, role: str) -> None:
    log = file.parent / "log"
    wait_for(lambda: b"running; Ctrl-C ends it" in log.read_bytes())
    (victim,) = [child for child in psutil.Process(up.pid).children() if role in child.cmdline()]

    victim.kill()

    assert up.wait(60) == 1
    assert f"error: the {role} was ended by SIGKILL\nnext: " in log.read_text()


def test_roles_wait_for_servers_that_are_still_starting(file: Path, monkeypatch: pytest.MonkeyPatch, database: Any) -> None:
    server = urlsplit(database.engine_url)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]  # where nobody listens when this is closed
    for name, url in (("OWNER", database.owner_url), ("ENGINE", database.engine_url), ("API", database.api_url)):
        monkeypatch.setenv(f"WSYNC_DATABASE_URL_{name}", url.replace(f":{server.port}/", f":{port}/"))
    log = file.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wsync_engine.cli", "up"], stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(lambda: log.read_bytes().count(b"trying again") == 2)

        with line(port, int(server.port or 0)):
            wait_for(lambda: b"running; Ctrl-C ends it" in log.read_bytes())
            process.terminate()
            assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_who_waits_is_told_again_that_nobody_works(file: Path, run: Run) -> None:
    run("apply", file)
    waiting = command("sync", "run", "customers", "--wait")
    assert waiting.stderr is not None

    hints = 0
    while hints < 2:
        said = waiting.stderr.readline()
        assert said, "it ended"
        hints += b"no worker is running" in said

    os.kill(waiting.pid, signal.SIGINT)
    waiting.communicate(timeout=20)


def test_waiting_can_be_interrupted_and_the_run_stays(file: Path, run: Run) -> None:
    run("apply", file)
    waiting = command("sync", "run", "customers", "--wait")
    assert waiting.stderr is not None
    assert b"queued" in waiting.stderr.readline()

    os.kill(waiting.pid, signal.SIGINT)
    waiting.communicate(timeout=20)

    assert waiting.returncode == 130
    assert json.loads(run("runs", "list", "--json").stdout)["state"] == "queued"
