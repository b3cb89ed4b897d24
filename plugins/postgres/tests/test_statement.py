"""Parameters in their place, whatever they hold and wherever they stand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsync_postgres.config import PostgresConfig
from wsync_postgres.driver import RowConnection, connect, literal
from wsync_postgres.problems import Problem, read_error
from wsync_postgres.statement import prepare
from wsync_sdk import ConfigError, ParameterValue, Secret, WsyncError

from .conftest import Server


def numbered(value: ParameterValue) -> str:
    return f"<{value}>"


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT :a", "SELECT <1>"),
        ("SELECT :a::int, x::text", "SELECT <1>::int, x::text"),
        ("SELECT ':a', :a", "SELECT ':a', <1>"),
        ("SELECT 'it''s :a', :a", "SELECT 'it''s :a', <1>"),
        (r"SELECT E'\' :a', :a", r"SELECT E'\' :a', <1>"),
        (r"SELECT '\', :a", r"SELECT '\', <1>"),
        ("SELECT E'x'\n'\\' :a', :a", "SELECT E'x'\n'\\' :a', <1>"),
        ("SELECT E'x' -- c\n'\\' :a', :a", "SELECT E'x' -- c\n'\\' :a', <1>"),
        ('SELECT ":a", :a', 'SELECT ":a", <1>'),
        ("SELECT $$ :a ' $$, :a", "SELECT $$ :a ' $$, <1>"),
        ("SELECT $x$ :a $$ ' $x$, :a", "SELECT $x$ :a $$ ' $x$, <1>"),
        ("SELECT a$b$ FROM t WHERE :a = ' $b$'", "SELECT a$b$ FROM t WHERE <1> = ' $b$'"),
        ("SELECT 1 -- :a '\n, :a", "SELECT 1 -- :a '\n, <1>"),
        ("SELECT /* :a /* ' */ :a */ :a", "SELECT /* :a /* ' */ :a */ <1>"),
        ("SELECT x[1:2], :a", "SELECT x[1:2], <1>"),
        ("SELECT U&'\\0061 :a', :a", "SELECT U&'\\0061 :a', <1>"),
        ("SELECT :a; -- the end\n", "SELECT <1>"),
        ("(SELECT :a)", "(SELECT <1>)"),
        ("-- first\nTABLE t WHERE :a", "-- first\nTABLE t WHERE <1>"),
    ],
)
def test_a_colon_is_a_parameter_only_outside_quotes_and_comments(sql: str, expected: str) -> None:
    assert prepare(sql, {"a": 1}, numbered).text == expected


@pytest.mark.parametrize(
    "sql",
    ["SELECT '", 'SELECT "', "SELECT $$ ", "SELECT /* /* */", "SELECT (", "SELECT )", "SELECT 1;;", "SELECT 1;SELECT 2", "SELECT '\0'"],
)
def test_a_query_that_is_not_one_whole_statement_is_refused(sql: str) -> None:
    with pytest.raises(ConfigError):
        prepare(sql, {}, numbered)


@pytest.mark.parametrize(("parameters", "name"), [({}, ":a"), ({"a": 1, "b": 2}, ":b")])
def test_missing_and_unknown_parameters_are_named(parameters: dict[str, ParameterValue], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        prepare("SELECT :a", parameters, numbered)


@given(st.text(alphabet="'\"$-/*\\\n;:() aE&U", max_size=40))
def test_any_text_is_scanned_or_refused_in_time(noise: str) -> None:
    try:
        prepared = prepare(f"SELECT {noise}", {"a": 1, "aE": 1, "E": 1, "U": 1}, numbered)
    except ConfigError:
        return
    assert prepared.text.startswith("SELECT")


@pytest.fixture(scope="module")
def connection(server: Server) -> Iterator[RowConnection]:
    opened = connect(PostgresConfig(url=Secret(server.url("postgres"))), name="test", settings={"TimeZone": "UTC"})
    yield opened
    opened.close()


def refused(problem: Problem) -> WsyncError:
    return read_error("test", problem)


def echo(connection: RowConnection, sql: str, value: ParameterValue) -> list[tuple[object, ...]]:
    return connection.rows(prepare(sql, {"v": value}, literal).text, translate=refused)


texts = st.text(max_size=60) | st.text(alphabet="'\"\\$;-:%{}\n\x01é😀", max_size=60)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=texts)
def test_any_text_comes_back_equal(connection: RowConnection, value: str) -> None:
    if "\0" in value:
        with pytest.raises(ConfigError):
            literal(value)
        return

    assert echo(connection, "SELECT :v, 'after', :v::text || ''", value) == [(value, "after", value)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.none()
    | st.booleans()
    | st.integers(min_value=-(2**100), max_value=2**100)
    | st.floats(allow_nan=False)
    | st.decimals(allow_infinity=False, allow_nan=False, places=5)
    | st.binary(max_size=40)
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC))
    | st.uuids()
)
def test_any_value_comes_back_equal(connection: RowConnection, value: ParameterValue) -> None:
    assert echo(connection, "SELECT :v", value) == [(value,)]


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (True, "boolean"),
        (5, "integer"),
        (-(2**31) - 1, "bigint"),
        (2**63, "numeric"),
        (1.5, "double precision"),
        (Decimal("1.5"), "numeric"),
        ("x", "text"),
        (b"x", "bytea"),
        (date(2026, 1, 1), "date"),
        (time(1, 2), "time without time zone"),
        (time(1, 2, tzinfo=UTC), "time with time zone"),
        (datetime(2026, 1, 1), "timestamp without time zone"),  # noqa: DTZ001 - without zone is meant
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))), "timestamp with time zone"),
        (UUID(int=1), "uuid"),
    ],
)
def test_a_value_has_its_type(connection: RowConnection, value: ParameterValue, type_name: str) -> None:
    assert echo(connection, "SELECT pg_typeof(:v)::text", value) == [(type_name,)]


def test_numbers_that_are_none_keep_their_meaning(connection: RowConnection) -> None:
    assert math.isnan(echo(connection, "SELECT :v", float("nan"))[0][0])  # type: ignore[arg-type]
    assert echo(connection, "SELECT :v", float("-inf")) == [(-math.inf,)]
    assert echo(connection, "SELECT :v::text", Decimal("NaN")) == [("NaN",)]


def test_a_negative_number_does_not_open_a_comment(connection: RowConnection) -> None:
    assert echo(connection, "SELECT 5 -:v", -3) == [(8,)]


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ConfigError):
        literal("\ud800")


@pytest.mark.parametrize("value", ["x'; DROP TABLE t; --", "\\'; DROP TABLE t; --", "$$; DROP TABLE t; --"])
def test_an_injection_is_only_text(connection: RowConnection, value: str) -> None:
    assert echo(connection, "SELECT :v", value) == [(value,)]


def test_the_scanner_agrees_with_the_server_on_what_a_string_is(server: Server) -> None:
    sql = "SELECT E'a\\'b' \n 'c\\'d', $q$:x$q$, \"y\" FROM (SELECT 1 AS \"y\") AS s /* ; ' */"

    with psycopg.connect(server.url("postgres")) as plain:
        assert plain.execute(prepare(sql, {}, literal).text.encode()).fetchall() == [("a'bc'd", ":x", 1)]
