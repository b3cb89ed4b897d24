"""The files of SQL statements: how they are read, and that each one plans on the migrated schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsync_engine.state.database import connect
from wsync_engine.state.statements import SQL_FOLDER, load_statements, parse_statements, psycopg_form

FILES = sorted(path for path in SQL_FOLDER.parents[1].rglob("*.sql") if path.parent.name == "sql")
STATEMENTS = [(path, name) for path in FILES for name in load_statements(path.stem, path.parent)]


@pytest.mark.parametrize(("path", "name"), STATEMENTS, ids=[f"{path.parents[1].name}-{name}" for path, name in STATEMENTS])
def test_each_statement_plans_on_the_migrated_schema(servers, path: Path, name: str) -> None:
    statement = load_statements(path.stem, path.parent)[name].decode()
    order: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        if match[1] not in order:
            order.append(match[1])
        return f"${order.index(match[1]) + 1}"

    # In the database that the others are copied from: planning leaves nothing behind.
    with connect(servers.endpoints.database_url_engine, application_name="test") as connection:
        if "LOCK TABLE" in statement:  # has no plan
            with connection.transaction(force_rollback=True):
                connection.execute(statement.encode())
            return
        connection.execute("PREPARE it AS " + re.sub(r"%\((\w+)\)s", numbered, statement).replace("%%", "%"))


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("a = :a AND b = :b_2", "a = %(a)s AND b = %(b_2)s"),
        ("x::int + :x::int", "x::int + %(x)s::int"),
        ("':a' || \":b\" || E'\\':c' || 'it''s :d'", "':a' || \":b\" || E'\\':c' || 'it''s :d'"),
        ("$$ :a $$ || $tag$ :b $$ $tag$ || :c", "$$ :a $$ || $tag$ :b $$ $tag$ || %(c)s"),
        ("f(x := :x)", "f(x := %(x)s)"),
        ("5 % 2 || '100%'", "5 %% 2 || '100%%'"),
        ("a -- :b, it's\n= :a /* :c ' */", "a  \n= %(a)s  "),
    ],
)
def test_a_colon_and_a_name_are_a_parameter_only_where_sql_has_none_of_its_own(written: str, sent: str) -> None:
    assert psycopg_form(written) == sent


def test_a_file_is_cut_at_its_names() -> None:
    text = "-- About this file.\n-- name: run_claim\n-- Why.\nSELECT :a;\n\n-- name: run_end\nSELECT 1;\n"

    assert parse_statements(text) == {"run_claim": b"/* run_claim */ SELECT %(a)s", "run_end": b"/* run_end */ SELECT 1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 1;\n-- name: run_end\nSELECT 1", "before the first"),
        ("-- name: claim\nSELECT 1", "noun_verb"),
        ("-- name: run_end\nSELECT 1\n-- name: run_end\nSELECT 2", "two statements"),
    ],
)
def test_a_file_that_is_not_as_agreed_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_statements(text)


def test_a_statement_runs_with_its_parameters_and_its_percent_signs(database) -> None:
    statement = parse_statements("-- name: sum_read\nSELECT :a::int % 10, ':b', '100%'")["sum_read"]

    with connect(database.api_url, application_name="test") as connection:
        assert connection.execute(statement, {"a": 42}).fetchone() == (2, ":b", "100%")
