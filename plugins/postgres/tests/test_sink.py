"""The sink against a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from wsync_postgres.config import PostgresConfig
from wsync_postgres.sink import PostgresSink
from wsync_sdk import (
    OP,
    Chunk,
    ConfigError,
    FatalError,
    Fence,
    RetryableError,
    RowError,
    RowRange,
    RunRef,
    Secret,
    StateError,
    Target,
    WsyncError,
)

from .conftest import Database

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
TARGET = Target(stream="people", key=("id",), schema=SCHEMA)
RUN = RunRef(tenant_id="acme", sync_id="people", run_id="run-1", delivery=1)


@pytest.fixture
def sink(database: Database) -> Iterator[PostgresSink]:
    with PostgresSink(PostgresConfig(url=Secret(database.url))) as opened:
        yield opened


def chunk(
    rows: list[dict[str, Any]],
    *,
    first: int = 0,
    run: RunRef = RUN,
    target: Target = TARGET,
    epoch: int = 1,
    partition: int = 0,
    timeout_s: float = 9.0,
) -> Chunk:
    """Rows with `op` (default: upsert) as a chunk."""
    schema = pa.schema([pa.field(OP, pa.string()), *target.schema])
    table = [{OP: row.get("op", "upsert"), **{name: row.get(name) for name in target.schema.names}} for row in rows]
    changes = pa.RecordBatch.from_pylist(table, schema=schema)
    span = RowRange(first, first + len(rows) - 1)
    fence = Fence(sync_id=run.sync_id, delivery=run.delivery, partition=partition, epoch=epoch)
    return Chunk(
        key=f"log:{span.first}:{span.last}",
        run=run,
        partition=partition,
        range=span,
        target=target,
        changes=changes,
        records=None,
        fence=fence,
        timeout_s=timeout_s,
    )


def people(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT id, name FROM people ORDER BY id")


def test_upserts_and_deletes_are_applied_and_recorded(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": None}]), token)

    result = sink.write(chunk([{"op": "delete", "id": 1}, {"id": 2, "name": "B"}, {"id": 4, "name": ""}], first=3), token)

    assert result.accepted_rows == 3
    assert people(database) == [(2, "B"), (3, None), (4, "")]
    assert sink.recorded(RUN, TARGET, 0) == [RowRange(0, 2), RowRange(3, 5)]
    assert sink.recorded(RUN, TARGET, 1) == []


def test_the_same_chunk_twice_is_applied_once(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sent = chunk([{"id": 1, "name": "a"}])
    sink.write(sent, token)
    database.execute("UPDATE people SET name = 'changed by hand'")

    assert sink.write(sent, token).accepted_rows == 1
    assert people(database) == [(1, "changed by hand")]


def test_a_part_of_a_recorded_chunk_is_applied_once(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": i, "name": "a"} for i in range(4)]), token)
    database.execute("UPDATE people SET name = 'changed by hand'")

    assert sink.write(chunk([{"id": 2, "name": "a"}], first=2), token).accepted_rows == 1
    assert {name for _, name in people(database)} == {"changed by hand"}


def test_a_chunk_that_overlaps_recorded_rows_is_refused(sink: PostgresSink) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), token)

    with pytest.raises(StateError):
        sink.write(chunk([{"id": 2, "name": "a"}, {"id": 3, "name": "a"}], first=1), token)


def test_one_chunk_sent_twice_at_once_is_applied_once(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint PRIMARY KEY, name text, hits int DEFAULT 1)")
    database.execute(
        "CREATE FUNCTION hit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.hits := OLD.hits + 1; RETURN NEW; END';"
        "CREATE TRIGGER hit BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION hit()"
    )
    token = sink.begin(RUN, TARGET)
    sent = chunk([{"id": i, "name": "a"} for i in range(100)])

    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(lambda _: sink.write(sent, token), range(4)))

    assert [result.accepted_rows for result in results] == [100] * 4
    assert database.execute("SELECT DISTINCT hits FROM people") == [(1,)]


def test_partitions_are_written_at_the_same_time(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda p: sink.write(chunk([{"id": p, "name": "a"}], partition=p), token), range(8)))

    assert len(people(database)) == 8


def test_another_process_finds_what_was_recorded(sink: PostgresSink, database: Database) -> None:
    sink.write(chunk([{"id": 1, "name": "a"}]), sink.begin(RUN, TARGET))

    with PostgresSink(PostgresConfig(url=Secret(database.url))) as other:
        assert other.recorded(RUN, TARGET, 0) == [RowRange(0, 0)]


def test_nothing_is_recorded_where_nothing_was_ever_written(sink: PostgresSink) -> None:
    assert sink.recorded(RUN, TARGET, 0) == []


@pytest.mark.parametrize(("delivery", "epoch"), [(1, 9), (2, 2)])
def test_a_writer_with_a_lower_delivery_or_epoch_is_fenced_off(sink: PostgresSink, database: Database, delivery: int, epoch: int) -> None:
    newer = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2)
    older = RunRef(tenant_id="acme", sync_id="people", run_id=f"run-{delivery}", delivery=delivery)
    token = sink.begin(newer, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}], run=newer, epoch=3), token)

    with pytest.raises(StateError):
        sink.write(chunk([{"id": 2, "name": "late"}], first=1, run=older, epoch=epoch), token)

    assert people(database) == [(1, "a")]


def test_begin_fences_off_every_earlier_delivery(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    newer = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2)

    sink.begin(newer, TARGET)

    with pytest.raises(StateError):
        sink.write(chunk([{"id": 2, "name": "late"}], first=1, partition=5), token)
    with pytest.raises(StateError):
        sink.begin(RUN, TARGET)
    assert sink.recorded(RUN, TARGET, 0) == []
    assert database.execute("SELECT count(*) FROM wsync_sink.wsync_ack") == [(0,)]


@pytest.mark.parametrize("lost", ["everything", "the bookkeeping's row", "the table"])
def test_a_run_that_continues_what_the_database_never_had_or_lost_is_refused(sink: PostgresSink, database: Database, lost: str) -> None:
    changes = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2, continues=1)
    if lost != "everything":
        sink.begin(RUN, TARGET)
        database.execute("DROP TABLE people" if lost == "the table" else "DELETE FROM wsync_sink.wsync_fence")

    with pytest.raises(ConfigError, match="gone" if lost == "the table" else "never seen") as caught:
        sink.begin(changes, TARGET)

    assert "sync resync NAME" in caught.value.next_step
    assert "sync adopt NAME" in caught.value.next_step
    assert database.execute("SELECT to_regclass('people')::text") == [("people" if lost == "the bookkeeping's row" else None,)]
    assert database.execute("SELECT to_regclass('wsync_sink.wsync_fence') IS NULL") == [(lost == "everything",)]


def test_a_run_that_continues_what_is_there_begins(sink: PostgresSink, database: Database) -> None:
    sink.write(chunk([{"id": 1, "name": "a"}]), sink.begin(RUN, TARGET))
    changes = RunRef(tenant_id="acme", sync_id="people", run_id="run-2", delivery=2, continues=1)

    for _ in range(2):  # `begin` is repeated after a crash
        token = sink.begin(changes, TARGET)
    sink.write(chunk([{"id": 2, "name": "b"}], run=changes), token)

    assert people(database) == [(1, "a"), (2, "b")]


def test_another_tenants_sync_of_the_same_name_is_another_sync(sink: PostgresSink) -> None:
    other = RunRef(tenant_id="bravo", sync_id="people", run_id="run-1", delivery=7)
    sink.begin(other, TARGET)

    token = sink.begin(RUN, TARGET)

    assert sink.write(chunk([{"id": 1, "name": "a"}]), token).accepted_rows == 1
    assert sink.recorded(other, TARGET, 0) == []


def test_a_newer_writer_waits_for_one_that_is_inside_and_then_shuts_it_out(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    with psycopg.connect(database.url) as blocker:
        blocker.execute("SELECT * FROM people WHERE id = 1 FOR UPDATE")
        with ThreadPoolExecutor(max_workers=2) as pool:
            inside = pool.submit(sink.write, chunk([{"id": 1, "name": "old"}], first=1, epoch=1), token)
            _wait_for_waiting(database, 1)
            newer = pool.submit(sink.write, chunk([{"id": 1, "name": "new"}], first=2, epoch=2), token)
            _wait_for_waiting(database, 2)
            blocker.rollback()
            assert inside.result().accepted_rows == newer.result().accepted_rows == 1

    assert people(database) == [(1, "new")]
    with pytest.raises(StateError):
        sink.write(chunk([{"id": 1, "name": "older"}], first=3, epoch=1), token)


def _wait_for_waiting(database: Database, count: int) -> None:
    waiting = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.name}' AND wait_event_type = 'Lock'"
    for _ in range(500):
        if database.admin(waiting)[0][0] >= count:
            return
        threading.Event().wait(0.01)
    raise AssertionError("nobody waits for a lock")


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([{"id": None, "name": "a"}], "not_null_violation"),
        ([{"id": 2, "name": "toolong"}], "string_data_right_truncation"),
        ([{"id": 2, "name": "bad"}], "check_violation"),
        ([{"id": 2, "name": "a\0b"}], "untranslatable_character"),
        ([{"id": 2, "name": "a"}, {"id": 2, "name": "b"}], "cardinality_violation"),
    ],
)
def test_a_row_that_the_table_refuses_leaves_nothing_of_its_chunk(
    sink: PostgresSink, database: Database, rows: list[dict[str, Any]], code: str
) -> None:
    database.execute("CREATE TABLE people (id bigint PRIMARY KEY, name varchar(4) CHECK (name <> 'bad'))")
    token = sink.begin(RUN, TARGET)

    with pytest.raises(RowError) as caught:
        sink.write(chunk([{"id": 1, "name": "ok"}, *rows]), token)

    assert caught.value.code == code
    assert "toolong" not in str(caught.value)
    assert people(database) == []
    assert sink.recorded(RUN, TARGET, 0) == []
    assert sink.write(chunk([{"id": 1, "name": "ok"}]), token).accepted_rows == 1


RAISE = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.name LIKE 'bad%' THEN"
    " RAISE EXCEPTION 'bad mail %', NEW.name USING ERRCODE = '{}'; END IF; RETURN NEW; END$$;"
    "CREATE TRIGGER refuse BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION refuse()"
)
LONG = (
    "CREATE FUNCTION long(t text) RETURNS text LANGUAGE sql IMMUTABLE AS"
    " $$SELECT string_agg(md5(n::text), '') FROM generate_series(1, CASE WHEN t LIKE 'bad%' THEN 400 ELSE 1 END) n$$"
)
POLICY = "CREATE POLICY p ON people USING (true) WITH CHECK (name <> 'bad one'); ALTER TABLE people {} ROW LEVEL SECURITY"


@pytest.mark.parametrize(
    ("ddl", "code"),
    [
        (RAISE.format("U0001"), "sqlstate_u0001"),
        (RAISE.format("44000"), "with_check_option_violation"),
        (RAISE.format("42501"), "insufficient_privilege"),
        (f"{POLICY.format('ENABLE')}; {POLICY.format('FORCE').split(';')[1]}", "insufficient_privilege"),
        (f"{LONG}; CREATE INDEX ON people (long(name))", "program_limit_exceeded"),
        (
            "ALTER TABLE people ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED; INSERT INTO people VALUES (9, 'bad one')",
            "unique_violation",
        ),
    ],
)
def test_whatever_one_row_makes_the_table_say_is_that_rows_refusal(sink: PostgresSink, database: Database, ddl: str, code: str) -> None:
    database.execute(f"CREATE TABLE people (id bigint PRIMARY KEY, name text); {ddl}")
    token = sink.begin(RUN, TARGET)

    with pytest.raises(RowError) as caught:
        sink.write(chunk([{"id": 1, "name": "ok"}, {"id": 2, "name": "bad one"}]), token)

    assert caught.value.code == code
    assert "bad one" not in f"{caught.value} {caught.value.__cause__}"
    assert sink.recorded(RUN, TARGET, 0) == []
    assert sink.write(chunk([{"id": 1, "name": "ok"}]), token).accepted_rows == 1


@pytest.mark.parametrize("code", ["55000", "42704", "58000", "XX000", "40001", "U0001", "01000"])
def test_what_a_trigger_says_under_any_code_is_not_repeated(sink: PostgresSink, database: Database, code: str) -> None:
    database.execute(f"CREATE TABLE people (id bigint PRIMARY KEY, name text); {RAISE.format(code)}")
    token = sink.begin(RUN, TARGET)

    with pytest.raises(WsyncError) as caught:
        sink.write(chunk([{"id": 2, "name": "bad one"}]), token)

    assert "bad" not in f"{caught.value} {caught.value.__cause__}"
    assert code in str(caught.value)


def test_a_refusal_names_the_constraint_or_the_column(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint PRIMARY KEY, name text NOT NULL CONSTRAINT short CHECK (length(name) < 5))")
    token = sink.begin(RUN, TARGET)

    with pytest.raises(RowError, match="constraint `short`"):
        sink.write(chunk([{"id": 1, "name": "too long"}]), token)
    with pytest.raises(RowError, match="column `name`"):
        sink.write(chunk([{"id": 1, "name": None}]), token)


@pytest.mark.parametrize("privilege", ["SELECT", "INSERT", "UPDATE", "DELETE"])
def test_a_privilege_that_the_login_lacks_is_named_before_the_first_write(sink: PostgresSink, database: Database, privilege: str) -> None:
    database.execute(f"CREATE TABLE people (id bigint PRIMARY KEY, name text); REVOKE {privilege} ON people FROM app")

    with pytest.raises(ConfigError, match=f"lacks {privilege}"):
        sink.begin(RUN, TARGET)


def test_a_privilege_taken_away_in_mid_run_is_not_the_rows_refusal(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    database.execute("REVOKE INSERT ON people FROM app")

    with pytest.raises(ConfigError, match="lacks INSERT"):
        sink.write(chunk([{"id": 1, "name": "a"}]), token)


def test_every_mapped_type_makes_a_column_and_arrives(sink: PostgresSink, database: Database) -> None:
    nested = pa.struct([("a", pa.int32()), ("b", pa.list_(pa.struct([("c", pa.string())]))), ("n", pa.null()), ("f", pa.float64())])
    schema = pa.schema(
        [
            pa.field("id", pa.int32()),
            pa.field("u", pa.uint64()),
            pa.field("d", pa.decimal128(10, 2)),
            pa.field("f", pa.float32()),
            pa.field("ok", pa.bool_()),
            pa.field("raw", pa.large_binary()),
            pa.field("day", pa.date32()),
            pa.field("clock", pa.time64("us")),
            pa.field("seen", pa.timestamp("ms", tz="Europe/Berlin")),
            pa.field("local", pa.timestamp("us")),
            pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
            pa.field("doc", pa.string(), metadata={b"wsync.logical": b"json"}),
            pa.field("nest", nested),
            pa.field("tags", pa.list_(pa.string())),
        ]
    )
    awkward = 'q"uote\\ back\nline \x01 é 😀'
    row = {
        "id": 1,
        "u": 2**64 - 1,
        "d": Decimal("-12.50"),
        "f": 1.5,
        "ok": True,
        "raw": b"\0\xff",
        "day": date(2026, 1, 2),
        "clock": time(3, 4, 5, 6),
        "seen": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "local": datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - without zone is meant
        "kind": "k",
        "doc": '{"x": [1, null]}',
        "nest": {"a": 1, "b": [{"c": awkward}, None, {"c": None}], "n": None, "f": float("inf")},
        "tags": ["a", None, 'b"'],
    }
    target = Target(stream="things", key=("id",), schema=schema)
    token = sink.begin(RUN, target)

    sink.write(chunk([row, {"id": 2}, {"id": 3, "tags": [], "nest": {}}], target=target), token)

    (got,) = database.execute("SELECT id, u, d, f, ok, raw, day, clock, seen, local, kind, doc, nest, tags FROM things WHERE id = 1")
    expected = dict(row, doc={"x": [1, None]}, nest=dict(row["nest"], f="Infinity"))  # type: ignore[call-overload]
    assert got == tuple(expected.values())
    assert database.execute("SELECT nest, tags FROM things WHERE id > 1 ORDER BY id") == [
        (None, None),
        ({"a": None, "b": None, "f": None, "n": None}, []),
    ]


def test_values_are_cast_to_the_tables_own_types(sink: PostgresSink, database: Database) -> None:
    database.execute(
        "CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE mixed (id uuid PRIMARY KEY, m mood, n numeric, tags text[], day date, c char(3), j json)"
    )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("m", pa.string()),
            ("n", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("day", pa.string()),
            ("c", pa.string()),
            ("j", pa.list_(pa.int64())),
        ]
    )
    target = Target(stream="mixed", key=("id",), schema=schema)
    token = sink.begin(RUN, target)
    key = "11111111-1111-1111-1111-111111111111"

    sink.write(
        chunk([{"id": key, "m": "glad", "n": "1.10", "tags": ["x"], "day": "2026-01-02", "c": "abc", "j": [1]}], target=target), token
    )

    assert database.execute("SELECT m::text, n::text, tags, day, c, j FROM mixed") == [
        ("glad", "1.10", ["x"], date(2026, 1, 2), "abc", [1])
    ]
    sink.write(chunk([{"op": "delete", "id": key}], first=1, target=target), token)
    assert database.execute("SELECT 1 FROM mixed") == []


CI = 'CREATE COLLATION ci FROM "C";'


@pytest.mark.parametrize(
    ("ddl", "type_"),
    [
        ("CREATE TABLE k (id int PRIMARY KEY)", pa.float64()),
        ("CREATE TABLE k (id real PRIMARY KEY)", pa.float64()),
        ("CREATE TABLE k (id numeric(9, 1) PRIMARY KEY)", pa.float64()),
        ("CREATE TABLE k (id int PRIMARY KEY)", pa.decimal128(9, 2)),
        ("CREATE TABLE k (id boolean PRIMARY KEY)", pa.string()),
        ("CREATE TABLE k (id date PRIMARY KEY)", pa.string()),
        ("CREATE TABLE k (id timestamp PRIMARY KEY)", pa.timestamp("us", tz="UTC")),
        ("CREATE TABLE k (id date PRIMARY KEY)", pa.timestamp("us")),
        ("CREATE TABLE k (id interval PRIMARY KEY)", pa.string()),
        ("CREATE TABLE k (id char(4) PRIMARY KEY)", pa.string()),
        ("CREATE TABLE k (id name PRIMARY KEY)", pa.string()),
        ("CREATE TABLE k (id jsonb PRIMARY KEY)", pa.string()),
        ("CREATE DOMAIN padded AS char(4); CREATE TABLE k (id padded PRIMARY KEY)", pa.string()),
        (CI + "CREATE TABLE k (id text COLLATE ci PRIMARY KEY)", pa.string()),
        (CI + "CREATE DOMAIN mail AS text COLLATE ci; CREATE TABLE k (id mail PRIMARY KEY)", pa.string()),
        (CI + "CREATE TABLE k (id text PRIMARY KEY); CREATE UNIQUE INDEX ON k (id COLLATE ci)", pa.string()),
    ],
)
def test_a_key_column_that_calls_different_keys_equal_is_refused(
    sink: PostgresSink, database: Database, ddl: str, type_: pa.DataType
) -> None:
    database.execute(ddl)
    # The tests' server is built without ICU, so it has no such collation: the mark that the catalog gives one.
    database.admin("UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'ci'")

    with pytest.raises(ConfigError, match="`id`"):
        sink.begin(RUN, Target(stream="k", key=("id",), schema=pa.schema([("id", type_)])))


UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
NOT_CANONICAL = "key_not_canonical"


@pytest.mark.parametrize(
    "case",
    [
        ("int", pa.string(), "7", "07", NOT_CANONICAL),
        ("bigint", pa.string(), "-7", " -7", NOT_CANONICAL),
        ("bigint", pa.string(), "7", "seven", "invalid_text_representation"),
        ("smallint", pa.int64(), 7, 70_000, "numeric_value_out_of_range"),
        ("uuid", pa.string(), UUID, UUID.upper(), NOT_CANONICAL),
        ("uuid", pa.string(), UUID, f"{{{UUID}}}", NOT_CANONICAL),
        ("numeric", pa.string(), "1.5", "1.50", NOT_CANONICAL),
        ("numeric", pa.string(), "100", "1e2", NOT_CANONICAL),
        ("numeric(9, 1)", pa.string(), "1.5", "1.54", NOT_CANONICAL),
        ("numeric(9, 1)", pa.decimal128(9, 2), Decimal("1.50"), Decimal("1.54"), NOT_CANONICAL),
        ("numeric", pa.int64(), 100, None, "not_null_violation"),
        ("timestamp(0)", pa.timestamp("us"), datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 0, 0, 9), NOT_CANONICAL),  # noqa: DTZ001
        ("varchar(3)", pa.string(), "abc", "abcd", "string_data_right_truncation"),
        ("short", pa.string(), "abc", "abcd", NOT_CANONICAL),
        ("mood", pa.string(), "glad", "GLAD", "invalid_text_representation"),
        ("text", pa.int32(), 7, None, "not_null_violation"),
    ],
)
def test_a_key_that_would_read_back_as_another_is_refused(
    sink: PostgresSink, database: Database, case: tuple[str, pa.DataType, Any, Any, str]
) -> None:
    column, type_, kept, refused, code = case
    database.execute(
        f"CREATE DOMAIN short AS varchar(3); CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE k (id {column} PRIMARY KEY, v text)"
    )
    target = Target(stream="k", key=("id",), schema=pa.schema([("id", type_), ("v", pa.string())]))
    token = sink.begin(RUN, target)
    sink.write(chunk([{"id": kept, "v": "mine"}], target=target), token)

    with pytest.raises(RowError) as caught:
        sink.write(chunk([{"id": refused, "v": "twin"}], first=1, target=target), token)

    assert caught.value.code == code
    assert database.execute("SELECT v FROM k") == [("mine",)]
    sink.write(chunk([{"op": "delete", "id": kept}], first=1, target=target), token)
    assert database.execute("SELECT v FROM k") == []


def test_the_delete_of_a_key_leaves_the_row_of_another_that_the_table_calls_equal(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE k (id int PRIMARY KEY)")
    target = Target(stream="k", key=("id",), schema=pa.schema([("id", pa.string())]))
    token = sink.begin(RUN, target)
    sink.write(chunk([{"id": "7"}], target=target), token)

    with pytest.raises(RowError):
        sink.write(chunk([{"op": "delete", "id": "07"}], first=1, target=target), token)

    assert database.execute("SELECT id FROM k") == [(7,)]


@pytest.mark.parametrize(
    "ddl",
    ["CREATE TABLE k (id citext PRIMARY KEY)", "CREATE DOMAIN mail AS citext; CREATE TABLE k (id mail PRIMARY KEY)"],
)
def test_a_case_insensitive_key_column_is_refused(sink: PostgresSink, database: Database, ddl: str) -> None:
    if not database.admin("SELECT 1 FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("the server has no citext")
    database.execute(f"CREATE EXTENSION citext; {ddl}")

    with pytest.raises(ConfigError, match=r"citext|mail"):
        sink.begin(RUN, Target(stream="k", key=("id",), schema=pa.schema([("id", pa.string())])))


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


def test_a_write_out_of_time_may_be_sent_again(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    with psycopg.connect(database.url) as blocker:
        blocker.execute("SELECT * FROM people FOR UPDATE")
        with pytest.raises(RetryableError):
            sink.write(chunk([{"id": 1, "name": "b"}], first=1, timeout_s=0.4), token)
    assert sink.recorded(RUN, TARGET, 0) == [RowRange(0, 0)]

    assert sink.write(chunk([{"id": 1, "name": "b"}], first=1), token).accepted_rows == 1


def test_a_session_that_was_ended_is_replaced(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    database.admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}' AND pid <> pg_backend_pid()")

    with pytest.raises(RetryableError):
        sink.write(chunk([{"id": 2, "name": "b"}], first=1), token)

    assert sink.write(chunk([{"id": 2, "name": "b"}], first=1), token).accepted_rows == 1


def test_a_table_dropped_in_mid_run_is_fatal(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    database.execute("DROP TABLE people")

    with pytest.raises(FatalError):
        sink.write(chunk([{"id": 1, "name": "a"}]), token)


def test_a_login_without_permission_is_told_so(database: Database) -> None:
    with PostgresSink(PostgresConfig(url=Secret(database.server.url(database.name, user="reader")))) as sink:
        with pytest.raises(ConfigError, match="permission denied"):
            sink.begin(RUN, TARGET)
        assert [(finding.name, finding.ok) for finding in sink.check().findings] == [
            ("reachable", True),
            ("version", True),
            ("permission", False),
        ]


def test_a_wrong_password_is_a_finding_without_the_password(database: Database) -> None:
    sink = PostgresSink(PostgresConfig(url=Secret(database.server.url(database.name, password="wr0ng"))))

    report = sink.check()

    assert not report.ok
    assert "wr0ng" not in repr(report)


def test_streams_are_the_tables_that_can_be_written(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint PRIMARY KEY, name text); CREATE SCHEMA crm; CREATE TABLE crm.leads (a int)")
    sink.begin(RUN, TARGET)

    specs = {spec.name: spec for spec in sink.streams()}

    assert set(specs) == {"people", "crm.leads"}
    assert [(field.name, field.required) for field in specs["people"].fields] == [("id", True), ("name", False)]
    assert sink.stream("not.there").name == "not.there"
    with pytest.raises(ConfigError):
        sink.stream("a.b.c")
    assert sink.check().ok


def test_a_whole_chunk_of_the_largest_size_arrives(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    rows = [{"id": i, "name": json.dumps({"n": i})} for i in range(20_000)]

    sink.write(chunk(rows), token)

    assert database.execute("SELECT count(*), max(id) FROM people") == [(20_000, 19_999)]
