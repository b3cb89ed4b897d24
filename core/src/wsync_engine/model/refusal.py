"""What is wrong with something that a person wrote, and where it stands: in our words, none of the machinery's."""

from __future__ import annotations

from collections.abc import Sequence

from wsync_sdk.errors import ConfigError

__all__ = ["PREFIXES", "Misplaced", "refusal_words"]

PREFIXES = ("Value error, ", "Assertion failed, ")


def refusal_words(message: str) -> str:
    """The message without the prefix that pydantic puts before what a validator raised, beginning in lower case."""
    for prefix in PREFIXES:
        message = message.removeprefix(prefix)
    return message[:1].lower() + message[1:]


class Misplaced(ConfigError):
    """A mistake in what somebody wrote, with its place.

    :param where: the file and line, the path in it, or both. :param what: without the place; the message has both.
    :param mistakes: each of them, where this stands for several.
    """

    def __init__(self, where: str, what: str, *, next_step: str, mistakes: Sequence[Misplaced] = ()) -> None:
        lines = [f"{one.message}; next: {one.next_step}" for one in mistakes]
        super().__init__("\n".join(lines) or f"{where}: {what}", next_step=next_step)
        self.where = where
        self.what = what
        self.mistakes = tuple(mistakes)
