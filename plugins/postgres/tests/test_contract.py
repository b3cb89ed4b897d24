"""The Postgres source and sink keep the contract of every connector, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from wsync_sdk.testing import SourceContract, TransactionalSinkContract

from .conftest import Database
from .harnesses import PostgresSinkHarness, PostgresSourceHarness
from .proxy import Proxy


class TestPostgresSource(SourceContract):
    @pytest.fixture
    def harness(self, database: Database) -> PostgresSourceHarness:
        return PostgresSourceHarness(database)


class TestPostgresSink(TransactionalSinkContract):
    @pytest.fixture
    def harness(self, database: Database) -> Iterator[PostgresSinkHarness]:
        with Proxy(database.server.port) as proxy:
            yield PostgresSinkHarness(database, proxy)


def test_the_harness_sees_what_the_server_runs(database: Database) -> None:
    harness = PostgresSourceHarness(database)
    query = harness.load(pa.table({"id": pa.array([1], pa.int64())}))
    before = harness.executions()

    with harness.source() as source:
        source.preview(query, 1)

    assert harness.executions() == before + 1
