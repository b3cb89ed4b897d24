"""Mistakes in how a command was typed, in the words of all other errors."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from wsync_engine.model.refusal import PREFIXES, refusal_words

__all__ = ["Commands"]

UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Of the parser that typer uses: another one in each of its versions."""


class Commands(TyperGroup):
    """The commands, and what is said where one of them can't be read."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except UsageError as exc:
            if exc.message.startswith(PREFIXES):
                exc.message = refusal_words(exc.message)
            raise
