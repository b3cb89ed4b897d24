"""How the conformance kit reaches a real server: tables loaded and contents read past the plugin, by statements of the tests' own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import pyarrow as pa
from adbc_driver_postgresql import dbapi
from psycopg.rows import dict_row

from wsync_postgres.plugin import SINK_CAPABILITIES, SOURCE_CAPABILITIES
from wsync_sdk import Query, Sink, Source, Target
from wsync_sdk.testing import Refusal, SinkHarness, SourceHarness, Unrepresentable, sink_from_plugin, source_from_plugin

from .conftest import PASSWORD, Database
from .proxy import Proxy

WRONG_PASSWORD = "0pen-barley"
SQL_TYPES = {
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.decimal128(16, 2): "numeric(16, 2)",
    pa.string(): "text",
    pa.bool_(): "boolean",
    pa.binary(): "bytea",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
    pa.timestamp("us", tz="UTC"): "timestamptz",
    pa.list_(pa.string()): "text[]",
}
SPOIL = "CREATE FUNCTION spoil() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO kept VALUES (2) RETURNING id'"
_numbers = itertools.count(1)


class PostgresSourceHarness(SourceHarness):
    """Tables in one test's database."""

    capabilities = SOURCE_CAPABILITIES
    secrets = (PASSWORD, WRONG_PASSWORD)
    patience_s = 5.0

    def __init__(self, database: Database) -> None:
        self.database = database
        database.execute("CREATE TABLE kept (id int)")
        database.execute(SPOIL)

    def factory(self) -> Callable[[], Source]:
        return partial(source_from_plugin, "wsync_postgres.plugin", "postgres", {"url": self.database.url})

    def load(self, rows: pa.Table, *, split_by: str | None = None) -> Query:
        table = f"loaded_{next(_numbers)}"
        self.database.execute(f"CREATE TABLE {table} ({', '.join(f'{f.name} {SQL_TYPES[f.type]}' for f in rows.schema)})")
        if rows.num_rows:
            with dbapi.connect(self.database.url) as connection, connection.cursor() as cursor:
                cursor.adbc_ingest(table, rows, mode="append")
                connection.commit()
        return Query(sql=f"SELECT * FROM {table}", split_by=split_by)

    def bad_sql(self) -> Query:
        return Query(sql="SELECT missing FROM kept")

    def write_sql(self) -> Query:
        return Query(sql="SELECT spoil() AS id")

    def is_unchanged(self) -> bool:
        return self.database.execute("SELECT 1 FROM kept") == []

    def wrong_login(self) -> Source:
        url = self.database.server.url(self.database.name, password=WRONG_PASSWORD)
        return source_from_plugin("wsync_postgres.plugin", "postgres", {"url": url})

    def slow(self) -> Query:
        return Query(sql=f"SELECT 1 AS tick FROM pg_sleep({10 * self.patience_s})")

    def unrepresentable(self) -> Unrepresentable:
        return Unrepresentable(query=Query(sql="SELECT 1 AS id, DATE 'infinity' AS day"), column="day")

    def executions(self) -> int:
        """Scans of tables, which EXPLAIN and LIMIT 0 do not begin; a session's count is told when it ends."""
        self._wait_for_probes()
        scans = "SELECT sum(seq_scan + coalesce(idx_scan, 0)) FROM pg_stat_user_tables WHERE relname LIKE 'loaded%'"
        return int(self.database.admin(scans)[0][0])

    def held(self) -> int:
        return self._sessions("wsync:%")

    def _wait_for_probes(self) -> None:
        while self._sessions("wsync:probe") + self._sessions("wsync:preview"):
            threading.Event().wait(0.02)

    def _sessions(self, name: str) -> int:
        count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{self.database.name}' AND application_name LIKE '{name}'"
        return int(self.database.admin(count)[0][0])


class PostgresSinkHarness(SinkHarness):
    """Tables in one test's database, reached over a line that can lose replies."""

    capabilities = SINK_CAPABILITIES
    secrets = (PASSWORD, WRONG_PASSWORD)

    def __init__(self, database: Database, proxy: Proxy) -> None:
        self.database = database
        self.proxy = proxy

    def sink(self) -> Sink:
        return self._sink(PASSWORD)

    def target(self, schema: pa.Schema, key: tuple[str, ...]) -> Target:
        return Target(stream=f"stream_{next(_numbers)}", key=key, schema=schema)

    def contents(self, target: Target) -> Sequence[Mapping[str, Any]]:
        with psycopg.connect(self.database.url, row_factory=dict_row) as connection:
            if connection.execute("SELECT to_regclass(%s) AS oid", [target.stream]).fetchall() == [{"oid": None}]:
                return []
            return connection.execute(f"SELECT * FROM {target.stream}").fetchall()  # type: ignore[arg-type]

    def wrong_login(self) -> Sink:
        return self._sink(WRONG_PASSWORD)

    def refusal(self) -> Refusal:
        target = self.target(pa.schema([("id", pa.int64()), ("age", pa.int64())]), ("id",))
        self.database.execute(f"CREATE TABLE {target.stream} (id bigint PRIMARY KEY, age bigint CHECK (age >= 0))")
        return Refusal(target=target, good=[{"id": 1, "age": 30}, {"id": 2, "age": 0}], bad={"id": 3, "age": -1})

    def lose_reply(self) -> AbstractContextManager[None]:
        return self.proxy.losing()

    def _sink(self, password: str) -> Sink:
        url = replace(self.database.server, port=self.proxy.port).url(self.database.name, password=password)
        return sink_from_plugin("wsync_postgres.plugin", "postgres", {"url": url})
