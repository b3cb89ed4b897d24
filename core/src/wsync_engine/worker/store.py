"""What only workers write: that they are there, and that a run's process died; and what they read to hand a run to a child."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from wsync_engine.index.entries import ReadyRun
from wsync_engine.model.declaration import sync_spec_from_json
from wsync_engine.model.sync import bound_parameters
from wsync_engine.scheduler.rows import Row, ready_run, select
from wsync_engine.scheduler.runs import MAX_CRASHES, ClaimedRun, crash_loop, finish_run, lock_clocks
from wsync_engine.secrets.keyring import Keyring, TenantCipher
from wsync_engine.secrets.references import resolve, tenant_folders
from wsync_engine.state.statements import load_statements
from wsync_engine.worker.credentials import references_in, shared_credential
from wsync_engine.worker.messages import Assignment, ConnectionPart
from wsync_sdk.errors import ConfigError, StateError

if TYPE_CHECKING:
    from wsync_engine.worker.slots import Tenure

__all__ = ["Orders", "Presence", "crash_run", "leave", "load_assignments", "note_stuck", "show_presence"]

_SQL = load_statements("worker", Path(__file__).with_name("sql"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A worker as lists show it."""

    worker_id: UUID
    host: str
    pid: int
    version: str
    slots: int
    running: int
    is_draining: bool
    queues: list[int]
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker is told in return: to drain, and which storage the installation has (None: no one has said yet)."""

    shall_drain: bool
    storage_id: str | None


def show_presence(conn: psycopg.Connection[Any], presence: Presence) -> Orders:
    """Say that the worker is there."""
    return Orders(**select(conn, _SQL["worker_beat"], {name: getattr(presence, name) for name in Presence.__slots__})[0])


def note_stuck(conn: psycopg.Connection[Any], tenure: Tenure) -> None:
    """Store that a run's counters stood still for too long."""
    a = tenure.assignment
    columns = {"tenant_id": a.tenant_id, "run_id": a.run_id, "epoch": a.epoch, "seconds": round(tenure.stall_s)}
    conn.execute(_SQL["run_stuck"], columns)


def leave(conn: psycopg.Connection[Any], worker_id: UUID) -> None:
    """The worker ends in order; one that dies is recognised by its old heartbeat."""
    conn.execute(_SQL["worker_leave"], {"worker_id": worker_id})


def crash_run(conn: psycopg.Connection[Any], run_id: UUID, epoch: int, *, error: str, backoff_s: float) -> ReadyRun | None:
    """A run's process died by itself: queued again with a growing wait, the third time failed as `crash_loop`; when it
    ended, the run that waited for it is returned, if one did.

    :raises StateError: the epoch is old; nothing was written.
    """
    columns = {"run_id": run_id, "epoch": epoch, "error": error, "backoff_s": backoff_s, "most": MAX_CRASHES}
    with conn.transaction():
        lock_clocks(conn, [run_id])
        rows = select(conn, _SQL["run_crashed"], columns)
        if not rows:
            raise StateError("the run's lease was lost", next_step="nothing: another worker goes on with it")
        row = rows[0]
        if row["state"] == "queued":
            return ready_run(row)
        if row["state"] == "cancelling" and row["cancel_reason"] != "timeout":
            return finish_run(conn, run_id, epoch, "cancelled", reason="cancelled")
        loop = crash_loop("its process", error)
        return finish_run(conn, run_id, epoch, "failed", reason=loop.message, error=loop)


def load_assignments(
    conn: psycopg.Connection[Any],
    runs: Sequence[ClaimedRun],
    keyring: Keyring,
    *,
    write_until_s: float,
    call_timeout_s: float,
    rows_per_partition: int,
    secret_folders: Sequence[Path] = (),
) -> dict[UUID, Assignment | Exception]:
    """All that each run's child must be told; in its place why it can't be told: a secret can't be decrypted, or the run or its sync is gone, or
    can't be read by this engine.

    :param secret_folders: the installation's.
    """
    rows = {row["run_id"]: row for row in select(conn, _SQL["assignment_load"], {"run_ids": [run.run_id for run in runs]})}
    limits: Any = {"write_until_s": write_until_s, "call_timeout_s": call_timeout_s, "rows_per_partition": rows_per_partition}
    found: dict[UUID, Assignment | Exception] = {}
    for run in runs:
        try:
            found[run.run_id] = _assignment(run, rows.get(run.run_id), keyring, secret_folders, **limits)
        except Exception as exc:  # whatever is wrong with one run must not stop the others
            found[run.run_id] = exc
    return found


def _assignment(
    claimed: ClaimedRun,
    row: Row | None,
    keyring: Keyring,
    secret_folders: Sequence[Path],
    *,
    write_until_s: float,
    call_timeout_s: float,
    rows_per_partition: int,
) -> Assignment:
    if row is None:
        raise StateError("the run's sync does not exist any more", next_step="nothing: it was purged")
    spec = sync_spec_from_json(row["spec"])
    if row["stream"] is not None:  # a replay to another destination
        spec = replace(spec, stream=row["stream"])
    cipher = keyring.tenant(claimed.tenant_id)
    folders = tenant_folders(secret_folders, row["tenant"])
    sink = _part(row["sink_plugin"], row["sink_config"], row["sink_secrets"], cipher, folders)
    is_named = row["credential_id"] != row["sink_connection_id"]
    return Assignment(
        tenant_id=claimed.tenant_id,
        run_id=claimed.run_id,
        epoch=claimed.epoch,
        worker_id=claimed.worker_id,
        sync_id=claimed.sync_id,
        sync_name=row["sync_name"],
        spec=spec,
        parameters=bound_parameters(spec.parameters, row["params"], nominal_at=claimed.nominal_at),
        source=_part(row["source_plugin"], row["source_config"], row["source_secrets"], cipher, folders),
        sink=sink,
        destination=f"{row['sink_connection_id']}/{row['sink_plugin']}",
        credential_id=row["credential_id"],
        rate_credential=row["credential_id"].hex if is_named else shared_credential(sink, keyring) or row["credential_id"].hex,
        tenant_key=cipher.to_text(),
        write_until_s=write_until_s,
        call_timeout_s=call_timeout_s,
        is_last_attempt=row["is_last_attempt"],
        helps=claimed.helps,
        rows_per_partition=rows_per_partition,
    )


def _part(plugin: str, config: Mapping[str, Any], secrets: bytes | None, cipher: TenantCipher, folders: Sequence[Path]) -> ConnectionPart:
    stored: dict[str, str] = {} if secrets is None else json.loads(cipher.decrypt(secrets))
    resolved = {reference: _resolved(reference, folders) for reference in references_in(config) if reference not in stored}
    known = {reference: value for reference, value in resolved.items() if value is not None}
    return ConnectionPart(plugin=plugin, config=config, secret_by_reference={**known, **stored})


def _resolved(reference: str, folders: Sequence[Path]) -> str | None:
    """None where it leads nowhere, or where the tenant may not go: the child says so where it matters."""
    try:
        return resolve(reference, folders=folders)
    except ConfigError:
        return None
