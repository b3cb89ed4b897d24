"""What pydantic says of a value that it refuses, in our words: what a person reads names no machinery."""

from __future__ import annotations

__all__ = ["PREFIXES", "refusal_words"]

PREFIXES = ("Value error, ", "Assertion failed, ")


def refusal_words(message: str) -> str:
    """The message without the prefix that pydantic puts before what a validator raised, beginning in lower case."""
    for prefix in PREFIXES:
        message = message.removeprefix(prefix)
    return message[:1].lower() + message[1:]
