"""Rows that the table refuses: whose fault it is, and what of the server's words is told."""

from __future__ import annotations

from typing import Any

import pytest

from wsync_postgres.sink import PostgresSink
from wsync_sdk import ConfigError, RowError, WsyncError

from .chunks import RUN, TARGET, chunk, people
from .conftest import Database


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


@pytest.mark.parametrize(
    ("type_", "value", "code"),
    [
        ("tsvector", "'secret", "syntax_error"),
        ("regrole", "secret", "undefined_object"),
        ("regclass", "secret", "undefined_table"),
        ("int", "secret", "invalid_text_representation"),
    ],
)
def test_a_value_that_its_type_can_not_read_is_its_rows_refusal(
    sink: PostgresSink, database: Database, type_: str, value: str, code: str
) -> None:
    database.execute(f"CREATE TABLE people (id bigint PRIMARY KEY, name {type_})")
    token = sink.begin(RUN, TARGET)

    with pytest.raises(RowError) as caught:
        sink.write(chunk([{"id": 1, "name": None}, {"id": 2, "name": value}]), token)

    assert caught.value.code == code
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_a_refusal_names_the_constraint_or_the_column(sink: PostgresSink, database: Database) -> None:
    database.execute("CREATE TABLE people (id bigint PRIMARY KEY, name text NOT NULL CONSTRAINT short CHECK (length(name) < 5))")
    token = sink.begin(RUN, TARGET)

    with pytest.raises(RowError, match="constraint `short`"):
        sink.write(chunk([{"id": 1, "name": "too long"}]), token)
    with pytest.raises(RowError, match="column `name`"):
        sink.write(chunk([{"id": 1, "name": None}]), token)


def test_a_privilege_taken_away_in_mid_run_is_not_the_rows_refusal(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    database.execute("REVOKE INSERT ON people FROM app")

    with pytest.raises(ConfigError, match="lacks INSERT"):
        sink.write(chunk([{"id": 1, "name": "a"}]), token)
