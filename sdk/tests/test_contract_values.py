"""The values of the contract: what they refuse, and that they survive a trip through bytes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel, ConfigDict

import wsync_sdk
from wsync_sdk import (
    ConfigError,
    Durable,
    Held,
    PluginError,
    Query,
    ReadPlan,
    Rejection,
    RowError,
    Secret,
    Split,
    batches_from_rows,
)


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid")
    password: Secret


def test_a_query_needs_exactly_one_of_sql_and_table() -> None:
    with pytest.raises(ValueError, match="either"):
        Query()
    with pytest.raises(ValueError, match="either"):
        Query(sql="SELECT 1", table="t")


@pytest.mark.parametrize("lifetime", [Held(), Durable(until=datetime(2030, 1, 1, tzinfo=UTC))])
def test_a_plan_survives_the_trip_through_bytes(lifetime: Held | Durable) -> None:
    plan = ReadPlan(
        schema=pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("tags", pa.list_(pa.string()))]),
        splits=(Split(index=0, token=b"\x00\xff", estimated_rows=7), Split(index=1, token=b"")),
        lifetime=lifetime,
        handle=b"pid 4711",
        connector_version="0.1.0",
        estimated_rows=7,
        warnings=("read through one split",),
    )

    assert ReadPlan.from_bytes(plan.to_bytes()) == plan


def test_a_secret_shows_itself_only_when_asked() -> None:
    login = Login.model_validate({"password": "hunter2"})

    assert "hunter2" not in repr(login) + str(login.password) + login.model_dump_json()
    assert login.password.reveal() == "hunter2"


def test_a_secret_is_resolved_at_each_use() -> None:
    answers = iter(["old", "new"])
    secret = Secret(lambda: next(answers))

    assert (secret.reveal(), secret.reveal()) == ("old", "new")


def test_rows_become_batches_of_the_schema() -> None:
    schema = pa.schema([("id", pa.int64()), ("name", pa.string())])

    batches = list(batches_from_rows(({"id": n} for n in range(5)), schema, batch_rows=2))

    assert [batch.num_rows for batch in batches] == [2, 2, 1]
    assert all(batch.schema == schema for batch in batches)


@pytest.mark.parametrize("row", [{"id": 1, "extra": 2}, {"id": "many"}])
def test_a_row_that_does_not_fit_the_schema_is_the_plugins_error(row: dict[str, object]) -> None:
    with pytest.raises(PluginError):
        list(batches_from_rows([row], pa.schema([("id", pa.int64())])))


@pytest.mark.parametrize(("text", "kept"), [
    ("plain: Zoë 日本", "plain: Zoë 日本"), ("a\0b", "a\ufffdb"), ("a\ud800", "a?"), ("x" * 5_000, "x" * 3_999 + "…"), (7, "7"),
], ids=["plain", "NUL", "surrogate", "long", "number"])  # fmt: skip
def test_what_no_database_stores_is_replaced_in_what_a_destination_said(text: Any, kept: str) -> None:
    error = RowError(text, code=text, next_step=text)
    rejection = Rejection(row=0, code=text, message=text)

    assert (error.message, str(error), error.code, error.next_step) == (kept,) * 4
    assert (rejection.code, rejection.message) == (kept, kept)


def test_a_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)


def test_the_contract_needs_nothing_of_the_conformance_kits_extra() -> None:
    program = "import sys, wsync_sdk; print({'pytest', 'psutil', 'wsync_sdk.testing'} & sys.modules.keys())"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_every_public_name_comes_from_one_module_at_its_first_use() -> None:
    assert sorted(wsync_sdk._HOME) == sorted(wsync_sdk.__all__)
    assert all(getattr(wsync_sdk, name) is not None for name in wsync_sdk.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Sorce'"):
        wsync_sdk.Sorce  # noqa: B018


def test_errors_and_secrets_load_no_arrow() -> None:
    code = "import sys; from wsync_sdk import AddressPolicy, ConfigError, Secret; sys.exit('pyarrow' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
