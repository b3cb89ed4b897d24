"""Where every error ends: two lines on stderr, or an object with `--json`, and an exit code; never a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, ParamSpec

import typer

from wsync_engine.cli.output import print_error, say

if TYPE_CHECKING:
    from wsync_sdk.errors import WsyncError

__all__ = ["Exit", "reported"]

P = ParamSpec("P")


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CHANGES = 3
    GUARD = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Put a command behind the boundary."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        tell = print_error if kwargs.get("as_json") else _say
        try:
            command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(Exit.INTERRUPTED) from None
        except Exception as exc:
            raise typer.Exit(_told(exc, tell)) from None

    return run


def _told(exc: Exception, tell: Callable[[WsyncError], None]) -> Exit:
    # Only now: an error means that a command ran, and has imported these anyway.
    import psycopg  # noqa: PLC0415

    from wsync_sdk.errors import ConfigError, FatalError, RetryableError, WsyncError  # noqa: PLC0415

    if isinstance(exc, WsyncError):
        tell(exc)
        if isinstance(exc, ConfigError):
            return Exit.USAGE
        return Exit.UNREACHABLE if isinstance(exc, RetryableError) else Exit.FAILED
    if isinstance(exc, psycopg.errors.LockNotAvailable):
        tell(RetryableError("someone else is changing the same thing", next_step="run the command again"))
        return Exit.FAILED
    if isinstance(exc, psycopg.OperationalError):
        tell(RetryableError("the state store went away", next_step="run the command again when Postgres is back"))
        return Exit.UNREACHABLE
    # A foreign exception's text may hold a row's values or a secret.
    tell(FatalError(f"unexpected {type(exc).__name__}", next_step="report this, with the command and the version"))
    return Exit.FAILED


def _say(exc: WsyncError) -> None:
    say(f"error: {exc.message}")
    say(f"next: {exc.next_step}")
