"""`plugins list`, `connections test`, `db upgrade` and `doctor`."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wsync_engine.cli.boundary import Exit, reported
from wsync_engine.cli.output import print_objects, say, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsync_sdk.source import Finding

__all__ = ["connections", "db", "doctor", "plugins"]

plugins = typer.Typer(help="Installed sources and sinks.", no_args_is_help=True)
connections = typer.Typer(help="Configured sources and sinks.", no_args_is_help=True)
db = typer.Typer(help="The state store.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Default: the tenant of ./wsync.yaml.")]


@plugins.command("list")
@reported
def list_plugins(as_json: Json = False) -> None:
    """Every installed plugin, and why one is left out."""
    from wsync_engine.cli.session import load_plugins
    from wsync_engine.settings import Settings

    rows = [
        {
            "distribution": report.distribution,
            "version": report.version,
            "sources": list(report.sources),
            "sinks": list(report.sinks),
            "ok": report.ok,
            "reason": report.reason,
            "next_step": report.next_step,
        }
        for report in load_plugins(Settings.read()).reports
    ]
    if as_json:
        print_objects(rows)
    else:
        table(rows, ("distribution", "version", "sources", "sinks", "ok", "reason", "next_step"))


@connections.command("test")
@reported
def check(name: Annotated[str, typer.Argument(help="A connection.")], tenant: Tenant = None, as_json: Json = False) -> None:
    """Connect, and say what works and what a person must fix. Runs that wait because the destination failed may go where it is found well."""
    from wsync_engine.cli.session import address_policy, open_session
    from wsync_engine.services.connections import check_connection

    with open_session(tenant) as session:
        network = address_policy(session.settings)
        checked = check_connection(
            session.api,
            session.tenant_id,
            name,
            host=session.host,
            keyring=session.keyring,
            network=network,
            folders=session.folders,
            index=session.index,
        )
    rows = [
        {"role": one.role, "check": finding.name, "ok": finding.ok, "message": finding.message, "next_step": finding.next_step}
        for one in checked
        for finding in one.report.findings
    ]
    if as_json:
        print_objects(rows)
    else:
        table(rows, ("role", "check", "ok", "message", "next_step"))
    if not all(one.report.ok for one in checked):
        raise typer.Exit(Exit.FAILED)


@db.command("upgrade")
@reported
def upgrade() -> None:
    """Bring the state store's schema to this engine's version; does nothing when it is there."""
    from wsync_engine.cli.session import urls_of
    from wsync_engine.settings import Settings
    from wsync_engine.state import database

    with urls_of(Settings.read()) as urls:
        database.upgrade(urls.owner)
        database.check_schema(urls.api)
    say("the schema is up to date")


@reported
def doctor(
    sync: Annotated[
        str | None, typer.Argument(help="Look at this sync too: connections, query, mapping, snapshot, schedule, last run.")
    ] = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Look at everything, and say what a person must fix; changes nothing. Exits with 1 if something is wrong."""
    from wsync_engine.cli.session import address_policy, keyring_of, load_plugins, log_to_errors, tenant_name_of, urls_of
    from wsync_engine.index.connection import connect as connect_index
    from wsync_engine.index.due_index import Index
    from wsync_engine.secrets.references import tenant_folders
    from wsync_engine.services.doctor import Installation, examine_installation, examine_sync
    from wsync_engine.settings import Settings
    from wsync_engine.state.database import connect
    from wsync_engine.state.tenants import tenant_named

    log_to_errors()
    settings = Settings.read()
    with urls_of(settings) as urls:
        installation = Installation(
            engine_url=urls.engine,
            api_url=urls.api,
            index=Index(connect_index(urls.redis)),
            storage_url=settings.storage,
            host=load_plugins(settings),
            keyring=keyring_of(settings),
            network=address_policy(settings),
        )
        is_right = _show_findings(examine_installation(installation), as_json)
        if sync is not None or tenant is not None:
            with connect(urls.api, application_name="wsync doctor") as api:
                name = tenant_name_of(tenant)
                tenant_id = tenant_named(api, name)
                if sync is not None:
                    folders = tenant_folders(settings.secret_folders, name)
                    found = examine_sync(api, tenant_id, sync, installation, folders=folders)
                    is_right = _show_findings(found, as_json) and is_right
    if not is_right:
        raise typer.Exit(Exit.FAILED)


def _show_findings(findings: Iterable[Finding], as_json: bool) -> bool:
    """As they are found: a server that does not answer takes its time."""
    is_right = True
    for finding in findings:
        is_right = is_right and finding.ok
        if as_json:
            row = {"check": finding.name, "ok": finding.ok, "message": finding.message, "next_step": finding.next_step}
            print_objects([row])
            continue
        typer.echo(f"{'ok   ' if finding.ok else 'WRONG'} {finding.name}: {finding.message}")
        if finding.next_step:
            typer.echo(f"      next: {finding.next_step}")
    return is_right
