"""How long a reply asks to wait, and what may be shown of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from wsync_sdk.http import retry_after_s
from wsync_sdk.records import values_in, without

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "99999999999999"}, 86_400.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=30), usegmt=True)}, 30.0),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=30), usegmt=True)}, 0.0),
        ({"retry-after": "Friday, 20-Nov-26 12:00:09 GMT"}, 9.0),
        ({"retry-after": "Fri Nov 20 12:00:09 2026"}, 9.0),
        (
            {
                "retry-after": format_datetime(NOW + timedelta(days=2, seconds=5), usegmt=True),
                "date": format_datetime(NOW + timedelta(days=2), usegmt=True),
            },
            5.0,
        ),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(headers: dict[str, str], expected_s: float | None) -> None:
    assert retry_after_s(headers, NOW) == expected_s


@pytest.mark.parametrize(
    ("message", "values", "shown"),
    [
        ("row 1 of 11", ["1"], "row *** of 11"),
        ("NAME 4711 of name 4711", ["Name 4711"], "*** of ***"),
        ("ab and abcde", ["abcd", "abcde"], "ab and ***"),
        ("nothing of it", ["", " "], "nothing of it"),
    ],
)
def test_a_message_goes_on_without_the_values_it_quotes(message: str, values: list[str], shown: str) -> None:
    assert without(message, values) == shown


def test_every_value_of_a_document_is_one_that_a_message_may_quote() -> None:
    assert values_in('{"a": [1.50, {"b": "x"}], "c": null, "d": true, "e": 10000000000000000000000}') == [
        "1.50",
        "x",
        "10000000000000000000000",
    ]
