"""`sync run|resync|adopt` and `runs list|show|changes|rejections|watch|cancel|retry|approve|discard`."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsync_engine.cli.arguments import Json, Keys, Overlap, Parameters, Tenant, parameters, told
from wsync_engine.cli.boundary import Exit, reported
from wsync_engine.cli.output import cell, print_objects, say, table
from wsync_engine.cli.progress import shown_progress
from wsync_engine.model.run import Priority
from wsync_sdk.errors import ConfigError

if TYPE_CHECKING:
    from uuid import UUID

    from wsync_engine.cli.session import Session

__all__ = ["exit_by", "runs", "show_ended", "syncs", "tell_if_nobody_works", "watched"]

runs = typer.Typer(help="What ran, runs, or waits for a decision.", no_args_is_help=True)
syncs = typer.Typer(help="Run a sync now, or correct what is taken as delivered.", no_args_is_help=True)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or enough of its first or last digits.")]
POLL_S = 0.25
HINT_S = 10.0
"""How often somebody who waits is told that nobody works."""
_LIST = ("run_id", "sync_name", "state", "trigger", "dry_run", "adopt", "nominal_at", "created_at", "finished_at", "outcome_reason")
_OPEN = ("buffered", "queued", "running", "cancelling")


@syncs.command("run")
@reported
def run_sync(
    name: Annotated[str, typer.Argument(help="A sync.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended, or waits for a decision.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Up to the change log: nothing is sent.")] = False,
    rejected: Annotated[bool, typer.Option("--rejected", help="Offer again now what was rejected before, whatever its backoff.")] = False,
    param: Parameters = None,
    overlap: Overlap = None,
    priority: Annotated[
        Literal["low", "medium", "high"], typer.Option("--priority", help="Share of the workers where runs compete.")
    ] = "high",
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Make a run now. With --wait: exit 0 succeeded, 1 not everything arrived, 4 a guard stopped it, or the open run for which it was skipped."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.runs import show_run
    from wsync_engine.services.syncs import trigger_sync

    with open_session(tenant) as session:
        options: dict[str, Any] = {
            "dry_run": dry_run,
            "offer_rejected": rejected,
            "params": parameters(param),
            "overlap": overlap,
            "index": session.index,
        }
        options["priority"] = Priority[priority.upper()]
        made = trigger_sync(session.api, session.tenant_id, name, actor=actor(), **options)
        if not made.is_new or made.is_waiting:
            say(told(made))
        else:
            tell_if_nobody_works(session)
        if wait and not made.is_new:
            exit_by(show_run(session.api, session.tenant_id, made.run_id).run, is_ours=False)
        elif wait:
            ended = watched(session, made.run_id)
            show_ended(ended, as_json)
            exit_by(ended)
            return
    if as_json:
        print_objects([{"run_id": made.run_id, "is_new": made.is_new}])
    else:
        typer.echo(made.run_id)


@syncs.command()
@reported
def resync(name: Annotated[str, typer.Argument(help="A sync.")], *, key: Keys = None, tenant: Tenant = None, as_json: Json = False) -> None:
    """Let the next run offer everything again, or these keys, whatever was delivered before: for a sink that lost something."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.syncs import resync_sync

    if key:
        _resync_keys(name, key, tenant, as_json=as_json)
        return
    with open_session(tenant) as session:
        done = resync_sync(session.api, session.tenant_id, name, actor=actor())
    if as_json:
        print_objects([{"sync": done.sync, "entries": done.entries, "deletes": done.deletes}])
    departed = "are still deleted" if done.deletes else "stay, as the mode says"
    say(
        f"the next run of {name} offers everything again; of {done.entries} subscribers delivered so far, those that left the result {departed}"
    )
    say("if the snapshot's files are lost, nobody knows who left: those stay at the sink")
    say(f"next: `wsync-engine sync run {name} --wait`, or wait for its schedule")


def _resync_keys(name: str, keys: Sequence[str], tenant: str | None, *, as_json: bool) -> None:
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.key_resync import resync_keys
    from wsync_engine.storage import LocalStorage

    with open_session(tenant) as session:
        storage = LocalStorage.of_url(session.settings.storage, tenant_id=str(session.tenant_id))
        ids = (session.api, session.tenant_id, name)
        done = resync_keys(*ids, keys, storage=storage, keyring=session.keyring, actor=actor())
    if as_json:
        print_objects([{"sync": done.sync, "keys": done.keys, "missing": list(done.missing), "deletes": done.deletes}])
    departed = "are still deleted" if done.deletes else "stay, as the mode says"
    say(f"the next run of {name} offers {done.keys} subscribers again; those of them that left the result {departed}")
    if done.missing:
        say(f"nothing was delivered of: {', '.join(cell(one) for one in done.missing)}")
    say(f"next: `wsync-engine sync run {name} --wait`, or wait for its schedule")


@syncs.command()
@reported
def adopt(
    name: Annotated[str, typer.Argument(help="A sync.")],
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """Take the query's present result as delivered, and send nothing: for a sink that has it already."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.syncs import adopt_sync

    with open_session(tenant) as session:
        made = adopt_sync(session.api, session.tenant_id, name, actor=actor(), index=session.index)
        tell_if_nobody_works(session)
        if wait:
            ended = watched(session, made.run_id)
            show_ended(ended, as_json)
            exit_by(ended)
            return
    if as_json:
        print_objects([{"run_id": made.run_id}])
    else:
        typer.echo(made.run_id)


def tell_if_nobody_works(session: Session) -> None:
    """Say that nobody will take up what was just queued, if that is so."""
    from wsync_engine.services.runs import has_workers

    if not has_workers(session.api):
        say("queued; no worker is running: start one with `wsync-engine worker`, and `wsync-engine scheduler` with it")


@runs.command("list")
@reported
def list_runs(
    sync: Annotated[str | None, typer.Option(help="Of this sync only.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="In this state only; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many at most.")] = 20,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """The newest runs first."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services import runs as service

    with open_session(tenant) as session:
        found = service.list_runs(session.api, session.tenant_id, sync=sync, states=service.states_named(state or ()), count=limit)
    if as_json:
        print_objects(found)
    else:
        table(found, _LIST)


@runs.command()
@reported
def show(run: RunArgument, tenant: Tenant = None, as_json: Json = False) -> None:
    """State, reason, guards, counts, rejections and events of one run; of a blocked one: how many upserts and deletes it would send, and why not."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services.runs import find_run, show_run

    with open_session(tenant) as session:
        details = show_run(session.api, session.tenant_id, find_run(session.api, session.tenant_id, run))
    if as_json:
        print_objects([{**details.run, "rejected": list(details.rejections), "events": list(details.events)}])
        return
    show_ended(details.run, as_json=False)
    if details.rejections:
        table(details.rejections, ("phase", "code", "message", "retryable", "rows"))
    table(details.events, ("at", "kind", "detail"))


@runs.command()
@reported
def rejections(
    run: RunArgument,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100,
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write all of them to a .jsonl or .csv file.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """The rows of a run that were refused, one by one: why, and what they hold."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services.rejection_export import export_rejections
    from wsync_engine.services.runs import find_run, list_rejections

    with open_session(tenant) as session:
        run_id = find_run(session.api, session.tenant_id, run)
        if export is not None:
            rows = export_rejections(session.api, session.tenant_id, run_id, export, keyring=session.keyring)
            if as_json:
                print_objects([{"file": str(export), "rows": rows}])
            say(f"{rows} refused rows written to {export}, which only you may read")
            return
        found = list_rejections(session.api, session.tenant_id, run_id, keyring=session.keyring, count=limit)
    if as_json:
        print_objects(found)
    else:
        table(found, ("phase", "code", "message", "key", "retryable", "refused"))


@runs.command()
@reported
def changes(
    run: RunArgument,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    op: Annotated[str | None, typer.Option(help="Only `upsert` or `delete`.")] = None,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """The first rows that a run sends, or would send if it was approved."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services.change_logs import list_changes
    from wsync_engine.services.runs import find_run
    from wsync_engine.storage import LocalStorage
    from wsync_sdk.sink import Operation

    if op is not None and op not in tuple(Operation):
        raise ConfigError(f"there is no operation `{op}`", next_step=f"give {' or '.join(Operation)}, or leave it out")
    operation = None if op is None else Operation(op)
    with open_session(tenant) as session:
        run_id = find_run(session.api, session.tenant_id, run)
        storage = LocalStorage.of_url(session.settings.storage, tenant_id=str(session.tenant_id))
        found = list_changes(session.api, session.tenant_id, run_id, storage=storage, count=limit, operation=operation)
    if as_json:
        print_objects(found)
    else:
        table(found, ("operation", "record"))


@runs.command()
@reported
def watch(run: RunArgument, tenant: Tenant = None, as_json: Json = False) -> None:
    """Follow a run until it has ended, or waits for a decision; exits as `sync run --wait`."""
    from wsync_engine.cli.session import open_session
    from wsync_engine.services.runs import find_run

    with open_session(tenant) as session:
        ended = watched(session, find_run(session.api, session.tenant_id, run))
    show_ended(ended, as_json)
    exit_by(ended)


@runs.command()
@reported
def cancel(
    run: RunArgument, reason: Annotated[str, typer.Option(help="Why, for others.")] = "cancelled by a person", tenant: Tenant = None
) -> None:
    """Ask a run to end; what it delivered stays delivered."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.runs import cancel_run, find_run

    with open_session(tenant) as session:
        run_id = find_run(session.api, session.tenant_id, run)
        say(f"{run_id}: {cancel_run(session.api, session.tenant_id, run_id, reason=reason, actor=actor(), index=session.index)}")


@runs.command()
@reported
def retry(run: RunArgument, tenant: Tenant = None, as_json: Json = False) -> None:
    """Try again now: a run that waits for its next attempt waits no longer; one that has ended without success is made anew."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.runs import find_run, retry_run

    with open_session(tenant) as session:
        run_id = find_run(session.api, session.tenant_id, run)
        made = retry_run(session.api, session.tenant_id, run_id, actor=actor(), index=session.index)
    if as_json:
        print_objects([{"run_id": made.run_id, "is_new": made.is_new, "is_waiting": made.is_waiting}])
        return
    typer.echo(made.run_id)
    say(told(made))


@runs.command()
@reported
def approve(run: RunArgument, tenant: Tenant = None) -> None:
    """Let a blocked run or a dry run deliver exactly the upserts and deletes that `runs show` counts."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.runs import approve_run, find_run

    with open_session(tenant) as session:
        run_id = find_run(session.api, session.tenant_id, run)
        approve_run(session.api, session.tenant_id, run_id, actor=actor(), index=session.index)
    say(f"{run_id}: approved, queued")


@runs.command()
@reported
def discard(run: RunArgument, tenant: Tenant = None) -> None:
    """Drop a blocked run: nothing of it is sent."""
    from wsync_engine.cli.session import actor, open_session
    from wsync_engine.services.runs import discard_run, find_run

    with open_session(tenant) as session:
        run_id = find_run(session.api, session.tenant_id, run)
        discard_run(session.api, session.tenant_id, run_id, actor=actor(), index=session.index)
    say(f"{run_id}: discarded")


def watched(session: Session, run_id: UUID) -> Mapping[str, Any]:
    """Polls the row, which is what counts, until the run has ended or waits for a decision."""
    from wsync_engine.services.runs import show_run

    hint_at_s = time.monotonic() + HINT_S
    try:
        with shown_progress(run_id) as show:
            while True:
                run = show_run(session.api, session.tenant_id, run_id).run
                show(run)
                if run["state"] not in _OPEN:
                    return run
                if run["state"] == "queued" and time.monotonic() >= hint_at_s:
                    hint_at_s = time.monotonic() + HINT_S
                    tell_if_nobody_works(session)
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        say(f"the run goes on; next: `wsync-engine runs watch {run_id}`, or `wsync-engine runs cancel {run_id}`")
        raise


def show_ended(run: Mapping[str, Any], as_json: bool) -> None:
    """What a person wants to know of a run that was waited for."""
    if as_json:
        print_objects([run])
    else:
        shown = {**run, "counts": {name: rows for name, rows in (run["counts"] or {}).items() if rows}}
        table([{"field": name, "value": value} for name, value in shown.items() if value not in (None, {}, False)], ("field", "value"))


def exit_by(run: Mapping[str, Any], *, is_ours: bool = True) -> None:
    """End the command with the exit code that a run's state stands for. `is_ours` False: another run is open, and ours was skipped for it; only one that waits for a person is bad news."""
    if run["state"] == "blocked":
        say(
            f"next: `wsync-engine runs changes {run['run_id']}`, then `wsync-engine runs approve {run['run_id']}` or `wsync-engine runs discard {run['run_id']}`"
        )
        reasons = [reason for reason in run["guards"] or () if not str(reason).startswith("dry run")]
        if reasons or not run["dry_run"]:
            raise typer.Exit(Exit.GUARD)
    elif is_ours and run["state"] != "succeeded":
        say(f"{run['state']}: {run['error'] or run['outcome_reason'] or run['cancel_reason']}")
        command = "rejections" if run["state"] == "partial" and run["rejections"] else "show"
        say("next: " + (run["next_step"] or f"see `wsync-engine runs {command} {run['run_id']}`"))
        raise typer.Exit(Exit.FAILED)
