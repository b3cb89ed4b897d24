"""`demo`: the main job on this machine, from nothing, in under a minute."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

import typer

from wsync_engine.cli.boundary import reported
from wsync_engine.cli.output import say

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Register it."""
    app.command("demo")(demo)


@reported
def demo() -> None:
    """Load a warehouse, sync it on a schedule, change it, and compare the store row by row; needs nothing, leaves nothing."""
    from wsync_engine.demo import run_demo
    from wsync_engine.telemetry import log_to_stderr

    log_to_stderr()
    run_demo(say)
