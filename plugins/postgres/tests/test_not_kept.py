"""Rows that the table takes without an error and does not keep."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest

from wsync_postgres.sink import PostgresSink
from wsync_sdk import RowError, Target

from .chunks import RUN, SCHEMA, TARGET, chunk
from .conftest import Database

BEFORE = (
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {} END$$;"
    "CREATE TRIGGER f BEFORE {} ON people FOR EACH ROW EXECUTE FUNCTION f()"
)


@pytest.mark.parametrize(
    ("ddl", "schema"),
    [
        (BEFORE.format("IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW;", "INSERT"), SCHEMA),
        (BEFORE.format("IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW;", "INSERT"), pa.schema([("id", pa.int64())])),
        (BEFORE.format("IF NEW.id = 2 THEN NEW.id := 9; END IF; RETURN NEW;", "INSERT"), SCHEMA),
        (f"INSERT INTO people VALUES (2, 'old'); {BEFORE.format('IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW;', 'UPDATE')}", SCHEMA),
    ],
)
def test_a_row_that_the_table_drops_or_moves_is_not_taken_as_accepted(
    sink: PostgresSink, database: Database, ddl: str, schema: pa.Schema
) -> None:
    database.execute(f"CREATE TABLE people (id bigint PRIMARY KEY, name text); {ddl}")
    target = Target(stream="people", key=("id",), schema=schema)
    token = sink.begin(RUN, target)

    with pytest.raises(RowError) as caught:
        sink.write(chunk([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], target=target), token)

    assert caught.value.code == "not_stored"
    assert sink.recorded(RUN, target, 0) == []
    for first in range(2):  # new, then there already
        assert sink.write(chunk([{"id": 1, "name": "a"}], first=first, target=target), token).accepted_rows == 1


def test_an_update_that_changes_nothing_may_be_left_out_by_a_trigger(sink: PostgresSink, database: Database) -> None:
    database.execute(
        "CREATE TABLE people (id bigint PRIMARY KEY, name varchar(9), price numeric(9, 2), doc json);"
        "CREATE TRIGGER z BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    )
    schema = pa.schema([*SCHEMA, ("price", pa.string()), ("doc", pa.list_(pa.int64()))])
    target = Target(stream="people", key=("id",), schema=schema)
    token = sink.begin(RUN, target)
    rows = [{"id": 1, "name": "a", "price": "1.004", "doc": [1]}, {"id": 2}]
    sink.write(chunk(rows, target=target), token)

    result = sink.write(chunk([*rows, {"id": 3, "name": "new"}], first=2, target=target), token)

    assert result.accepted_rows == 3
    assert database.execute("SELECT id, name, price, doc FROM people ORDER BY id") == [
        (1, "a", Decimal("1.00"), [1]),
        (2, None, None, None),
        (3, "new", None, None),
    ]


@pytest.mark.parametrize(
    "ddl",
    [
        BEFORE.format("RETURN NULL;", "DELETE"),
        "CREATE RULE r AS ON DELETE TO people DO INSTEAD NOTHING",
        "CREATE POLICY see ON people USING (true); CREATE POLICY hold ON people AS RESTRICTIVE FOR DELETE USING (id <> 2);"
        "ALTER TABLE people ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    ],
)
def test_a_row_that_the_table_keeps_is_not_taken_as_deleted(sink: PostgresSink, database: Database, ddl: str) -> None:
    database.execute(f"CREATE TABLE people (id bigint PRIMARY KEY, name text); INSERT INTO people VALUES (2, 'kept'); {ddl}")
    token = sink.begin(RUN, TARGET)

    with pytest.raises(RowError) as caught:
        sink.write(chunk([{"op": "delete", "id": 2}]), token)

    assert caught.value.code == "not_deleted"
    assert sink.write(chunk([{"op": "delete", "id": 1}]), token).accepted_rows == 1  # absent: as it shall be
