"""Embedded servers: shared by processes, stopped by the last, started again whatever was killed, and closed to others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from wsync_engine.embedded.processes import wait_until
from wsync_engine.embedded.servers import EmbeddedServers
from wsync_engine.state.database import check_schema
from wsync_sdk.errors import ConfigError

FAST = {"fsync": "off"}
USER = """
import sys
from pathlib import Path
from wsync_engine.embedded.servers import EmbeddedServers
servers = EmbeddedServers.start(Path(sys.argv[1]), postgres_settings={"fsync": "off"})
print(servers.endpoints.database_url_api, servers.endpoints.redis_url, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder; whatever a test left running in it is ended."""
    path = tmp_path / "data"
    yield path
    for pid in server_pids(path):
        os.kill(pid, signal.SIGKILL)


def server_pids(folder: Path) -> list[int]:
    """The postmaster and the Valkey of this folder, if they run."""
    pids = []
    for name, word in (("postgres/postmaster.pid", "postgres"), ("valkey/pid", "valkey")):
        file = folder / name
        pid = int(file.read_text().split()[0]) if file.exists() else None
        if pid and psutil.pid_exists(pid) and word in psutil.Process(pid).name() and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            pids.append(pid)
    return pids


def start_user(folder: Path) -> subprocess.Popen[str]:
    """A process that uses the servers until its input ends."""
    command = [sys.executable, "-c", USER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(url: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT count(*) FROM wsync.run").fetchone()


def test_a_second_start_uses_the_same_servers_and_the_last_to_leave_stops_them(folder: Path) -> None:
    first = EmbeddedServers.start(folder, postgres_settings=FAST)
    second = EmbeddedServers.start(folder)

    assert second.endpoints == first.endpoints
    first.leave()
    first.leave()
    check_schema(second.endpoints.database_url_engine)
    with Redis.from_url(second.endpoints.redis_url) as client:
        assert client.ping()
    second.leave()
    assert server_pids(folder) == []


def test_processes_that_start_at_once_share_one_pair_of_servers(folder: Path) -> None:
    users = [start_user(folder) for _ in range(3)]
    said = {user.stdout.readline() for user in users}

    assert len(said) == 1
    assert len(server_pids(folder)) == 2
    users[0].communicate()
    assert answer(next(iter(said)).split()[0]) == (0,)
    for user in users[1:]:
        user.communicate()
    assert server_pids(folder) == []


def test_a_server_that_is_slow_to_answer_is_waited_for_and_gets_no_second_one_beside_it(folder: Path) -> None:
    first = start_user(folder)
    urls = first.stdout.readline()
    valkey = int((folder / "valkey" / "pid").read_text())
    os.kill(valkey, signal.SIGSTOP)
    busy = threading.Timer(5.0, os.kill, (valkey, signal.SIGCONT))  # longer than one question to it waits
    busy.start()

    second = start_user(folder)

    assert second.stdout.readline() == urls
    busy.join()
    for user in (first, second):
        user.communicate("", timeout=60)


def test_servers_outlive_a_killed_process_and_end_with_the_next_one(folder: Path) -> None:
    user = start_user(folder)
    url = user.stdout.readline().split()[0]
    user.kill()
    user.communicate()

    assert answer(url) == (0,)
    with EmbeddedServers.start(folder) as servers:
        assert servers.endpoints.database_url_api == url
    assert server_pids(folder) == []


def test_after_everything_was_killed_a_start_works_and_the_data_is_there(folder: Path) -> None:
    user = start_user(folder)
    user.stdout.readline()
    with EmbeddedServers.start(folder) as servers, psycopg.connect(servers.endpoints.database_url_owner) as owner:
        owner.execute("INSERT INTO wsync.setting (key, value) VALUES ('kept', '1')")
    for pid in (*server_pids(folder), user.pid):
        os.kill(pid, signal.SIGKILL)
    user.communicate()

    with EmbeddedServers.start(folder) as servers, psycopg.connect(servers.endpoints.database_url_owner) as owner:
        assert owner.execute("SELECT value FROM wsync.setting WHERE key = 'kept'").fetchone() == (1,)
    assert server_pids(folder) == []


def test_process_ids_in_stale_files_that_are_someone_elses_by_now_do_no_harm(folder: Path) -> None:
    with EmbeddedServers.start(folder, postgres_settings=FAST):
        lines = (folder / "postgres/postmaster.pid").read_text().splitlines()
    (folder / "postgres/postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    (folder / "valkey/pid").write_text(str(os.getpid()))

    with EmbeddedServers.start(folder) as servers:
        check_schema(servers.endpoints.database_url_engine)


def test_a_process_that_just_exits_stops_the_servers(folder: Path) -> None:
    user = start_user(folder)
    user.stdout.readline()
    user.communicate()

    assert user.returncode == 0
    assert server_pids(folder) == []


def test_a_forked_child_neither_keeps_nor_stops_its_parents_servers(folder: Path) -> None:
    servers = EmbeddedServers.start(folder, postgres_settings=FAST)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        servers.leave()
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)

    check_schema(servers.endpoints.database_url_engine)
    servers.leave()

    assert server_pids(folder) == []
    os.close(writing)
    os.close(reading)
    os.waitpid(child, 0)


def test_a_long_path_with_a_space_works_and_the_folders_above_stay_unreadable(tmp_path: Path) -> None:
    above = tmp_path / "home"
    above.mkdir(mode=0o700)
    folder = above / ("a " * 60).strip() / "data"

    with EmbeddedServers.start(folder, postgres_settings=FAST) as servers:
        check_schema(servers.endpoints.database_url_api)

    assert above.stat().st_mode & 0o066 == 0
    assert folder.stat().st_mode & 0o066 == 0
    assert all(
        (folder / name).stat().st_mode & 0o077 == 0 for name in ("passwords.json", "postgres", "valkey", "servers.lock", "attached.lock")
    )


def test_an_ordinary_user_can_start_them(servers: EmbeddedServers) -> None:
    # The session's servers come first: they have loaded what the child, who may not read every file, will need.
    if os.geteuid() != 0:
        return check_schema(servers.endpoints.database_url_engine)  # this whole session is the proof
    folder = Path(tempfile.mkdtemp(prefix="wsync-ordinary-"))
    os.chown(folder, 65534, 65534)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with EmbeddedServers.start(folder / "data", postgres_settings=FAST) as own:
                check_schema(own.endpoints.database_url_engine)
            status = 0
        finally:
            os._exit(status)

    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    left_over = server_pids(folder / "data")
    shutil.rmtree(folder)
    assert (status, left_over) == (0, [])


@pytest.mark.parametrize("name", ["file", "file/data"])
def test_a_folder_that_cannot_be_used_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="can't be used"):
        EmbeddedServers.start(tmp_path / name)


def test_no_login_works_without_its_password(servers: EmbeddedServers) -> None:
    for url in (servers.endpoints.admin_url, servers.endpoints.database_url_api):
        scheme, rest = url.split("://")
        login, place = rest.split("@")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"{scheme}://{login.split(':')[0]}@{place}")
    port = int(servers.endpoints.redis_url.rsplit(":", 1)[1].split("/")[0])
    with Redis(port=port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(AuthenticationError):
        client.ping()


def test_both_servers_listen_on_loopback_only_and_show_no_password(servers: EmbeddedServers) -> None:
    with psycopg.connect(servers.endpoints.admin_url) as admin, Redis.from_url(servers.endpoints.redis_url) as client:
        postgres = psutil.Process(int(admin.execute("SELECT pg_read_file('postmaster.pid')").fetchone()[0].split()[0]))
        valkey = psutil.Process(client.info("server")["process_id"])
        passwords = [url.split("@")[0].rsplit(":", 1)[1] for url in (servers.endpoints.admin_url, servers.endpoints.redis_url)]

    for process in (postgres, valkey):
        assert {each.laddr.ip for each in process.net_connections("tcp") if each.status == "LISTEN"} == {"127.0.0.1"}
        assert process.net_connections("unix") == [] or all(not each.laddr for each in process.net_connections("unix"))
        assert not any(password in " ".join(process.cmdline()) for password in passwords)


def test_valkey_never_evicts(servers: EmbeddedServers) -> None:
    with Redis.from_url(servers.endpoints.redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_endpoints_are_printed_without_passwords(servers: EmbeddedServers) -> None:
    assert "@" not in repr(servers.endpoints)


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"owner": "x"}), "[]"])
def test_a_damaged_password_file_is_a_configuration_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "passwords.json").write_text(content)

    with pytest.raises(ConfigError, match="damaged"):
        EmbeddedServers.start(tmp_path)


def test_waiting_ends_when_its_time_is_over() -> None:
    assert not wait_until(lambda: False, timeout_s=0.01)
