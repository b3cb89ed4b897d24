"""`wsync-engine`: the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from wsync_engine import __version__
from wsync_engine.cli import demo, files, installation, replays, roles
from wsync_engine.cli.caps import caps
from wsync_engine.cli.purges import purge
from wsync_engine.cli.runs import runs, syncs
from wsync_engine.cli.schedules import schedules
from wsync_engine.cli.usage import Commands
from wsync_engine.cli.workers import queues, workers

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    help="Keeps a subscriber store in step with a SQL query on a data warehouse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
demo.add_commands(app)
files.add_commands(app)
replays.add_commands(syncs)
app.add_typer(installation.plugins, name="plugins")
app.add_typer(installation.connections, name="connections")
app.add_typer(syncs, name="sync")
app.add_typer(runs, name="runs")
app.add_typer(schedules, name="schedules")
app.add_typer(workers, name="workers")
app.add_typer(queues, name="queues")
app.add_typer(caps, name="caps")
app.add_typer(purge, name="purge")
roles.add_commands(app)
app.add_typer(installation.db, name="db")
app.command("doctor")(installation.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"wsync-engine {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Keeps a subscriber store in step with a SQL query on a data warehouse."""


def main() -> None:
    """The console script."""
    app()
