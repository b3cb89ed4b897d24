"""The destination's table: made, or named where it can not take the sync."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from wsync_postgres.config import PostgresConfig
from wsync_postgres.sink import PostgresSink
from wsync_sdk import ConfigError, FatalError, RunRef, Secret, Target

from .chunks import RUN, SCHEMA, TARGET, chunk
from .conftest import Database


@pytest.mark.parametrize("privilege", ["SELECT", "INSERT", "UPDATE", "DELETE"])
def test_a_privilege_that_the_login_lacks_is_named_before_the_first_write(sink: PostgresSink, database: Database, privilege: str) -> None:
    database.execute(f"CREATE TABLE people (id bigint PRIMARY KEY, name text); REVOKE {privilege} ON people FROM app")

    with pytest.raises(ConfigError, match=f"lacks {privilege}"):
        sink.begin(RUN, TARGET)


@pytest.mark.parametrize(
    ("ddl", "words"),
    [
        ("CREATE TABLE people (id bigint PRIMARY KEY)", "no column `name`"),
        ("CREATE TABLE people (id bigint, name text)", "no unique index on exactly `id`"),
        ("CREATE TABLE people (id bigint, name text, UNIQUE (id, name))", "no unique index on exactly `id`"),
        (
            "CREATE TABLE people (id bigint, name text); CREATE UNIQUE INDEX ON people (id) WHERE name > ''",
            "no unique index on exactly `id`",
        ),
        ("CREATE TABLE people (id bigint PRIMARY KEY DEFERRABLE, name text)", "on `id` is deferrable"),
        ("CREATE TABLE people (id bigint PRIMARY KEY, name text, UNIQUE (id) DEFERRABLE)", "on `id` is deferrable"),
    ],
)
def test_a_table_that_can_not_take_the_sync_is_named(sink: PostgresSink, database: Database, ddl: str, words: str) -> None:
    database.execute(ddl)

    with pytest.raises(ConfigError, match=words):
        sink.begin(RUN, TARGET)


@pytest.mark.parametrize("type_", [pa.duration("s"), pa.struct([("b", pa.binary())]), pa.map_(pa.string(), pa.int32())])
def test_a_type_without_counterpart_is_refused_before_the_first_write(sink: PostgresSink, type_: pa.DataType) -> None:
    with pytest.raises(ConfigError, match="`x"):
        sink.begin(RUN, Target(stream="t", key=("id",), schema=pa.schema([("id", pa.int64()), ("x", type_)])))


@pytest.mark.parametrize("key", [(), ("other",)])
def test_a_key_that_is_not_mapped_is_refused(sink: PostgresSink, key: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        sink.begin(RUN, Target(stream="t", key=key, schema=SCHEMA))


def test_odd_names_of_schema_table_and_columns_are_quoted(sink: PostgresSink, database: Database) -> None:
    database.execute('CREATE SCHEMA "My Schema"')
    target = Target(stream='My Schema.t"; DROP', key=("k k",), schema=pa.schema([("k k", pa.int64()), ('v"', pa.string())]))
    token = sink.begin(RUN, target)

    sink.write(chunk([{"k k": 1, 'v"': "x"}], target=target), token)
    sink.write(chunk([{"op": "delete", "k k": 1}, {"k k": 2, 'v"': "y"}], first=1, target=target), token)

    assert database.execute('SELECT * FROM "My Schema"."t""; DROP"') == [(2, "y")]


def test_workers_that_begin_at_once_make_one_table(database: Database) -> None:
    def begin(number: int) -> None:
        run = RunRef(tenant_id="acme", sync_id=f"sync-{number}", run_id="r", delivery=1)
        with PostgresSink(PostgresConfig(url=Secret(database.url))) as sink:
            sink.begin(run, TARGET)

    with ThreadPoolExecutor(max_workers=6) as pool:
        list(pool.map(begin, range(6)))

    assert database.execute("SELECT count(*) FROM wsync_sink.wsync_fence") == [(6,)]


def test_a_table_dropped_in_mid_run_is_fatal(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    database.execute("DROP TABLE people")

    with pytest.raises(FatalError):
        sink.write(chunk([{"id": 1, "name": "a"}]), token)
