"""`purge tenant|key`: what is removed for good."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from wsync_engine.cli.arguments import Json, Keys, Tenant
from wsync_engine.cli.boundary import reported
from wsync_engine.cli.output import print_objects, say
from wsync_sdk.errors import ConfigError

if TYPE_CHECKING:
    from wsync_engine.cli.session import Session

__all__ = ["purge"]

purge = typer.Typer(help="Remove for good what is kept of a tenant, or of a subscriber.", no_args_is_help=True)
RUNS_END_S = 60.0
POLL_S = 0.5


@purge.command("tenant")
@reported
def purge_tenant(
    name: Annotated[str, typer.Argument(help="A tenant.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="I mean it: nothing of it can be brought back.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End its open runs first.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a tenant: rows, history, events, files, secrets. What it delivered stays at its destinations."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services import purge as service
    from wsync_engine.state.database import connect

    if not yes:
        raise ConfigError(f"all of tenant `{name}` would be removed for good", next_step="add --yes if you mean it")
    with open_session(name) as session:
        _end(session, cancels=cancel)
        with connect(session.urls.engine, application_name="wsync purge") as engine:
            done = service.purge_tenant(engine, session.tenant_id, storage_url=session.settings.storage, actor=actor())
    if as_json:
        print_objects([{"tenant": name, **asdict(done)}])
        return
    say(
        f"removed of {name}: {done.runs} runs, {done.rejections} rejections, {done.events} events, {done.schedules} schedules,"
        f" {done.syncs} syncs, {done.connections} connections with their secrets, {done.files} files"
    )
    say("what it delivered stays at its destinations; secret files and backups are yours to remove; one event says who purged it, and when")


@purge.command("key")
@reported
def purge_key(
    name: Annotated[str, typer.Argument(help="A sync.")],
    *,
    key: Keys = None,
    yes: Annotated[bool, typer.Option("--yes", help="I mean it: nothing of it can be brought back.")] = False,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Remove what is kept of a subscriber in one sync: snapshot, change logs, rejections. The destination's row is not touched."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.key_purge import purge_keys
    from wsync_engine.state.database import connect
    from wsync_engine.storage import LocalStorage

    if not key:
        raise ConfigError("whose traces are to be removed?", next_step="give --key VALUE")
    if not yes:
        raise ConfigError(f"what is kept of {len(key)} keys would be removed for good", next_step="add --yes if you mean it")
    with open_session(tenant) as session:
        storage = LocalStorage.of_url(session.settings.storage, tenant_id=str(session.tenant_id))
        with connect(session.urls.engine, application_name="wsync purge") as engine:
            done = purge_keys(engine, session.tenant_id, name, key, storage=storage, keyring=session.keyring, actor=actor())
    if as_json:
        print_objects([{"sync": name, **asdict(done)}])
        return
    say(
        f"removed of {name}: {done.entries} entries of the snapshot, {done.carried_rows} rows that waited to be offered again,"
        f" {done.changes} changes in logs, {done.rejections} rejections"
    )
    say("the destination's row is not touched; a key that is still in the result is sent again by the next run that reads it")


def _end(session: Session, *, cancels: bool) -> None:
    """Until its runs have ended, for a minute at most."""
    from wsync_engine.cli.session import actor
    from wsync_engine.services.purge import RunsOpen, end_tenant

    give_up_at_s = time.monotonic() + RUNS_END_S
    while True:
        try:
            end_tenant(session.api, session.tenant_id, actor=actor(), cancels=cancels, index=session.index)
            return
        except RunsOpen:
            if time.monotonic() > give_up_at_s:
                raise
        time.sleep(POLL_S)
