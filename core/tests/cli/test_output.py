"""What the command line prints of values that other people wrote."""

from __future__ import annotations

import json

import pytest

from wsync_engine.cli.output import print_objects, table


def test_what_a_row_holds_can_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"record": {"name": "\x1b[2Jann\r\nother row\u202e", "city": "Köln"}}], ["record"])

    assert capsys.readouterr().out == "RECORD\nname=\\x1b[2Jann\\r\\nother row\\u202e city=Köln\n"


def test_numbers_that_json_does_not_have_are_told_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    print_objects([{"record": {"a": float("nan"), "b": [float("inf"), float("-inf"), 1.5]}}])

    def refused(name: str) -> None:
        raise AssertionError(name)

    shown = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert shown == {"record": {"a": "NaN", "b": ["Infinity", "-Infinity", 1.5]}}
