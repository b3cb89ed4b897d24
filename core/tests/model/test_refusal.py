from __future__ import annotations

import pytest

from wsync_engine.model.refusal import refusal_words


@pytest.mark.parametrize(("message", "words"), [
    ("Value error, write a status like 200", "write a status like 200"),
    ("Assertion failed, Too many", "too many"),
    ("Input should be a valid number", "input should be a valid number"),
    ("", ""),
])  # fmt: skip
def test_a_refusal_names_no_machinery(message: str, words: str) -> None:
    assert refusal_words(message) == words
