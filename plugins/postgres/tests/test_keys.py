"""Keys that wsync tells apart and a column would not."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from wsync_postgres.sink import PostgresSink
from wsync_sdk import ConfigError, RowError, Target

from .chunks import RUN, chunk
from .conftest import Database

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
