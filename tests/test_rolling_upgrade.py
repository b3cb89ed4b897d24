"""The engine of the previous version and this one, side by side on one installation: the upgrade of `docs/explanation/upgrading.md`, as it is told there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from redis import Redis

from wsync_engine.services.schedules import pause_schedule
from wsync_engine.services.syncs import trigger_sync
from wsync_engine.state.database import connect
from wsync_engine.state.roles import create_database
from wsync_engine.state.tenants import tenant_named

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "upgrading.md"
# The last version of each former schema.
PREVIOUS = {"0001_foundation": "ca6c935b77dd577a975e96b1d4621c620e325939", "0002_scheduling": "2407bd0b8c4fd376a55acd142bd28fe4d72c44bb"}
SOURCES = ("sdk/src", "core/src", "plugins/postgres/src", "plugins/http/src")
SYNCS = 4
LEASE_S = "5"
SYNC = """\
  sync{n}: {{source: here, query: "SELECT id, v FROM from{n}", key: id, sink: here, stream: public.to{n}, mode: mirror, schedule: {{every: 1s{more}}}}}
"""
FILE = """\
version: 1
tenant: acme
connections:
  here: {plugin: postgres, config: {url: env:HERE_URL}}
syncs:
"""
ELSEWHERE = """\
  elsewhere: {source: here, query: "SELECT id, v FROM from0", key: id, sink: here, stream: public.elsewhere, mode: mirror, queue: elsewhere}
"""
TABLES = """
CREATE SEQUENCE version;
CREATE TABLE applied (sink text, id bigint, v bigint);
CREATE TABLE claimed (run_id uuid, epoch int, worker_id uuid, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE elsewhere (id bigint PRIMARY KEY, v bigint);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.applied VALUES (TG_TABLE_NAME, NEW.id, NEW.v); RETURN NULL; END $$;
CREATE FUNCTION note_claim() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO public.claimed VALUES (NEW.run_id, NEW.epoch, NEW.worker_id); RETURN NULL; END $$;
CREATE TRIGGER note_claim AFTER UPDATE OF state ON wsync.run FOR EACH ROW WHEN (OLD.state = 'queued' AND NEW.state = 'running')
    EXECUTE FUNCTION note_claim();
"""


@pytest.fixture(params=PREVIOUS)
def schema(request: pytest.FixtureRequest) -> str:
    """What the previous version made of the database."""
    return str(request.param)


@pytest.fixture
def previous(schema: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The previous version's sources."""
    commit = PREVIOUS[schema]
    archive = subprocess.run(["git", "archive", "--format=tar", commit, *SOURCES], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(
            f"this checkout does not hold {commit[:12]}: fetch the whole history (`git fetch --unshallow`) to test the upgrade from it"
        )
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


class Installation:
    """A state store, an index and a folder, and the commands and processes of two versions on them."""

    def __init__(self, urls: dict[str, str], redis_url: str, admin_url: str, folder: Path, previous: Path) -> None:
        self.folder, self.admin_url = folder, admin_url
        self.index = Redis.from_url(redis_url)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
        settings = {f"WSYNC_DATABASE_URL_{login}": url for login, url in urls.items()}
        settings |= {"WSYNC_REDIS_URL": redis_url, "WSYNC_DATA_DIR": str(folder / "data"), "WSYNC_LEASE_TTL_S": LEASE_S}
        self.new = {**clean, **settings, "HERE_URL": admin_url}
        self.old = {**self.new, "PYTHONPATH": os.pathsep.join(str(previous / source) for source in SOURCES)}
        self.log = (folder / "log").open("ab")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.typed: list[str] = []

    def command(self, environment: dict[str, str], *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "wsync_engine.cli", *words],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout + self.log_tail()
        if environment is self.new:
            self.typed.append(" ".join(("wsync-engine", *words)))
        return done.stdout

    def start(self, environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wsync_engine.cli", *words],
            env=environment,
            cwd=self.folder,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        self.processes.append(process)
        if environment is self.new:
            self.typed.append(" ".join(("wsync-engine", *words)))
        return process

    def declare(self, *, more: str = "", beside: str = "") -> None:
        """The file of this tenant."""
        syncs = "".join(SYNC.format(n=n, more=more if n == 0 else "") for n in range(SYNCS))
        (self.folder / "wsync.yaml").write_text(FILE + syncs + beside, encoding="utf-8")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.admin_url, autocommit=True) as admin:
            return admin.execute(query.encode(), values).fetchall()

    def write(self, statements: str) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as admin:
            admin.execute(statements.encode())

    def worker_of(self, process: subprocess.Popen[bytes]) -> UUID:
        """The id that a worker's process gave itself."""
        self.wait_for(lambda: bool(self.rows("SELECT FROM wsync.worker WHERE pid = %s", process.pid)), "the worker does not show itself")
        (found,) = self.rows("SELECT worker_id FROM wsync.worker WHERE pid = %s", process.pid)
        worker_id: UUID = found[0]
        return worker_id

    def claims(self, worker_id: UUID) -> int:
        (found,) = self.rows("SELECT count(*) FROM claimed WHERE worker_id = %s", worker_id)
        return int(found[0])

    def wait_for_claims(self, worker_id: UUID, more: int = 3) -> None:
        """Until the worker got `more` runs; the tables change meanwhile, so that runs have something to do."""
        wanted = self.claims(worker_id) + more

        def is_met() -> bool:
            for n in range(SYNCS):
                self.write(f"UPDATE from{n} SET v = nextval('version') WHERE id = 1 + (random() * 20)::int")
            return self.claims(worker_id) >= wanted

        self.wait_for(is_met, f"{worker_id} gets no runs")

    def work_side_by_side(self, runs: int = 8) -> None:
        """Until this many more runs ended, whoever executed them."""
        ended = "SELECT count(*) FROM wsync.run WHERE state = 'succeeded'"
        ((before,),) = self.rows(ended)
        self.wait_for(lambda: self.rows(ended)[0][0] >= before + runs, "runs do not end")

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        assert process.wait(60) == 0, self.log_tail()

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        until_s = time.monotonic() + timeout_s
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < until_s, f"{what}\n{self.log_tail()}"
            pause.wait(0.1)

    def log_tail(self) -> str:
        return (self.folder / "log").read_text()[-5_000:]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.log.close()
        self.index.close()


@pytest.fixture
def installation(servers: Any, redis_url: str, tmp_path: Path, previous: Path) -> Iterator[Installation]:
    name = f"upgraded_{os.getpid()}"
    ends = servers.endpoints
    with psycopg.connect(ends.admin_url, autocommit=True) as admin:
        create_database(admin, name)
        urls = {"OWNER": ends.database_url_owner, "ENGINE": ends.database_url_engine, "API": ends.database_url_api}
        urls = {login: url.rsplit("/", 1)[0] + f"/{name}" for login, url in urls.items()}
        made = Installation(urls, redis_url, ends.admin_url.rsplit("/", 1)[0] + f"/{name}", tmp_path, previous)
        yield made
        made.close()
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def begin_with_the_previous_version(it: Installation, schema: str) -> dict[UUID, datetime]:
    """Schema, file and tables; returns the first nominal time of each schedule."""
    it.command(it.old, "db", "upgrade")
    assert it.rows("SELECT version_num FROM wsync.schema_version") == [(schema,)]
    it.write(TABLES)
    for n in range(SYNCS):
        it.write(f"CREATE TABLE from{n} (id bigint PRIMARY KEY, v bigint NOT NULL DEFAULT nextval('version'))")
        it.write(f"INSERT INTO from{n} SELECT generate_series(1, 30)")
        it.write(f"CREATE TABLE to{n} (id bigint PRIMARY KEY, v bigint)")
        it.write(f"CREATE TRIGGER note AFTER INSERT OR UPDATE ON to{n} FOR EACH ROW EXECUTE FUNCTION note()")
    it.declare()
    it.command(it.old, "apply", "wsync.yaml")
    return dict(it.rows("SELECT schedule_id, next_nominal_at FROM wsync.schedule_clock"))


def offer_a_run_of_another_queue(it: Installation, old_worker: UUID, schema: str) -> None:
    """A run that an older worker must not get, although its index offers it."""
    it.command(it.new, "queues", "add", "elsewhere")
    it.declare(beside=ELSEWHERE)
    it.command(it.new, "apply", "wsync.yaml")
    run_id = UUID(it.command(it.new, "sync", "run", "elsewhere").strip())
    if schema == "0001_foundation":  # without queues
        it.wait_for(lambda: is_offered(it, run_id), "the older index does not offer the run")
    it.wait_for_claims(old_worker)
    assert it.rows("SELECT state::text, epoch FROM wsync.run WHERE run_id = %s", run_id) == [("queued", 0)]


def is_offered(it: Installation, run_id: UUID) -> bool:
    """Whether the index of the former layout knows the run."""
    queues = [it.index.zrange(f"ws:{{0}}:rq:{letter}", 0, -1) for letter in "hml"]
    members = b" ".join(bytes(member) for queue in queues for member in queue)
    return run_id.hex.encode() in members or bool(it.index.hexists("ws:{0}:held", run_id.hex))


def wait_behind_an_open_run(it: Installation) -> None:
    """A policy that the previous version does not have: a fire waits, and starts when the run before it has ended."""
    it.declare(more=", overlap: buffer_one", beside=ELSEWHERE)
    it.command(it.new, "apply", "wsync.yaml")
    promoted = "SELECT count(*) FROM wsync.run_event JOIN wsync.run USING (run_id) WHERE kind = 'run.promoted' AND state = 'succeeded'"
    with psycopg.connect(it.admin_url) as admin:
        admin.execute("LOCK TABLE to0 IN ACCESS EXCLUSIVE MODE")  # a run that has something to write can't end
        it.write("UPDATE from0 SET v = nextval('version')")
        it.wait_for(lambda: it.rows("SELECT count(*) FROM wsync.run WHERE state = 'buffered'") == [(1,)], "no fire waits")
    it.wait_for(lambda: it.rows(promoted) != [(0,)], "what waited does not run")


def come_to_rest(it: Installation) -> None:
    """No schedule fires any more, what is open ends, and the destinations get the rest."""
    with connect(it.new["WSYNC_DATABASE_URL_API"], application_name="test") as api:
        tenant_id = tenant_named(api, "acme")
        for n in range(SYNCS):
            pause_schedule(api, tenant_id, f"sync{n}", note=None, actor="test")
        is_open = "SELECT count(*) FROM wsync.run WHERE state IN ('queued', 'running', 'cancelling', 'blocked', 'buffered') AND queue = 0"
        it.wait_for(lambda: it.rows(is_open) == [(0,)], "runs do not end")
        for n in range(SYNCS):
            assert trigger_sync(api, tenant_id, f"sync{n}", actor="test").is_new
        it.wait_for(lambda: it.rows(is_open) == [(0,)], "the last runs do not end")


def wrong_decisions(it: Installation, first_by_schedule: dict[UUID, datetime]) -> list[object]:
    """Schedules of which the counters are not the number of nominal times from the first one to the last one decided."""
    clocks = it.rows(
        "SELECT schedule_id, last_nominal_at, fired + skipped + missed + coalesced, fired,"
        " (SELECT count(*) FROM wsync.run r WHERE r.schedule_id = c.schedule_id AND r.trigger = 'schedule') FROM wsync.schedule_clock c"
    )
    return [
        (schedule_id, last, decided, fired, runs)
        for schedule_id, last, decided, fired, runs in clocks
        if decided != (last - first_by_schedule[schedule_id]) // timedelta(seconds=1) + 1 or fired != runs
    ]


def commands_of_the_page() -> set[str]:
    return set(re.findall(r"^ {7}(wsync-engine .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.timeout(600)
def test_two_versions_work_side_by_side_and_the_newer_one_goes_on(installation: Installation, schema: str) -> None:
    it = installation
    first_by_schedule = begin_with_the_previous_version(it, schema)
    old_scheduler, old_workers_process = it.start(it.old, "scheduler"), it.start(it.old, "worker")
    old_worker = it.worker_of(old_workers_process)
    it.wait_for_claims(old_worker)

    it.command(it.new, "db", "upgrade")
    it.wait_for_claims(old_worker)
    new_worker = it.worker_of(it.start(it.new, "worker"))
    it.work_side_by_side()
    # A run goes first to the workers of the version whose scheduler fired it: each version is alone in its turn.
    offer_a_run_of_another_queue(it, old_worker, schema)
    it.start(it.new, "scheduler")
    it.work_side_by_side(runs=20)
    it.end(old_scheduler)
    it.wait_for_claims(new_worker)
    it.end(old_workers_process)
    it.wait_for_claims(new_worker)
    wait_behind_an_open_run(it)
    it.worker_of(it.start(it.new, "worker", "--queue", "elsewhere"))
    it.command(it.new, "workers", "list")
    it.command(it.new, "doctor")
    come_to_rest(it)

    assert wrong_decisions(it, first_by_schedule) == []
    assert it.rows("SELECT run_id, count(*) FROM claimed GROUP BY 1 HAVING count(*) > 1") == []
    assert (
        it.rows("SELECT state, cancel_reason FROM wsync.run WHERE queue = 0 AND state <> 'succeeded' AND cancel_reason <> 'paused'") == []
    )
    assert it.rows("SELECT sink, id, v, count(*) FROM applied GROUP BY 1, 2, 3 HAVING count(*) > 1") == []
    for n in range(SYNCS):
        assert it.rows(f"SELECT id, v FROM from{n} EXCEPT SELECT id, v FROM to{n}") == []
    assert set(it.typed) >= commands_of_the_page() != set()
