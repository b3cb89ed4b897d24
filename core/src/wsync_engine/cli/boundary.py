"""Where every error ends: two lines on stderr and an exit code, never a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec

import typer

from wsync_engine.cli.output import say

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
        try:
            command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(Exit.INTERRUPTED) from None
        except Exception as exc:
            raise typer.Exit(_told(exc)) from None

    return run


def _told(exc: Exception) -> Exit:
    # Only now: an error means that a command ran, and has imported these anyway.
    import psycopg  # noqa: PLC0415

    from wsync_sdk.errors import ConfigError, RetryableError, WsyncError  # noqa: PLC0415

    if isinstance(exc, WsyncError):
        _say(exc.message, exc.next_step)
        if isinstance(exc, ConfigError):
            return Exit.USAGE
        return Exit.UNREACHABLE if isinstance(exc, RetryableError) else Exit.FAILED
    if isinstance(exc, psycopg.errors.LockNotAvailable):
        _say("someone else is changing the same thing", "run the command again")
        return Exit.FAILED
    if isinstance(exc, psycopg.OperationalError):
        _say("the state store went away", "run the command again when Postgres is back")
        return Exit.UNREACHABLE
    # A foreign exception's text may hold a row's values or a secret.
    _say(f"unexpected {type(exc).__name__}", "report this, with the command and the version")
    return Exit.FAILED


def _say(message: str, next_step: str) -> None:
    say(f"error: {message}")
    say(f"next: {next_step}")
