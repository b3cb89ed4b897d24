"""The sink's sessions, what it offers, and what a check finds."""

from __future__ import annotations

import json

import pytest

from wsync_postgres.config import PostgresConfig
from wsync_postgres.sink import PostgresSink
from wsync_sdk import ConfigError, RetryableError, Secret

from .chunks import RUN, TARGET, chunk
from .conftest import Database


def test_a_session_that_was_ended_is_replaced(sink: PostgresSink, database: Database) -> None:
    token = sink.begin(RUN, TARGET)
    sink.write(chunk([{"id": 1, "name": "a"}]), token)
    database.admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}' AND pid <> pg_backend_pid()")

    with pytest.raises(RetryableError):
        sink.write(chunk([{"id": 2, "name": "b"}], first=1), token)

    assert sink.write(chunk([{"id": 2, "name": "b"}], first=1), token).accepted_rows == 1


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
