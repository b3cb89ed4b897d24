"""Mistakes in how a command was typed, in the words of all other errors, and with `--json` as an object like these."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from wsync_engine.cli.output import print_error
from wsync_engine.model.refusal import PREFIXES, Misplaced, refusal_words

__all__ = ["Commands"]

UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Of the parser that typer uses: another one in each of its versions."""
_JSON = "wsync_engine.json"


class Commands(TyperGroup):
    """The commands, and what is said where one of them can't be read."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """What is known of the words that were typed, before a command is chosen."""
        is_json = "--json" in args
        context: Any = super().make_context(info_name, args, parent, **extra)
        context.meta[_JSON] = is_json
        return context

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except UsageError as exc:
            if exc.message.startswith(PREFIXES):
                exc.message = refusal_words(exc.message)
            if not ctx.meta[_JSON]:
                raise
            print_error(_as_error(exc))
            raise typer.Exit(exc.exit_code) from None


def _as_error(exc: Any) -> Misplaced:
    option = getattr(exc, "param", None)
    where = exc.ctx.command_path if option is None else option.opts[-1]
    what = refusal_words((exc.message or exc.format_message()).removesuffix("."))
    return Misplaced(where, what, next_step=f"see `{exc.ctx.command_path} --help`")
