"""The source against a real server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import psutil
import pyarrow as pa
import pytest

from wsync_postgres.config import PostgresConfig
from wsync_postgres.source import PostgresSource
from wsync_sdk import (
    REFUSED_COLUMNS,
    ConfigError,
    FatalError,
    PlanExpired,
    Query,
    ReadLimits,
    ReadPlan,
    RetryableError,
    Secret,
    WsyncError,
)

from .conftest import Database, Server, free_port


@dataclass
class Context:
    """What the engine would give to plan."""

    tag: str = "tenant/sync/run"
    handles: list[bytes] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def started(self, handle: bytes) -> None:
        self.handles.append(handle)

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    give_up_at = monotonic() + timeout_s
    while not condition():
        assert monotonic() < give_up_at, "the condition did not come true"
        threading.Event().wait(0.02)


def config(url: str, **more: Any) -> PostgresConfig:
    return PostgresConfig(url=Secret(url), **more)


@pytest.fixture
def source(database: Database) -> Iterator[PostgresSource]:
    with PostgresSource(config(database.url)) as opened:
        yield opened


def rows_of(source: PostgresSource, plan: ReadPlan) -> list[dict[str, Any]]:
    batches = [batch for split in plan.splits for batch in source.read(split)]
    assert all(batch.schema.equals(plan.schema, check_metadata=True) for batch in batches)
    return pa.Table.from_batches(batches, schema=plan.schema).to_pylist()


def select(source: PostgresSource, sql: str, limits: ReadLimits | None = None, **parameters: Any) -> list[dict[str, Any]]:
    query = Query(sql=sql, parameters=parameters)
    return rows_of(source, source.plan(query, limits or ReadLimits(), Context()))


def backends(database: Database) -> int:
    found = database.admin(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.name}' AND application_name LIKE 'wsync:%'")
    return int(found[0][0])


def test_a_query_comes_back_as_arrow_batches_of_the_planned_schema(source: PostgresSource) -> None:
    rows = select(source, "SELECT g AS id, 'n' || g AS name FROM generate_series(1, 3) AS g")

    assert rows == [{"id": 1, "name": "n1"}, {"id": 2, "name": "n2"}, {"id": 3, "name": "n3"}]


def test_an_empty_result_has_the_schema_and_no_rows(source: PostgresSource) -> None:
    assert select(source, "SELECT 1 AS id WHERE false") == []


def test_batches_keep_to_the_limit_of_rows(source: PostgresSource) -> None:
    plan = source.plan(Query(sql="SELECT g FROM generate_series(1, 1000) AS g"), ReadLimits(batch_rows=300), Context())

    assert [batch.num_rows for batch in source.read(plan.splits[0])] == [300, 300, 300, 100]


def test_a_table_is_read_with_odd_names_quoted(source: PostgresSource, database: Database) -> None:
    database.execute(
        'CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."my ""table" ("a b" int, c int); INSERT INTO "Odd"."my ""table" VALUES (1, 2)'
    )

    plan = source.plan(Query(table='Odd.my "table', columns=("a b",)), ReadLimits(), Context())

    assert rows_of(source, plan) == [{"a b": 1}]


def test_all_splits_see_the_instant_of_the_plan(source: PostgresSource, database: Database) -> None:
    database.execute("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) AS g")
    plan = source.plan(Query(table="t", split_by="id"), ReadLimits(max_splits=4), Context())

    database.execute("INSERT INTO t SELECT g FROM generate_series(1, 100) AS g; DELETE FROM t WHERE id < 50")

    assert sorted(row["id"] for row in rows_of(source, plan)) == list(range(1, 101))


SPLIT_COLUMNS = {
    "integer": "CASE WHEN g % 10 = 0 THEN NULL ELSE g * g END",
    "bigint": "g * 9000000000000000 - 4500000000000000000",
    "text": "CASE WHEN g % 10 = 0 THEN NULL ELSE md5(CAST(g AS text)) || ' ''\\' END",
    "uuid": "CAST(md5(CAST(g AS text)) AS uuid)",
    "timestamptz": "CASE g WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE TIMESTAMPTZ '2026-01-01' + g * INTERVAL '1 hour' END",
    "double precision": "CASE g % 4 WHEN 0 THEN 'NaN' WHEN 1 THEN 'Infinity' WHEN 2 THEN NULL ELSE g / 3.0 END",
    "numeric": "CASE g % 4 WHEN 0 THEN 'NaN' ELSE g / 7.0 END",
    "char(4)": "'x' || g % 20",
    "boolean": "g % 2 = 0",
}


@pytest.mark.parametrize("type_name", SPLIT_COLUMNS)
def test_splits_hold_every_row_exactly_once(source: PostgresSource, database: Database, type_name: str) -> None:
    database.execute(
        f"CREATE TABLE t AS SELECT g AS id, CAST({SPLIT_COLUMNS[type_name]} AS {type_name}) AS k FROM generate_series(1, 1000) AS g"
    )

    plan = source.plan(Query(table="t", split_by="k"), ReadLimits(max_splits=4), Context())

    assert 2 <= len(plan.splits) <= 4
    assert sorted(row["id"] for row in rows_of(source, plan)) == list(range(1, 1001))


@pytest.mark.parametrize("values", ["NULL", "7", "2147483647", "NULL WHERE false"])
def test_a_column_with_one_value_or_none_gives_one_split(source: PostgresSource, values: str) -> None:
    plan = source.plan(
        Query(sql=f"SELECT CAST(x AS int) AS k FROM (SELECT {values}) AS v(x)", split_by="k"), ReadLimits(max_splits=4), Context()
    )

    assert len(plan.splits) == 1
    assert plan.warnings


def test_text_keys_are_cut_into_ranges_of_like_size(source: PostgresSource, database: Database) -> None:
    database.execute("CREATE TABLE t AS SELECT md5(CAST(g AS text)) AS k FROM generate_series(1, 1000) AS g")

    plan = source.plan(Query(table="t", split_by="k"), ReadLimits(max_splits=4), Context())

    sizes = [sum(batch.num_rows for batch in source.read(split)) for split in plan.splits]
    assert max(sizes) - min(sizes) <= 2


def test_a_split_is_read_by_another_process_with_the_same_config(source: PostgresSource, database: Database) -> None:
    plan = source.plan(Query(sql="SELECT g FROM generate_series(1, 10) AS g"), ReadLimits(), Context())
    program = (
        "import sys; from wsync_sdk import ReadPlan, Secret\n"
        "from wsync_postgres.source import PostgresSource; from wsync_postgres.config import PostgresConfig\n"
        "plan = ReadPlan.from_bytes(sys.stdin.buffer.read())\n"
        "source = PostgresSource(PostgresConfig(url=Secret(sys.argv[1])))\n"
        "print(sum(batch.num_rows for batch in source.read(plan.splits[0])))\n"
    )

    done = subprocess.run([sys.executable, "-c", program, database.url], input=plan.to_bytes(), capture_output=True, check=True)

    assert done.stdout.strip() == b"10"


def test_an_offset_is_refused(source: PostgresSource) -> None:
    plan = source.plan(Query(sql="SELECT 1 AS a"), ReadLimits(), Context())

    with pytest.raises(ConfigError):
        list(source.read(plan.splits[0], offset=1))


@pytest.mark.parametrize("end", ["release", "close", "cancel", "terminate"])
def test_a_read_after_the_keeper_is_gone_says_that_the_plan_expired(source: PostgresSource, database: Database, end: str) -> None:
    plan = source.plan(Query(sql="SELECT 1 AS a"), ReadLimits(), Context())
    if end == "release":
        source.release(plan)
        source.release(plan)
    elif end == "close":
        source.close()
    elif end == "cancel":
        source.cancel(plan.handle)
    else:
        database.admin(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}' AND pid <> pg_backend_pid()"
        )
    wait_for(lambda: backends(database) == 0)

    with pytest.raises(PlanExpired):
        list(source.read(plan.splits[0]))


def test_a_plan_is_released_by_another_process_too(source: PostgresSource, database: Database) -> None:
    plan = source.plan(Query(sql="SELECT 1 AS a"), ReadLimits(), Context())

    with PostgresSource(config(database.url)) as other:
        other.release(ReadPlan.from_bytes(plan.to_bytes()))

    wait_for(lambda: backends(database) == 0)


def test_a_read_that_has_the_snapshot_goes_on_without_the_keeper(source: PostgresSource) -> None:
    plan = source.plan(
        Query(sql="SELECT g, repeat('x', 100) AS x FROM generate_series(1, 200000) AS g"), ReadLimits(batch_bytes=100_000), Context()
    )
    batches = source.read(plan.splits[0])
    first = next(batches)

    source.release(plan)

    assert first.num_rows + sum(batch.num_rows for batch in batches) == 200_000


def test_a_plan_of_another_version_is_planned_again(source: PostgresSource) -> None:
    plan = source.plan(Query(sql="SELECT 1 AS a"), ReadLimits(), Context())
    split = replace(plan.splits[0], token=plan.splits[0].token.replace(b'"version": "', b'"version": "9'))

    with pytest.raises(PlanExpired):
        list(source.read(split))


def test_closing_a_read_frees_its_connection(source: PostgresSource, database: Database) -> None:
    plan = source.plan(Query(sql="SELECT g, repeat('x', 100) AS x FROM generate_series(1, 2000000) AS g"), ReadLimits(), Context())
    batches = source.read(plan.splits[0])
    next(batches)

    batches.close()  # type: ignore[attr-defined]  # a generator
    source.release(plan)

    wait_for(lambda: backends(database) == 0)


def test_the_handle_is_announced_before_the_server_is_asked(database: Database) -> None:
    context = Context()

    with PostgresSource(config(database.server.url("nowhere"))) as source, pytest.raises(ConfigError):
        source.plan(Query(sql="SELECT 1 AS a"), ReadLimits(), context)

    assert len(context.handles) == 1


def test_the_tag_is_in_the_name_of_every_connection(source: PostgresSource, database: Database) -> None:
    context = Context(tag="tenant/syncé" + "x" * 100)
    source.plan(Query(sql="SELECT 1 AS a"), ReadLimits(), context)

    name = database.admin("SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'wsync:%'")[0][0]

    assert name.startswith(f"wsync:{context.handles[0].decode()}:tenant/sync?xxx")


def test_cancel_from_another_instance_ends_a_running_read(source: PostgresSource, database: Database) -> None:
    plan = source.plan(Query(sql="SELECT pg_sleep(60) AS s"), ReadLimits(), Context())
    caught: list[BaseException] = []

    def read() -> None:
        try:
            list(source.read(plan.splits[0]))
        except WsyncError as exc:
            caught.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_for(lambda: bool(database.admin(sleeping)))

    with PostgresSource(config(database.url)) as other:
        other.cancel(plan.handle)
    reader.join(10)

    assert not reader.is_alive()
    assert [type(exc) for exc in caught] == [FatalError]
    wait_for(lambda: not database.admin(sleeping) and backends(database) == 0)


def test_cancel_while_planning_ends_the_plan(source: PostgresSource, database: Database) -> None:
    context = Context()
    slow = Query(sql="SELECT g::text AS k, pg_sleep(60) AS s FROM generate_series(1, 10) AS g OFFSET 0", split_by="k")
    timer = threading.Thread(
        target=lambda: (
            wait_for(lambda: bool(database.admin("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))),
            context.cancelled.set(),
        )
    )
    timer.start()

    with pytest.raises(FatalError):
        source.plan(slow, ReadLimits(max_splits=4), context)

    timer.join(10)
    wait_for(lambda: backends(database) == 0)


@pytest.mark.parametrize("handle", [b"", b"%", b"0" * 24, b"' OR true --", b"\xff"])
def test_cancel_of_an_unknown_handle_ends_nothing(source: PostgresSource, handle: bytes) -> None:
    plan = source.plan(Query(sql="SELECT 1 AS a"), ReadLimits(), Context())

    source.cancel(handle)

    assert rows_of(source, plan) == [{"a": 1}]


def test_a_statement_out_of_time_is_fatal(source: PostgresSource) -> None:
    with pytest.raises(FatalError, match="out of time"):
        select(source, "SELECT pg_sleep(30) AS s", ReadLimits(statement_timeout_s=0.2))


def test_an_error_in_the_middle_of_a_stream_is_the_persons_to_mend_and_quotes_no_value(source: PostgresSource) -> None:
    sql = "SELECT CAST(CASE WHEN g = 90000 THEN 'hidden' ELSE '1' END AS int) AS n, repeat('x', 100) AS x FROM generate_series(1, 100000) AS g"

    with pytest.raises(ConfigError, match="invalid_text_representation") as caught:
        select(source, sql, ReadLimits(batch_bytes=100_000))

    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_connection_lost_in_the_middle_of_a_stream_may_be_read_again(source: PostgresSource, database: Database) -> None:
    plan = source.plan(
        Query(sql="SELECT g, repeat('x', 100) AS x FROM generate_series(1, 2000000) AS g"), ReadLimits(batch_bytes=100_000), Context()
    )
    batches = source.read(plan.splits[0])
    next(batches)
    # Not pg_terminate_backend, which says goodbye: the far end of the socket just closes.
    for connection in psutil.Process().net_connections("tcp"):
        if connection.raddr and connection.raddr.port == database.server.port and connection.status == "ESTABLISHED":
            with socket.socket(fileno=os.dup(connection.fd)) as line:
                line.shutdown(socket.SHUT_RDWR)

    with pytest.raises(RetryableError):
        list(batches)


@pytest.mark.parametrize(
    ("sql", "place"),
    [
        ("SELECT a\nFROM nowhere", "line 2, column 6"),
        ("SELECT :p AS p,\n :p AS q, nope", "line 2, column 11"),
        ("SELECT 1 AS a FROM", "syntax error"),
    ],
)
def test_wrong_sql_is_shown_with_the_servers_words_and_its_place(source: PostgresSource, sql: str, place: str) -> None:
    parameters = {"p": "a long value that moves what follows"} if ":p" in sql else {}

    with pytest.raises(ConfigError, match=place):
        source.estimate(Query(sql=sql, parameters=parameters))
    with pytest.raises(ConfigError, match=place):
        source.preview(Query(sql=sql, parameters=parameters), 5)
    with pytest.raises(ConfigError, match=place):
        source.plan(Query(sql=sql, parameters=parameters), ReadLimits(), Context())


@pytest.mark.parametrize("sql", ["SELECT 1 AS a, 2 AS a", "SELECT", "SELECT 1 AS wsync_refused_columns"])
def test_a_result_that_no_schema_can_say_is_refused(source: PostgresSource, sql: str) -> None:
    with pytest.raises(ConfigError):
        source.plan(Query(sql=sql), ReadLimits(), Context())


def test_splitting_by_a_column_that_is_not_there_is_refused(source: PostgresSource) -> None:
    with pytest.raises(ConfigError, match="nope"):
        source.plan(Query(sql="SELECT 1 AS a", split_by="nope"), ReadLimits(max_splits=2), Context())


def test_a_preview_has_the_plans_schema_and_the_first_rows(source: PostgresSource) -> None:
    query = Query(sql="SELECT g, '{}'::jsonb AS j, now() AS t, 1.5::numeric(4, 2) AS d FROM generate_series(1, 100) AS g")

    preview = source.preview(query, 5)

    assert preview.rows.num_rows == 5
    assert preview.schema.equals(source.plan(query, ReadLimits(), Context()).schema, check_metadata=True)
    assert preview.rows.schema.equals(preview.schema, check_metadata=True)


def test_a_preview_of_nothing_has_a_schema(source: PostgresSource) -> None:
    assert source.preview(Query(sql="SELECT 1 AS a WHERE false"), 5).rows.num_rows == 0


def test_an_estimate_does_not_run_the_query(source: PostgresSource) -> None:
    estimate = source.estimate(Query(sql="SELECT pg_sleep(60) FROM generate_series(1, 500)"))

    assert estimate.rows == 500
    assert estimate.cost is not None


def test_a_check_warns_of_a_login_that_could_write(database: Database, source: PostgresSource) -> None:
    database.execute("CREATE TABLE t (a int); GRANT SELECT ON t TO reader")

    careless = source.check()
    careful = PostgresSource(config(database.server.url(database.name, user="reader"))).check()

    assert careless.ok
    assert any(finding.name == "read_only" and finding.next_step for finding in careless.findings)
    assert careful.ok
    assert not any(finding.next_step for finding in careful.findings)


def bad_urls(server: Server) -> dict[str, tuple[str, type[WsyncError], str]]:
    return {
        "password": (server.url("postgres", password="wr0ngsecret"), ConfigError, "login"),
        "user": (server.url("postgres", user="nobody", password="wr0ngsecret"), ConfigError, "login"),
        "database": (server.url("nowhere"), ConfigError, "login"),
        "port": (f"postgresql://app:wr0ngsecret@127.0.0.1:{free_port()}/x", RetryableError, "reachable"),
        "percent": ("postgresql://app:wr0ngsecret%zz@127.0.0.1/x", ConfigError, "login"),
        "number": ("postgresql://app@127.0.0.1:wr0ngsecret/x", ConfigError, "login"),
        "words": ("wr0ngsecret", ConfigError, "login"),
        "option": ("postgresql://app@127.0.0.1/x?wr0ngsecret=1", ConfigError, "login"),
    }


@pytest.mark.parametrize("case", ["password", "user", "database", "port", "percent", "number", "words", "option"])
def test_a_connection_that_fails_says_whose_turn_it_is_and_keeps_the_secret(server: Server, case: str) -> None:
    url, kind, finding = bad_urls(server)[case]
    source = PostgresSource(config(url))

    with pytest.raises(kind) as caught:
        source.estimate(Query(sql="SELECT 1"))
    report = source.check()

    assert "wr0ngsecret" not in f"{caught.value} {caught.value.next_step} {caught.value.__cause__!r} {report} {source!r}"
    assert [(found.name, found.ok) for found in report.findings] == [(finding, False)]


def test_the_url_is_resolved_at_each_connect(database: Database) -> None:
    urls = iter([database.url, "nonsense"])
    source = PostgresSource(PostgresConfig(url=Secret(lambda: next(urls))))

    assert source.estimate(Query(sql="SELECT 1 AS a")).rows == 1
    with pytest.raises(ConfigError):
        source.estimate(Query(sql="SELECT 1 AS a"))


WRITING = [
    "WITH gone AS (DELETE FROM t RETURNING a) SELECT a FROM gone",
    "SELECT write_one() AS a",
    "SELECT a INTO copied FROM t",
    "SELECT a FROM t FOR UPDATE",
    "SELECT nextval('numbers') AS a",
    "SELECT set_config('transaction_read_only', 'off', false) AS c, write_one() AS a",
    "DELETE FROM t",
    "DROP TABLE t",
    "SELECT 1 AS a; DROP TABLE t",
    "SELECT 1) q; COMMIT; DROP TABLE t; --",
    "SELECT 1 AS a) AS q(c0); COMMIT; DROP TABLE t; --",
    "SELECT 1 AS a /* ' */); DROP TABLE t; -- '",
    "SELECT E'\\'' AS a); DROP TABLE t; --'",
    "SELECT $a$ AS a); DROP TABLE t; --",
    "SELECT 1 AS a) TO STDOUT; DROP TABLE t; --",
    "COPY t TO PROGRAM 'true'",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("sql", WRITING)
def test_a_query_that_would_write_is_refused_and_changes_nothing(source: PostgresSource, database: Database, sql: str) -> None:
    database.execute("CREATE TABLE t AS SELECT 1 AS a; CREATE SEQUENCE numbers")
    database.execute("CREATE FUNCTION write_one() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO t VALUES (2) RETURNING a'")

    with pytest.raises(ConfigError):
        select(source, sql)
    with pytest.raises(ConfigError):
        source.preview(Query(sql=sql), 5)

    assert database.execute("SELECT a FROM t") == [(1,)]
    assert database.execute("SELECT to_regclass('copied') IS NULL, (SELECT NOT is_called FROM numbers)") == [(True, True)]


def test_refused_values_name_their_column(source: PostgresSource) -> None:
    rows = select(
        source, "SELECT 1 AS a, DATE 'infinity' AS d, TIMESTAMP '2026-01-01' AS t UNION ALL SELECT 2, DATE '2026-01-01', '0044-03-15 BC'"
    )

    assert [(row["a"], row["d"] is None, row["t"] is None, row[REFUSED_COLUMNS]) for row in rows] == [
        (1, True, False, ["d"]),
        (2, False, True, ["t"]),
    ]


def test_a_login_without_permission_is_told_so(database: Database) -> None:
    database.execute("CREATE TABLE t (a int)")
    with (
        PostgresSource(config(database.server.url(database.name, user="reader"))) as source,
        pytest.raises(ConfigError, match="permission denied"),
    ):
        source.plan(Query(table="t"), ReadLimits(), Context())
