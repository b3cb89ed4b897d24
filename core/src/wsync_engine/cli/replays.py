"""`sync replay`."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

from typing import Annotated

import typer

from wsync_engine.cli.arguments import Json, Tenant, instant
from wsync_engine.cli.boundary import reported
from wsync_engine.cli.output import print_objects, say
from wsync_engine.cli.runs import exit_by, show_ended, tell_if_nobody_works, watched

__all__ = ["add_commands"]


def add_commands(syncs: typer.Typer) -> None:
    """Add `replay` to `sync`."""
    syncs.command()(replay)


@reported
def replay(
    name: Annotated[str, typer.Argument(help="A sync.")],
    *,
    run: Annotated[list[str] | None, typer.Option("--run", metavar="RUN", help="A run of it; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="All runs that ended since then.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="With --since: and before this.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="CONNECTION", help="To another sink; nothing is taken as delivered for it.")
    ] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="With --to: its stream; default: named as the sync's.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended, or waits for a decision.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Up to the change log: nothing is sent.")] = False,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Send again what former runs sent, of each key the last change: to a sink that was restored from a backup, or to another one."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.replay import Choice, replay_sync
    from wsync_engine.services.runs import find_run
    from wsync_engine.storage import LocalStorage

    with open_session(tenant) as session:
        ids = (session.api, session.tenant_id)
        choice = Choice(
            run_ids=[find_run(*ids, one) for one in run or ()],
            since=None if since is None else instant(since, "--since"),
            until=None if until is None else instant(until, "--until"),
            to=to,
            stream=stream,
        )
        storage = LocalStorage.of_url(session.settings.storage, tenant_id=str(session.tenant_id))
        made = replay_sync(*ids, name, choice, storage=storage, actor=actor(), dry_run=dry_run, index=session.index)
        say(f"{len(made.run_ids)} runs are replayed, the oldest first")
        tell_if_nobody_works(session)
        if wait:
            ended = watched(session, made.triggered.run_id)
            show_ended(ended, as_json)
            exit_by(ended)
            return
    if as_json:
        print_objects([{"run_id": made.triggered.run_id, "replays": list(made.run_ids)}])
    else:
        typer.echo(made.triggered.run_id)
