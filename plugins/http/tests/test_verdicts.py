"""From items in a reply to verdicts: each row has one, and none is accepted that the reply does not account for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsync_http.config import Results
from wsync_http.pointer import MISSING, at, parsed
from wsync_http.verdicts import Unreadable, verdicts

BY_PLACE = Results.model_validate({"items": "", "refused": {"at": "/error"}, "code": "/error"})
BY_INDEX = Results.model_validate({"items": "", "index": "/at", "first_index": 1, "refused": {"at": "/error"}})
ERRORS = Results.model_validate({"items": "", "lists": "errors", "index": "/at"})


def read(items: Any, results: Results, rows: int = 3) -> tuple[list[int], list[int]]:
    """(refused, unknown)"""
    found = verdicts(json.dumps(items).encode(), results, rows)
    return sorted(found.refused), sorted(found.unknown)


@pytest.mark.parametrize(
    ("items", "results", "refused", "unknown"),
    [
        ([{}, {"error": "x"}, {"error": None}], BY_PLACE, [1], []),
        ([{}, {"error": "x"}], BY_PLACE, [1], [2]),
        ([], BY_PLACE, [], [0, 1, 2]),
        ([{}, {}, {}, {"error": "x"}], BY_PLACE, [], []),
        ([{"at": 3, "error": "x"}, {"at": 1}, {"at": 2}], BY_INDEX, [2], []),
        ([{"at": 1}, {"at": 9}, {"error": "x"}], BY_INDEX, [], [1, 2]),
        ([{"at": 1}, {"at": 1, "error": "x"}, {"at": 2}, {"at": 3}], BY_INDEX, [], [0]),
        ([{"at": 1, "error": "x"}, {"at": 1, "error": "y"}, {"at": 2}, {"at": 3}], BY_INDEX, [0], []),
        ([{"at": True}, {"at": 2}, {"at": 3}], BY_INDEX, [], [0]),
        (["no", 1, None], BY_INDEX, [], [0, 1, 2]),
        ([], ERRORS, [], []),
        ([{"at": 1}], ERRORS, [1], []),
        ([{"at": 1}, {"at": "?"}], ERRORS, [1], [0, 2]),
        ([{"at": -1}], ERRORS, [], [0, 1, 2]),
    ],
)
def test_items_become_verdicts(items: list[Any], results: Results, refused: list[int], unknown: list[int]) -> None:
    assert read(items, results) == (refused, unknown)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["at", "error", "x"]), inner, max_size=3),
)


@given(document=json_values, results=st.sampled_from([BY_PLACE, BY_INDEX, ERRORS]), rows=st.integers(1, 4))
def test_whatever_comes_the_verdicts_add_up(document: Any, results: Results, rows: int) -> None:
    try:
        found = verdicts(json.dumps(document).encode(), results, rows)
    except Unreadable:
        return

    assert not found.refused.keys() & found.unknown
    assert (found.refused.keys() | found.unknown) <= set(range(rows))


def test_true_is_not_one() -> None:
    results = Results.model_validate({"items": "", "accepted": {"at": "", "values": [1]}})

    assert read([1, True, 1.0], results) == ([1], [])


RFC_6901 = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", RFC_6901),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
        ("/foo/2", MISSING),
        ("/foo/00", MISSING),
        ("/foo/-", MISSING),
        ("/foo/-1", MISSING),
        ("/a~1b/x", MISSING),
    ],
)
def test_pointers_are_those_of_rfc_6901(pointer: str, value: Any) -> None:
    assert at(RFC_6901, parsed(pointer)) == value  # type: ignore[arg-type]
