"""What becomes of a run that is asked for while another run of its overlap key is open: skip, wait, cancel, terminate or run beside it.

Whoever asks holds the row lock of the open run while it decides, and whoever ends that run needs the same lock: a run that is to wait is
either seen by the end of the one before it, or finds it ended. The queueing itself is the database's (`wsync.run_promote`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from wsync_engine.index.entries import ReadyRun
from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import OverlapPolicy, RunState, Trigger
from wsync_engine.scheduler.rows import Event, Row, ready_run, select, statements, write_events
from wsync_engine.scheduler.runs import request_cancel, run_of_key
from wsync_sdk.errors import RetryableError

__all__ = ["Admission", "RunRequest", "admit", "lock_open_runs", "promote_orphans"]

TRIES = 5
_SQL = statements("overlap")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run that somebody wants; the names are the columns of `wsync.run`.

    :param max_buffer: how many runs may wait for the key, under `buffer_all`. :param total_timeout_ms: from the moment it is ready until its deadline.
    :param actor: the person, for the event.
    """

    tenant_id: UUID
    shard: int
    queue: int
    sync_id: UUID
    connection_id: UUID
    credential_id: UUID
    overlap_key: UUID
    trigger: Trigger
    nominal_at: datetime
    due_at: datetime
    priority: int
    total_timeout_ms: int
    schedule_id: UUID | None = None
    spec_version: int | None = None
    backfill_id: UUID | None = None
    idem_key: str | None = None
    dry_run: bool = False
    adopt: bool = False
    offer_rejected: bool = False
    replay: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    max_buffer: int = 100
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What was decided.

    :param run_id: of the new run; None: there is none. :param is_waiting: it starts when the open run has ended.
    :param reason: why there is no run: `open` (another one is), `buffer_full`, or `decided` (this very run was made before).
    :param open_run_id: the run that was open. :param ready: to be told to the index. :param interrupted: the worker that has to end a run.
    """

    run_id: UUID | None = None
    is_waiting: bool = False
    reason: Literal["", "open", "buffer_full", "decided"] = ""
    open_run_id: UUID | None = None
    ready: ReadyRun | None = None
    interrupted: UUID | None = None


def lock_open_runs(conn: psycopg.Connection[Any], overlap_keys: Sequence[UUID]) -> None:
    """Lock the open runs of several keys at once, in the one order that everybody locks runs in, before each is decided by `admit`."""
    if overlap_keys:
        select(conn, _SQL["run_open_lock"], {"overlap_keys": list(overlap_keys)})


def admit(conn: psycopg.Connection[Any], request: RunRequest, policy: OverlapPolicy) -> Admission:
    """Make the run, or decide that there is none, in the caller's transaction.

    :raises RetryableError: other runs of the key came and went faster than this could be decided; nothing was written.
    """
    if request.dry_run or policy == OverlapPolicy.ALLOW_ALL:
        return _admitted(_insert(conn, request, RunState.QUEUED, exclusive=False))
    for _ in range(TRIES):
        open_runs = select(conn, _SQL["run_open_lock"], {"overlap_keys": [request.overlap_key]})
        if open_runs:
            return _admit_beside(conn, request, policy, open_runs[0])
        inserted = _insert(conn, request, RunState.QUEUED)
        if inserted is not None or _is_decided_before(conn, request):
            return _admitted(inserted)
    raise RetryableError("runs of the sync come and go too fast to decide", next_step="try again", retry_after_s=0.1)


def promote_orphans(conn: psycopg.Connection[Any], *, shard: int, count: int = 1_000) -> list[ReadyRun]:
    """Queue runs that wait for nobody; none in health. The engine's login."""
    promoted = []
    for row in select(conn, _SQL["key_orphaned"], {"shard": shard, "count": count}):
        if select(conn, _SQL["key_promote"], {"overlap_key": row["overlap_key"]})[0]["run_id"] is not None:
            found = run_of_key(conn, row["overlap_key"])
            promoted += [] if found is None else [found]
    return promoted


def _admit_beside(conn: psycopg.Connection[Any], request: RunRequest, policy: OverlapPolicy, open_run: Row) -> Admission:
    open_run_id = open_run["run_id"]
    if policy == OverlapPolicy.SKIP:
        return Admission(reason="open", open_run_id=open_run_id)
    if policy == OverlapPolicy.BUFFER_ALL:
        waiting = select(conn, _SQL["buffered_count"], {"overlap_key": request.overlap_key})[0]["runs"]
        if waiting >= request.max_buffer:
            return Admission(reason="buffer_full", open_run_id=open_run_id)
    # A run for the past takes no place of one for the present, nor does it lose its own.
    replaces = policy in {OverlapPolicy.CANCEL_OTHER, OverlapPolicy.TERMINATE_OTHER} and request.trigger != Trigger.BACKFILL
    inserted = _insert(conn, request, RunState.BUFFERED, buffer_one=policy == OverlapPolicy.BUFFER_ONE, replaces=replaces)
    if inserted is None:
        return Admission(reason="decided" if _is_decided_before(conn, request) else "buffer_full", open_run_id=open_run_id)
    if policy in {OverlapPolicy.BUFFER_ONE, OverlapPolicy.BUFFER_ALL}:
        return Admission(run_id=inserted["run_id"], is_waiting=True, open_run_id=open_run_id)
    return _make_way(conn, request, policy, open_run, inserted)


def _make_way(conn: psycopg.Connection[Any], request: RunRequest, policy: OverlapPolicy, open_run: Row, inserted: Row) -> Admission:
    """The new run waits already: the end of the open one, which may come at once, queues it."""
    if request.trigger != Trigger.BACKFILL:
        ids = {name: getattr(request, name) for name in ("overlap_key", "sync_id", "schedule_id")}
        ids["run_id"] = inserted["run_id"]
        conn.execute(_SQL["run_supersede"], ids)
    is_executed = open_run["state"] in {RunState.RUNNING, RunState.CANCELLING}
    if is_executed and policy == OverlapPolicy.TERMINATE_OTHER:
        conn.execute(_SQL["run_terminate"], {"run_id": open_run["run_id"]})
    else:
        request_cancel(conn, open_run["run_id"], reason="superseded", actor="system")
    ready = run_of_key(conn, request.overlap_key)
    return Admission(
        run_id=inserted["run_id"],
        is_waiting=ready is None or ready.run_id != inserted["run_id"],
        open_run_id=open_run["run_id"],
        ready=ready,
        interrupted=open_run["worker_id"] if is_executed else None,
    )


def _admitted(inserted: Row | None) -> Admission:
    if inserted is None:
        return Admission(reason="decided")
    return Admission(run_id=inserted["run_id"], ready=ready_run(inserted))


def _insert(
    conn: psycopg.Connection[Any],
    request: RunRequest,
    state: RunState,
    *,
    exclusive: bool = True,
    buffer_one: bool = False,
    replaces: bool = False,
) -> Row | None:
    columns = {
        **asdict(request),
        "params": Jsonb(dict(request.params)),
        "replay": _json(request.replay),
        "run_id": uuid7(),
        "state": str(state),
    }
    columns |= {"trigger": str(request.trigger), "exclusive": exclusive, "buffer_one": buffer_one, "replaces": replaces}
    rows = select(conn, _SQL["run_insert"], columns)
    if not rows:
        return None
    kind = "run.queued" if state == RunState.QUEUED else "run.buffered"
    detail = {"actor": request.actor} if request.actor else None
    event = Event(kind=kind, tenant_id=request.tenant_id, schedule_id=request.schedule_id, run_id=rows[0]["run_id"], detail=detail)
    write_events(conn, [event])
    return rows[0]


def _json(value: Mapping[str, Any] | None) -> Jsonb | None:
    return None if value is None else Jsonb(dict(value))


def _is_decided_before(conn: psycopg.Connection[Any], request: RunRequest) -> bool:
    """Whether a unique index other than that of open runs refused it."""
    return bool(select(conn, _SQL["run_decided"], {**asdict(request), "trigger": str(request.trigger)}))
