"""Runs: list, show, cancel, and what a person decides about one that a guard or a dry run left blocked."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors

from wsync_engine.index.due_index import Index
from wsync_engine.index.entries import ReadyRun
from wsync_engine.model.ids import RunId, TenantId
from wsync_engine.model.run import RunState
from wsync_engine.scheduler.rows import Event, Row, ready_run, select, write_events
from wsync_engine.scheduler.runs import request_cancel, run_of_key
from wsync_engine.scheduler.schedules import Triggered, announce, trigger_run
from wsync_engine.secrets.keyring import Keyring, TenantCipher
from wsync_engine.services.catalog import named, service_statements
from wsync_engine.services.syncs import announced, shown_cursor
from wsync_engine.state.database import tenant_transaction
from wsync_sdk.errors import ConfigError

__all__ = [
    "RunDetails",
    "approve_run",
    "cancel_run",
    "discard_run",
    "each_rejection",
    "find_run",
    "has_workers",
    "list_rejections",
    "list_runs",
    "retry_run",
    "show_run",
    "states_named",
]

_SQL = service_statements("runs")
FEWEST_DIGITS = 4
PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetails:
    """A run as `run_show` gives it, its rejections by code and message (the most frequent), and its events in order."""

    run: Row
    rejections: tuple[Row, ...]
    events: tuple[Row, ...]


def list_runs(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    *,
    sync: str | None = None,
    states: Sequence[RunState] | None = None,
    count: int = 20,
) -> list[Row]:
    """The newest runs first. `states` None: in any state.

    :raises ConfigError: there is no such sync, and never was.
    """
    columns = {"tenant_id": tenant_id, "sync_name": sync, "states": [str(state) for state in states] if states else None, "count": count}
    with tenant_transaction(conn, tenant_id):
        found = select(conn, _SQL["run_list"], columns)
        if sync is not None and not found:
            named({row["name"]: row for row in select(conn, _SQL["sync_names"], {"tenant_id": tenant_id})}, sync, "sync")
        return found


def states_named(names: Sequence[str]) -> list[RunState] | None:
    """The states that a person typed; None for none.

    :raises ConfigError: one of them is no state.
    """
    known = [state.value for state in RunState]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no state `{name}`", next_step=f"there are: {', '.join(known)}")
    return [RunState(name) for name in names] or None


def has_workers(conn: psycopg.Connection[Any]) -> bool:
    """Whether a worker has shown itself in the last minute; else a queued run waits."""
    return bool(select(conn, _SQL["worker_count"], {})[0]["workers"])


def find_run(conn: psycopg.Connection[Any], tenant_id: TenantId, text: str) -> RunId:
    """The run whose id begins or ends with these digits; hyphens don't count.

    :raises ConfigError: none does, or more than one.
    """
    digits = text.replace("-", "").lower()
    if len(digits) < FEWEST_DIGITS or any(digit not in string.hexdigits for digit in digits):
        raise ConfigError(
            f"`{text}` is no run's id: type {FEWEST_DIGITS} digits or more", next_step="`wsync-engine runs list` shows the ids"
        )
    with tenant_transaction(conn, tenant_id):
        found = select(conn, _SQL["run_find"], {"tenant_id": tenant_id, "digits": digits})
    if len(found) != 1:
        what = "more than one run begins or ends" if found else "no run begins or ends"
        raise ConfigError(f"{what} with `{text}`", next_step="`wsync-engine runs list` shows the ids")
    return RunId(found[0]["run_id"])


def show_run(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID) -> RunDetails:
    """Everything of one run: state, reason, guards, counts, rejections, events.

    :raises ConfigError: there is no such run.
    """
    columns = {"tenant_id": tenant_id, "run_id": run_id}
    with tenant_transaction(conn, tenant_id):
        found = select(conn, _SQL["run_show"], columns)
        if not found:
            raise _no_run(run_id)
        rejections, events = (tuple(select(conn, _SQL[name], columns)) for name in ("run_rejections", "run_events"))
        return RunDetails(run=_with_cursor(found[0]), rejections=rejections, events=events)


def _with_cursor(run: Row) -> Row:
    """With `cursor` of a run that reads what changed: where it was before, and where the run takes it; with changes without a verdict it stays."""
    part = run["part"]
    shown = {name: value for name, value in run.items() if name != "part"}
    if part is None or run["replay"] is not None:
        return shown
    counts = run["counts"] or {}
    after = part["former"] if counts.get("unsure") or counts.get("not_sent") else part["settled"]
    return {**shown, "cursor": {"before": shown_cursor(part["former"]), "after": shown_cursor(after)}}


def list_rejections(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID, *, keyring: Keyring, count: int) -> list[Row]:
    """A run's refused rows one by one, oldest first: why, `key`, the key's fields, and `refused`, the row's fields as they were to be sent.

    A delete has its key only, and so has a large row; a key that is too large itself is left out.

    :raises ConfigError: they were encrypted with a key that this process does not have.
    """
    return list(islice(each_rejection(conn, tenant_id, run_id, keyring=keyring, page=min(count, PAGE)), count))


def each_rejection(
    conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID, *, keyring: Keyring, page: int = PAGE
) -> Iterator[Row]:
    """As `list_rejections`, all of them, however many, read some at a time."""
    cipher = keyring.tenant(tenant_id)
    after: dict[str, Any] = {"after_at": None, "after_id": None}
    rows: list[Row] = []
    while not after["after_id"] or len(rows) == page:
        with tenant_transaction(conn, tenant_id):
            rows = select(conn, _SQL["rejection_list"], {"tenant_id": tenant_id, "run_id": run_id, "count": page, **after})
        yield from (_rejection(row, cipher) for row in rows)
        if not rows:
            return
        after = {"after_at": rows[-1]["at"], "after_id": rows[-1]["rejection_id"]}


def _rejection(row: Row, cipher: TenantCipher) -> Row:
    refused = _refused(row["payload"], cipher)
    key = {name: refused[name] for name, _ in row["key_columns"] or () if name in refused}
    shown = {name: row[name] for name in ("phase", "code", "message", "retryable", "at")}
    return {**shown, "key": key, "refused": refused}


def _refused(payload: bytes | None, cipher: TenantCipher) -> dict[str, Any]:
    if payload is None:
        return {}
    import pyarrow as pa  # noqa: PLC0415  who lists no rejections needs no Arrow

    with pa.ipc.open_stream(cipher.decrypt(bytes(payload))) as reader:
        rows = reader.read_all().to_pylist()
    return {name: value for name, value in rows[0].items() if value is not None} if rows else {}


def cancel_run(
    conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID, *, reason: str, actor: str, index: Index | None = None
) -> RunState:
    """Ask a run to end; what nobody executes ends at once, what was delivered stays delivered. Returns its state.

    :raises ConfigError: it had ended, or there is none.
    """
    with tenant_transaction(conn, tenant_id):
        requested = request_cancel(conn, run_id, reason=reason, actor=actor)
        if requested is None:
            now = _review(conn, tenant_id, run_id)["state"]
            if now == RunState.CANCELLING:  # asked before: asking again is no mistake
                return RunState.CANCELLING
            raise ConfigError(f"the run has ended: {now}", next_step=f"`wsync-engine runs show {run_id}`")
    if index is not None:
        announce(
            index,
            runs=[] if requested.successor is None else [requested.successor],
            interrupted=[] if requested.worker_id is None else [requested.worker_id],
        )
    return requested.state


def approve_run(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID, *, actor: str, index: Index | None = None) -> ReadyRun:
    """Let a blocked run deliver exactly its saved change log; a dry run becomes a real one.

    :raises ConfigError: it is not blocked, another run of its sync is open, or the snapshot or the sync has changed since its plan.
    """
    try:
        with tenant_transaction(conn, tenant_id):
            run = _blocked(conn, tenant_id, run_id)
            if run["is_overtaken"] or (run["base_version"] is not None and run["base_version"] != run["version"]):
                raise ConfigError("stale plan: another run of the sync has delivered since", next_step="discard it, and run the sync again")
            if run["is_sync_changed"]:  # its change log was made for another mapping, or another stream
                raise ConfigError("stale plan: the sync was changed since", next_step="discard it, and run the sync again")
            approved = select(conn, _SQL["run_approve"], {"run_id": run_id, "actor": actor})[0]
            _tell(conn, tenant_id, run, "run.approved", actor)
    except errors.UniqueViolation:
        raise ConfigError("another run of the sync is open", next_step="wait for its end, then approve again") from None
    ready = ready_run(approved)
    if index is not None:
        announce(index, runs=[ready])
    return ready


def discard_run(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID, *, actor: str, index: Index | None = None) -> None:
    """Drop a blocked run: nothing of it is sent.

    :raises ConfigError: it is not blocked.
    """
    with tenant_transaction(conn, tenant_id):
        run = _blocked(conn, tenant_id, run_id)
        select(conn, _SQL["run_discard"], {"run_id": run_id})
        _tell(conn, tenant_id, run, "run.discarded", actor)
        successor = run_of_key(conn, run["overlap_key"])
    if index is not None and successor is not None:
        announce(index, runs=[successor])


def retry_run(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID, *, actor: str, index: Index | None = None) -> Triggered:
    """Try again now: a run that waits between two attempts waits no longer; one that has ended without success is made anew, with its
    parameters and for the time it stood for.

    :raises ConfigError: there is no such run, it succeeded, or it is executed or blocked.
    """
    with tenant_transaction(conn, tenant_id):
        run = _review(conn, tenant_id, run_id)
        hastened = select(conn, _SQL["run_hasten"], {"run_id": run_id})
        if hastened:
            _tell(conn, tenant_id, run, "run.hastened", actor)
            triggered = Triggered(run_id=run_id, run=ready_run(hastened[0]), is_new=True)
        elif run["state"] in {RunState.FAILED, RunState.PARTIAL, RunState.CANCELLED}:
            options = {
                name: run[name] for name in ("sync_id", "priority", "dry_run", "adopt", "offer_rejected", "replay", "params", "nominal_at")
            }
            alive = select(conn, _SQL["schedule_alive"], {"tenant_id": tenant_id, "schedule_id": run["schedule_id"]})
            options["schedule_id"] = run["schedule_id"] if alive else None
            triggered = trigger_run(conn, tenant_id, actor=actor, **options)
            if triggered.is_new:
                event_of = {**run, "run_id": triggered.run_id}
                _tell(conn, tenant_id, event_of, "run.retries", actor, of=str(run_id))
        else:
            raise ConfigError(f"the run is {run['state']}: there is nothing to try again", next_step=f"`wsync-engine runs show {run_id}`")
    return announced(triggered, index)


def _blocked(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID) -> Row:
    run = _review(conn, tenant_id, run_id)
    if run["state"] != RunState.BLOCKED:
        raise ConfigError(f"the run is {run['state']}, not blocked", next_step=f"`wsync-engine runs show {run_id}`")
    return run


def _review(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID) -> Row:
    columns = {"tenant_id": tenant_id, "run_id": run_id}
    found = select(conn, _SQL["run_review"], columns) or select(conn, _SQL["run_archived"], columns)
    if not found:
        raise _no_run(run_id)
    return found[0]


def _tell(conn: psycopg.Connection[Any], tenant_id: TenantId, run: Row, kind: str, actor: str, **more: str) -> None:
    detail = {"actor": actor, **more}
    event = Event(kind=kind, tenant_id=tenant_id, schedule_id=run["schedule_id"], run_id=run["run_id"], detail=detail)
    write_events(conn, [event])


def _no_run(run_id: UUID) -> ConfigError:
    return ConfigError(f"there is no run {run_id}", next_step="`wsync-engine runs list` shows the ids")
