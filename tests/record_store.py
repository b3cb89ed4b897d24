"""A store behind a web server that keeps every record as it came, and a sync that fills it from a Postgres warehouse."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from wsync_engine.model.sync import Mode, SyncSpec
from wsync_engine.pipeline.job import Outcome
from wsync_sdk import AddressPolicy, Sink, WsyncError

from .one_sync import OneSync

LOOPBACK = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))


class RecordStore:
    """What the endpoint was sent: every record in order, numbers as the text that came. `keeps`: False drops the records."""

    def __init__(self) -> None:
        self.url = ""
        self.sent: list[dict[str, Any]] = []
        self.requests = 0
        self.keeps = True
        self._lock = threading.Lock()

    def take(self, body: bytes) -> None:
        with self._lock:
            self.requests += 1
            if self.keeps:
                self.sent += json.loads(body, parse_int=str, parse_float=str)

    def taken(self) -> list[dict[str, Any]]:
        """The records since the last look, by key, without `op`."""
        with self._lock:
            sent, self.sent = self.sent, []
        return sorted(({name: value for name, value in record.items() if name != "op"} for record in sent), key=lambda x: str(x["id"]))


@contextmanager
def serving() -> Iterator[RecordStore]:
    """A store that listens on loopback."""
    store = RecordStore()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            store.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        store.url = f"http://127.0.0.1:{server.server_port}/people"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield store
        server.shutdown()


class RecordWorld(OneSync):
    """A warehouse and the store; `query` says what is read."""

    sink_plugin = "http"

    def __init__(self, database: Any, admin_url: str, folder: Path, store: RecordStore) -> None:
        super().__init__(database, admin_url, folder)
        self.store = store
        self.config: dict[str, Any] = {"url": store.url, "op_field": "op"}

    def query(self, sql: str, **changes: Any) -> None:
        """The sync reads this from now on."""
        settings: dict[str, Any] = {"key": ("id",), "mode": Mode.UPSERT, **changes}
        self.spec = SyncSpec(name="people", source="w", sink="s", query=sql, stream="people", **settings)

    def open_sink(self) -> Sink:
        return self.host.open_sink("http", self.config, lambda _: "", network=LOOPBACK)

    def read(self, sql: str, **changes: Any) -> Outcome:
        """A run of the query."""
        self.query(sql, **changes)
        return self.run()

    def refusal(self) -> WsyncError:
        """What a run that can't be executed is refused with; it is ended."""
        run_id = self.new_run()
        try:
            outcome = self.attempt(run_id)
        except WsyncError as exc:
            self.end(run_id)
            return exc
        raise AssertionError(f"the run was not refused: {outcome}")

    def approve(self, run_id: UUID) -> Outcome:
        """Let a blocked run deliver."""
        self.engine.execute("UPDATE wsync.run SET state = 'queued', approved_by = 'somebody' WHERE run_id = %s", (run_id,))
        return self.attempt(run_id)

    def discard(self, run_id: UUID) -> None:
        """Drop a blocked run."""
        self.engine.execute("UPDATE wsync.run SET state = 'cancelled', finished_at = now() WHERE run_id = %s", (run_id,))

    def rejections(self) -> list[tuple[str, str, Any]]:
        """(code, message, the key) of each listed row, in the order of the keys."""
        found = self.engine.execute("SELECT code, message, payload FROM wsync.rejection").fetchall()
        return sorted(((code, message, self._key(payload)) for code, message, payload in found), key=lambda x: str(x[2]))

    def _key(self, payload: bytes) -> Any:
        with pa.ipc.open_stream(self.cipher.decrypt(bytes(payload))) as reader:
            (row,) = reader.read_all().to_pylist()
        return row[self.spec.key[0]]
