"""`workers list|drain` and `queues list|add`: the operator's."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsync_engine.cli.arguments import Json
from wsync_engine.cli.boundary import reported
from wsync_engine.cli.output import print_objects, say, table
from wsync_sdk.errors import ConfigError

if TYPE_CHECKING:
    import psycopg

__all__ = ["queues", "workers"]

workers = typer.Typer(help="Who executes runs.", no_args_is_help=True)
queues = typer.Typer(help="Which workers serve which syncs.", no_args_is_help=True)


@contextmanager
def _engine() -> Iterator[psycopg.Connection[Any]]:
    from wsync_engine.cli.session import urls_of
    from wsync_engine.settings import Settings
    from wsync_engine.state.database import check_schema, connect

    with urls_of(Settings.read()) as urls:
        check_schema(urls.engine)
        with connect(urls.engine, application_name="wsync operator") as conn:
            yield conn


@workers.command("list")
@reported
def list_workers(as_json: Json = False) -> None:
    """Workers, the newest first, with what they do."""
    from wsync_engine.services import workers as service

    with _engine() as conn:
        rows = service.list_workers(conn)
    if as_json:
        print_objects(rows)
    else:
        table(rows, ("worker_id", "host", "pid", "version", "state", "slots", "running", "queues", "heartbeat_at", "refusal"))


@workers.command()
@reported
def drain(
    worker: Annotated[str | None, typer.Argument(metavar="WORKER", help="Its id, or enough of its first or last digits.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Let a worker finish what it executes, take nothing more, and end."""
    from wsync_engine.services import workers as service

    if (worker is None) != everyone:
        raise ConfigError("which worker?", next_step="name one, or give --all")
    with _engine() as conn:
        drained = service.drain_workers(conn, worker)
    for worker_id in drained:
        say(f"{worker_id}: asked to drain; it heeds that with its next heartbeat")


@queues.command("list")
@reported
def list_queues(as_json: Json = False) -> None:
    """Queues, and how many syncs and workers each has."""
    from wsync_engine.services import workers as service

    with _engine() as conn:
        rows = service.list_queues(conn)
    if as_json:
        print_objects(rows)
    else:
        table(rows, ("name", "syncs", "workers"))


@queues.command()
@reported
def add(name: Annotated[str, typer.Argument(help="For a region, a customer …")]) -> None:
    """Make a queue that syncs can name and workers can serve."""
    from wsync_engine.services import workers as service

    with _engine() as conn:
        service.add_queue(conn, name)
    say(f"queue {name} is there; start workers for it: `wsync-engine worker --queue {name}`")
