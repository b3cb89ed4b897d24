"""The main job to an HTTP endpoint: a Postgres warehouse to a store behind a web server, at least once, through the real connectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import psycopg
import pytest

from wsync_engine.model.sync import MappingEntry, Mode, SyncSpec
from wsync_sdk import AddressPolicy, ConfigError, Sink

from .one_sync import Crash, OneSync

ROWS = 1_000
LOOPBACK = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))
SCHEMA = """
CREATE TABLE public.customer AS SELECT n AS id, 'user' || n || '@example.com' AS email, CASE WHEN n % 7 > 0 THEN 'Zoë 日本 ' || n END AS full_name,
 (n % 100 / 7.0)::numeric(8, 3) AS score, jsonb_build_object('n', n, 'tags', jsonb_build_array('a', NULL)) AS extra,
 timestamptz '2024-01-01' + n * interval '1 second' AS seen_at FROM generate_series(1, 1000) n
"""
QUERY = "SELECT id, email, full_name, score, extra, seen_at FROM public.customer"


class Store:
    """What the endpoint keeps: records by id, and each request as (idempotency key, authorization, body)."""

    def __init__(self) -> None:
        self.url = ""
        self.records: dict[int, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, bytes]] = []
        self.refused: set[int] = set()
        self.replies_to_lose = 0
        self.lock = threading.Lock()

    @property
    def keys(self) -> list[str]:
        return [key for key, _, _ in self.requests]

    def take(self, key: str, authorization: str, body: bytes) -> tuple[int, Any] | None:
        """Apply a request; None: its reply is lost on the way."""
        with self.lock:
            self.requests.append((key, authorization, body))
            records = json.loads(body)
            if any(record["id"] in self.refused for record in records):
                return 422, {"error": "one of them"}
            for record in records:
                if record.pop("op") == "delete":
                    self.records.pop(record["id"], None)
                else:
                    self.records[record["id"]] = record
            if self.replies_to_lose:
                self.replies_to_lose -= 1
                return None
            return 200, {}


@contextmanager
def serving(store: Store) -> Iterator[Store]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = store.take(self.headers["Idempotency-Key"], self.headers["Authorization"], body)
            if reply is None:
                self.close_connection = True
                return
            data = json.dumps(reply[1]).encode()
            self.send_response(reply[0])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        store.url = f"http://127.0.0.1:{server.server_port}/people"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield store
        server.shutdown()


@pytest.fixture
def store() -> Iterator[Store]:
    with serving(Store()) as made:
        yield made


class World(OneSync):
    """A warehouse table and the endpoint."""

    sink_plugin = "http"

    def __init__(self, database: Any, admin_url: str, folder: Path, store: Store) -> None:
        super().__init__(database, admin_url, folder)
        self.store = store
        self.admin.execute(SCHEMA)
        self.spec = SyncSpec(name="people", source="w", sink="s", query=QUERY, key=("id",), stream="people", mode=Mode.MIRROR)
        self.config: dict[str, Any] = {"url": store.url, "op_field": "op", "limits": {"max_rows": 100}}
        self.config["secret_headers"] = {"Authorization": "env:TOKEN"}

    def open_sink(self) -> Sink:
        return self.host.open_sink("http", self.config, lambda _: "Bearer token", network=LOOPBACK)

    def change(self) -> None:
        """26 updates, 50 inserts, 20 deletes."""
        self.admin.execute("UPDATE customer SET full_name = full_name || '!' WHERE id <= 30 AND id % 7 > 0")
        self.admin.execute("DELETE FROM customer WHERE id BETWEEN 201 AND 220")
        self.admin.execute("INSERT INTO customer SELECT n, 'new', NULL, NULL, '{}', now() FROM generate_series(10001, 10050) n")

    def expected(self) -> dict[int, Any]:
        """What the store should hold, by Postgres' own JSON."""
        found = self.admin.execute(
            "SELECT id, jsonb_build_object('id', id, 'email', email, 'full_name', full_name, 'score', score, 'extra', extra,"
            " 'seen_at', to_char(seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') || CASE WHEN date_trunc('second', seen_at) = seen_at"
            " THEN '' ELSE to_char(seen_at, '.US') END || 'Z') FROM customer"
        ).fetchall()
        return dict(found)


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path, store: Store) -> Iterator[World]:
    made = World(database, servers.endpoints.admin_url, tmp_path, store)
    yield made
    made.close()


def test_the_store_equals_the_query_and_the_second_run_sends_only_the_changes(world: World, store: Store) -> None:
    first = world.run()
    assert (first.state, first.counts["accepted"], len(store.requests)) == ("succeeded", ROWS, ROWS / 100)
    assert store.records == world.expected(), "jsonb arrives nested, NULL as null"
    assert {authorization for _, authorization, _ in store.requests} == {"Bearer token"}
    world.change()
    store.requests.clear()

    second = world.run()

    assert (second.state, second.counts["upserts"], second.counts["deletes"]) == ("succeeded", 26 + 50, 20)
    assert sum(len(json.loads(body)) for _, _, body in store.requests) == 96
    assert store.records == world.expected()


def test_a_row_that_the_endpoint_refuses_is_a_listed_rejection_and_the_others_arrive(world: World, store: Store) -> None:
    store.refused = {77}

    outcome = world.run()

    assert (outcome.state, outcome.counts["accepted"], outcome.counts["rejected"]) == ("partial", ROWS - 1, 1)
    assert store.records.keys() == world.expected().keys() - {77}
    listed = world.engine.execute("SELECT phase, code, retryable FROM wsync.rejection").fetchall()
    assert listed == [("deliver", "http_422", False)]


def test_a_lost_reply_leads_to_the_same_rows_under_the_same_key(world: World, store: Store) -> None:
    store.replies_to_lose = 3

    outcome = world.run()

    assert (outcome.state, outcome.counts["accepted"]) == ("succeeded", ROWS)
    assert (len(store.keys), len(set(store.keys))) == (ROWS / 100 + 3, ROWS / 100)
    assert len(set(store.requests)) == ROWS / 100, "byte by byte"


@pytest.mark.parametrize("step", ["after_mark_sent", "after_write", "before_ack", "after_ack", "fold"])
def test_wherever_the_process_dies_the_next_holder_sends_under_the_same_keys(world: World, store: Store, step: str) -> None:
    run_id = world.new_run()

    def die(name: str) -> None:
        if name == step:
            raise Crash(step)

    with pytest.raises(Crash):
        world.attempt(run_id, die)
    outcome = world.attempt(run_id)

    assert (outcome.state, outcome.counts["accepted"]) == ("succeeded", ROWS)
    assert store.records == world.expected()
    assert len(set(store.keys)) == ROWS / 100


def test_jsonb_is_nested_wherever_the_mapping_puts_it(world: World, store: Store) -> None:
    world.spec = replace(
        world.spec,
        mapping=(
            MappingEntry(target="id", column="id"),
            MappingEntry(target="attributes.extra", column="extra"),
            MappingEntry(target="attributes.name", column="full_name"),
            MappingEntry(target="parsed.deep.er", column="email", cast="json"),
        ),
        query="SELECT id, extra, full_name, CASE WHEN id = 3 THEN 'no json' ELSE '[1, {}]' END AS email FROM public.customer",
    )

    outcome = world.run()

    assert (outcome.state, outcome.counts["rejected"]) == ("partial", 1)
    attributes = {"extra": {"n": 8, "tags": ["a", None]}, "name": "Zoë 日本 8"}
    assert store.records[8] == {"id": 8, "attributes": attributes, "parsed": {"deep": {"er": [1, {}]}}}
    assert 3 not in store.records


def test_a_row_whose_json_is_none_is_a_rejection_wherever_it_is_noticed(world: World, store: Store) -> None:
    world.spec = SyncSpec(
        name="people",
        source="w",
        sink="s",
        query="SELECT id, CASE WHEN id = 5 THEN 'NaN'::float8 ELSE 0.5 END AS score FROM public.customer",
        key=("id",),
        stream="people",
        mode=Mode.MIRROR,
    )

    outcome = world.run()

    assert (outcome.state, outcome.counts["rejected"], len(store.records)) == ("partial", 1, ROWS - 1)
    assert world.engine.execute("SELECT code FROM wsync.rejection").fetchall() == [("not_finite",)]


def test_a_mirror_run_of_a_sink_without_deletes_ends_before_it_reads(world: World, store: Store) -> None:
    del world.config["op_field"]

    with pytest.raises(ConfigError, match="takes no deletes"):
        world.run()

    assert store.requests == []
    assert world.engine.execute("SELECT warehouse_query FROM wsync.run").fetchall() == [(None,)]


# -- through the command line and real workers

FILE = """\
version: 1
tenant: acme
connections:
  warehouse: {{plugin: postgres, config: {{url: env:WAREHOUSE_URL}}}}
  web:
    plugin: http
    config: {{url: "{url}", {deletes} secret_headers: {{Authorization: env:WEB_AUTHORIZATION}}}}
syncs:
  people:
    source: warehouse
    query: {query}
    key: id
    sink: web
    stream: people
    mode: mirror
"""


class Installation:
    """The command line with its settings; a worker stays for as long as a command needs it."""

    def __init__(self, folder: Path, database: Any, redis_url: str, warehouse_url: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
        self.environment = {
            **kept,
            "WSYNC_DATABASE_URL_OWNER": database.owner_url,
            "WSYNC_DATABASE_URL_ENGINE": database.engine_url,
            "WSYNC_DATABASE_URL_API": database.api_url,
            "WSYNC_REDIS_URL": redis_url,
            "WSYNC_DATA_DIR": str(folder / "data"),
            "WAREHOUSE_URL": warehouse_url,
            "WEB_AUTHORIZATION": "Bearer token",
        }

    def declare(self, url: str, *, deletes: str = "op_field: op,") -> None:
        (self.folder / "wsync.yaml").write_text(FILE.format(url=url, deletes=deletes, query=QUERY))

    def call(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wsync_engine.cli", *words]
        environment = {**self.environment, **settings}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def run_with_worker(self, **settings: str) -> dict[str, Any]:
        """The closing line of a run that a worker with these settings executes."""
        command = [sys.executable, "-m", "wsync_engine.cli", "up", "--slots", "1"]
        with (self.folder / "log").open("wb") as log:
            worker = subprocess.Popen(
                command, cwd=self.folder, env={**self.environment, **settings}, stdout=log, stderr=log, start_new_session=True
            )
        try:
            done = self.call("sync", "run", "people", "--wait", "--json")
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"{exc.stderr!r}\n`up` ended: {worker.poll()}\n{(self.folder / 'log').read_text()}") from exc
        finally:
            worker.terminate()
            worker.wait(60)
        assert done.stdout, done.stderr + (self.folder / "log").read_text()
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture
def installation(tmp_path: Path, database: Any, servers: Any, redis_url: str) -> Installation:
    url = servers.endpoints.admin_url.rsplit("/", 1)[0] + "/" + database.engine_url.rsplit("/", 1)[1]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(SCHEMA)
    return Installation(tmp_path, database, redis_url, url)


def test_a_worker_calls_loopback_only_if_the_installation_allows_it(installation: Installation, store: Store) -> None:
    installation.declare(store.url)
    assert installation.call("apply", "wsync.yaml").returncode == 0

    refused = installation.run_with_worker()
    assert (refused["state"], store.requests) == ("failed", [])
    assert "not a public address" in refused["outcome_reason"]

    delivered = installation.run_with_worker(WSYNC_ALLOW_PRIVATE_ADDRESSES="127.0.0.0/8")
    assert (delivered["state"], len(store.records)) == ("succeeded", ROWS)


def test_a_worker_does_not_load_what_the_installation_blocks(installation: Installation, store: Store) -> None:
    installation.declare(store.url)
    assert installation.call("apply", "wsync.yaml").returncode == 0

    blocked = installation.run_with_worker(WSYNC_ALLOW_PRIVATE_ADDRESSES="127.0.0.0/8", WSYNC_PLUGINS_BLOCK="wsync-http")

    assert (blocked["state"], store.requests) == ("failed", [])
    assert "`http`" in blocked["outcome_reason"]


def test_testing_a_connection_keeps_to_the_addresses_that_are_allowed(installation: Installation, store: Store) -> None:
    installation.declare(store.url)
    assert installation.call("apply", "wsync.yaml").returncode == 0

    refused = installation.call("connections", "test", "web", "--json")
    allowed = installation.call("connections", "test", "web", "--json", WSYNC_ALLOW_PRIVATE_ADDRESSES="127.0.0.0/8")

    assert (refused.returncode, allowed.returncode) == (1, 0)
    assert "not a public address" in refused.stdout
    assert store.requests == []


def test_a_mirror_of_a_sink_that_can_not_delete_is_refused_before_it_is_stored(installation: Installation, store: Store) -> None:
    installation.declare(store.url, deletes="")

    planned, applied = installation.call("plan", "wsync.yaml"), installation.call("apply", "wsync.yaml")

    assert (planned.returncode, applied.returncode) == (2, 2)
    assert "mode `mirror`" in applied.stderr
