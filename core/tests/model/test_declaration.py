from __future__ import annotations

import json
from dataclasses import replace

import pytest

from wsync_engine.model.declaration import sync_spec_from_json, sync_spec_to_json
from wsync_engine.model.sync import Duplicates, Guards, MappingEntry, Mode, SyncSpec
from wsync_sdk.errors import StateError
from wsync_sdk.nulls import Nulls

SPEC = SyncSpec(
    name="customers",
    source="warehouse",
    sink="crm",
    query="SELECT id, email FROM customers WHERE plan = :plan",
    key=("id",),
    stream="profiles",
    mode=Mode.MIRROR,
    parameters={"plan": "pro"},
    mapping=(MappingEntry(target="id", column="id", required=True), MappingEntry(target="kind", constant=1.5)),
    duplicates=Duplicates(rule="last", by="email"),
    guards=Guards(max_deletes=7, allow_empty=True),
)


def test_a_sync_comes_back_from_json_as_it_was() -> None:
    assert sync_spec_from_json(json.loads(json.dumps(sync_spec_to_json(SPEC)))) == SPEC


def test_a_list_of_columns_comes_back_and_is_not_there_for_engines_that_know_none() -> None:
    listed = replace(SPEC, mapping=(*SPEC.mapping, MappingEntry(target="emails", columns=("a", "b"))))

    stored = json.loads(json.dumps(sync_spec_to_json(listed)))

    assert sync_spec_from_json(stored) == listed
    assert [sorted(entry) for entry in stored["mapping"]] == [
        ["cast", "column", "constant", "required", "target"],
        ["cast", "column", "constant", "required", "target"],
        ["cast", "column", "columns", "constant", "required", "target"],
    ]


def test_what_is_asked_of_nulls_comes_back_and_is_not_there_for_engines_that_know_nothing_of_it() -> None:
    asked = replace(SPEC, nulls=Nulls.OMIT, mapping=(MappingEntry(target="id", column="id", nulls=Nulls.SEND),))

    stored = json.loads(json.dumps(sync_spec_to_json(asked)))

    assert (stored["nulls"], stored["mapping"][0]["nulls"]) == ("omit", "send")
    assert sync_spec_from_json(stored) == asked
    assert "nulls" not in sync_spec_to_json(SPEC)


def test_an_allowed_schema_change_comes_back_and_is_not_there_for_engines_that_know_no_such_guard() -> None:
    allowed = replace(SPEC, guards=Guards(allow_schema_change=True))

    assert sync_spec_from_json(json.loads(json.dumps(sync_spec_to_json(allowed)))) == allowed
    assert "allow_schema_change" not in sync_spec_to_json(SPEC)["guards"]


def test_a_sync_stored_with_fewer_fields_gets_their_defaults() -> None:
    stored = {"name": "a", "source": "s", "sink": "t", "query": "SELECT 1", "key": ["id"], "stream": "x", "mode": "upsert"}

    assert sync_spec_from_json(stored).guards == Guards()


def test_a_stored_sync_that_is_none_is_refused() -> None:
    with pytest.raises(StateError):
        sync_spec_from_json({"name": "a"})


def test_a_mode_that_only_a_newer_engine_knows_is_no_sync_that_this_one_executes() -> None:
    stored = {**sync_spec_to_json(SPEC), "mode": "of_a_later_engine"}

    with pytest.raises(StateError, match="can't be read by this engine") as caught:
        sync_spec_from_json(stored)

    assert "upgrade" in caught.value.next_step


@pytest.mark.parametrize("mode", list(Mode))
def test_each_mode_comes_back_from_json(mode: Mode) -> None:
    spec = replace(SPEC, mode=mode)

    assert sync_spec_from_json(json.loads(json.dumps(sync_spec_to_json(spec)))) == spec
