"""`init`, `plan` and `apply`: from a file to the state store."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsync_engine.cli.boundary import Exit, reported
from wsync_engine.cli.output import print_objects, say

if TYPE_CHECKING:
    from wsync_engine.services.changes import Change

__all__ = ["add_commands"]

FileArgument = Annotated[Path | None, typer.Argument(metavar="FILE", help="A wsync.yaml; default: ./wsync.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
_SIGNS = {"create": "+", "change": "~", "delete": "-"}
_EXAMPLE = """\
# What wsync keeps in step. `wsync-engine plan` shows what would change, `apply` makes it so.
version: 1
tenant: main

connections:
  # Secrets are references, never values: env:NAME is read by `plan` and `apply`, file:PATH at each use.
  warehouse:
    plugin: postgres
    config: {url: env:WAREHOUSE_URL}
  # The destination. `wsync-engine plugins list` shows what is installed.
  crm:
    plugin: postgres
    config: {url: env:CRM_URL}

syncs:
  customers:
    source: warehouse
    query: SELECT id, email, full_name FROM customers
    key: id                 # identifies a subscriber; never NULL, and once per result
    sink: crm
    stream: customers       # for Postgres: the table to write
    mode: upsert            # mirror: also deletes what left the result; append: each key once; replace: all at once
    mapping:                # target: column, or target: {column | constant, cast, required}
      id: id
      email: {column: email, required: true}
      name: full_name
    guards:                 # a run that would do more stops, and waits for `runs approve`
      max_delete_percent: 20
    schedule:
      cron: "*/15 * * * *"  # or `every: 15m`
      timezone: UTC
"""


def add_commands(app: typer.Typer) -> None:
    """Register them."""
    app.command("init")(init)
    app.command("plan")(plan)
    app.command("apply")(apply)


@reported
def init(file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("wsync.yaml")) -> None:
    """Write a commented wsync.yaml to start from."""
    from wsync_sdk.errors import ConfigError

    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(_EXAMPLE)
    except FileExistsError:
        raise ConfigError(f"{file} is there already", next_step="name another file: `wsync-engine init FILE`") from None
    except OSError as exc:
        raise ConfigError(f"{file}: {exc.strerror}", next_step="name another file") from None
    say(f"wrote {file}; next: set the connections, then `wsync-engine plan {file}`")


@reported
def plan(
    file: FileArgument = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 if something would change.")] = False,
    as_json: Json = False,
) -> None:
    """Show what `apply` would change; nothing is written, neither to the state store nor to the data folder."""
    from wsync_engine.cli.session import is_installed, load_plugins, log_to_errors, open_session, stored_keyring
    from wsync_engine.config.loader import load_declaration
    from wsync_engine.services.apply import plan_changes
    from wsync_engine.settings import Settings

    log_to_errors()
    settings = Settings.read()
    host = load_plugins(settings, remember=settings.data_dir.expanduser().exists())
    declaration = load_declaration(_found(file), host)
    options: dict[str, Any] = {"host": host, "keyring": stored_keyring(settings), "secret_folders": settings.secret_folders}
    if is_installed(settings):
        with open_session() as session:
            changes = plan_changes(session.api, declaration, **options)
    else:
        say(f"there is no installation in {settings.data_dir.expanduser().absolute()} yet: everything is new")
        changes = plan_changes(None, declaration, **options)
    has_changes = _show(changes, as_json)
    if exit_code and has_changes:
        raise typer.Exit(Exit.CHANGES)


@reported
def apply(file: FileArgument = None, as_json: Json = False) -> None:
    """Make connections, syncs and schedules what the file says; what it no longer declares is deleted."""
    from wsync_engine.cli.session import actor, load_plugins, log_to_errors, open_session
    from wsync_engine.config.loader import load_declaration
    from wsync_engine.services import apply as service
    from wsync_engine.settings import Settings

    log_to_errors()
    host = load_plugins(Settings.read())
    declaration = load_declaration(_found(file), host)  # first, as a mistake in it needs no servers
    with open_session() as session:
        changes = service.apply(
            session.api,
            declaration,
            host=host,
            keyring=session.keyring,
            actor=actor(),
            secret_folders=session.settings.secret_folders,
            shards=session.shards,
        )
    _show(changes, as_json)
    say("applied")


def _found(file: Path | None) -> Path:
    from wsync_engine.cli.session import FILE
    from wsync_sdk.errors import ConfigError

    if file is None and not FILE.is_file():
        raise ConfigError(f"there is no {FILE} in this folder", next_step="name the file, or write one with `wsync-engine init`")
    return file or FILE


def _show(changes: Sequence[Change], as_json: bool) -> bool:
    changed = [change for change in changes if change.kind != "unchanged"]
    if as_json:
        print_objects(asdict(change) for change in changed)
    else:
        for change in changed:
            _show_change(change)
    count = {kind: sum(change.kind == kind for change in changed) for kind in _SIGNS}
    say(f"{count['create']} to create, {count['change']} to change, {count['delete']} to delete" if changed else "nothing to change")
    return bool(changed)


def _show_change(change: Change) -> None:
    typer.echo(f"{_SIGNS[change.kind]} {change.object} {change.name}" + (f": {change.note}" if change.note else ""))
    for field in change.fields:
        if change.kind == "create":
            if field.new not in (False, "", 0, []):  # a new object's defaults say nothing
                typer.echo(f"    {field.path}: {_text(field.new)}")
        else:
            typer.echo(f"  {_sign(field.old, field.new)} {field.path}: {_text(field.old)} -> {_text(field.new)}")


def _sign(old: object, new: object) -> str:
    if old is None:
        return "+"
    return "-" if new is None else "~"


def _text(value: object) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)
