"""Any history of changes, each sent once or several times, leaves the workspace as the last rows say; the double applies what the sink's records ask for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from wsync_sdk import Target, before_type
from wsync_sdk.records import is_marked
from wsync_suprsend.config import NullChannels, OnDelete
from wsync_suprsend.double import Workspace
from wsync_suprsend.fields import layout_of
from wsync_suprsend.records import Template, rendered, stamped

from .conftest import batch_of

SCHEMA = pa.schema([("id", pa.string()), ("$email", pa.list_(pa.string())), ("tags", pa.list_(pa.string())), ("n", pa.int64())])
BEFORE = before_type(["$email"])
TARGET = Target(stream="profiles", key=("id",), schema=SCHEMA)
REMOVING = Template(environment="acme-live", tenant_id=None, on_delete=OnDelete.REMOVE_ADDRESSES, null_channels=NullChannels.REMOVE)
UNSETTING = Template(environment="acme-live", tenant_id=None, on_delete=OnDelete.UNSET_CHANNELS, null_channels=NullChannels.UNSET)
Row = dict[str, Any]

ADDRESSES = st.none() | st.lists(st.sampled_from(["a@x.y", "b@x.y", "c@x.y"]), unique=True, max_size=3)
ROWS = st.fixed_dictionaries({"$email": ADDRESSES, "tags": st.none() | st.lists(st.sampled_from("pq")), "n": st.none() | st.integers(0, 9)})
STEPS = st.lists(st.tuples(st.dictionaries(st.sampled_from(["1", "2", "ü"]), st.none() | ROWS, min_size=1), st.integers(1, 3)), max_size=6)


def send(workspace: Workspace, rows: list[Row], times: int, template: Template, before: pa.DataType | None) -> None:
    """One chunk, which arrives so often."""
    records = rendered(batch_of(rows, SCHEMA, before), layout_of(TARGET), template)
    sent = np.flatnonzero(~is_marked(records))
    for attempt in range(times if len(sent) else 0):
        body = stamped(records.take(pa.array(sent)), sent, chunk_key="k", now_ms=1_700_000_000_000 + attempt)
        headers = {"authorization": f"Bearer {workspace.api_key}", "content-type": "application/json; charset=utf-8"}
        answer = workspace.answer("POST", "/event/", headers, body)
        assert answer.status == 202, answer.body


def known(row: Row | None) -> Row | None:
    """What the engine gives as before-values: the field's value as JSON text."""
    return None if row is None else {"$email": [] if row["$email"] is None else [json.dumps(row["$email"])]}


def properties_of(row: Row) -> Row:
    return {name: row[name] for name in ("tags", "n") if row[name] is not None}


@given(steps=STEPS)
def test_with_old_values_users_are_what_the_last_rows_say(steps: list[tuple[dict[str, Row | None], int]]) -> None:
    workspace = Workspace()
    acked: dict[str, Row] = {}
    for changes, times in steps:
        rows = [{"id": one, **(row or {"op": "delete"}), "before": known(acked.get(one))} for one, row in sorted(changes.items())]

        send(workspace, rows, times, REMOVING, BEFORE)

        acked = {**acked, **{one: row for one, row in changes.items() if row is not None}}
        acked = {one: row for one, row in acked.items() if changes.get(one, row) is not None}

    for one, row in acked.items():
        assert workspace.users[one].properties == properties_of(row)
        assert set(workspace.users[one].channels.get("$email", [])) == set(row["$email"] or [])
    assert all(not user.channels.get("$email") for one, user in workspace.users.items() if one not in acked)


@given(steps=STEPS)
def test_without_old_values_no_address_of_the_last_rows_is_missing(steps: list[tuple[dict[str, Row | None], int]]) -> None:
    workspace = Workspace()
    last: dict[str, Row | None] = {}
    for changes, times in steps:
        send(workspace, [{"id": one, **(row or {"op": "delete"})} for one, row in sorted(changes.items())], times, UNSETTING, None)
        last |= changes

    for one, row in last.items():
        found = workspace.users[one].channels.get("$email", []) if one in workspace.users else []
        assert set(found) >= set((row or {}).get("$email") or [])
        assert found or not (row and row["$email"])
        if not (row and row["$email"]):
            assert found == [], "a NULL, an empty list and a delete leave none"
    assert json.dumps(workspace.records, default=str).count("$add") == 0
