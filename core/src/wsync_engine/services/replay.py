"""Send again what former runs of a sync sent: to a destination that was restored from a backup, or to another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.index.due_index import Index
from wsync_engine.model.ids import TenantId
from wsync_engine.model.replay import ReplayOrder
from wsync_engine.model.run import Priority
from wsync_engine.model.sync import Mode
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.scheduler.schedules import Triggered, trigger_run
from wsync_engine.services.catalog import named, service_statements
from wsync_engine.services.syncs import announced
from wsync_engine.state.database import tenant_transaction
from wsync_engine.state.delivered import delivered_between, former_runs
from wsync_engine.storage import LocalStorage
from wsync_sdk.errors import ConfigError

__all__ = ["Choice", "Replay", "replay_sync"]

MOST_RUNS = 1_000
_SQL = service_statements("catalog")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which runs are replayed: these, or those that ended between two instants (`until` excluded, None: now).

    :param to: the name of a connection, None: the sync's own sink. :param stream: of that connection, None: named as the sync's.
    """

    run_ids: Sequence[UUID] = ()
    since: datetime | None = None
    until: datetime | None = None
    to: str | None = None
    stream: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The run that replays, and whose change logs, in the order in which they were delivered."""

    triggered: Triggered
    run_ids: tuple[UUID, ...]


def _refuse_mode(sync: Row, choice: Choice) -> None:
    mode = sync["spec"]["mode"]
    if mode == Mode.REPLACE:
        raise ConfigError(
            f"`{sync['name']}` replaces all that its destination holds, and a replay is a part of it",
            next_step=f"`wsync-engine sync resync {sync['name']}` has the next run send everything",
        )
    if mode == Mode.APPEND and choice.to is None:
        raise ConfigError(
            f"`{sync['name']}` appends: its destination would have every replayed row twice",
            next_step="replay it to another connection with `--to`",
        )


def replay_sync(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    name: str,
    choice: Choice,
    *,
    storage: LocalStorage,
    actor: str,
    dry_run: bool = False,
    index: Index | None = None,
) -> Replay:
    """Make a run that sends the last change of each key in the chosen runs' change logs.

    :param storage: the tenant's.
    :raises ConfigError: there is no such sync or connection, a run can't be replayed, there is none, or a run of the sync is open.
    """
    # Here, so that other commands do without Arrow.
    from wsync_engine.pipeline.former_logs import check_destination, replayable  # noqa: PLC0415

    with tenant_transaction(conn, tenant_id):
        sync = named({row["name"]: row for row in select(conn, _SQL["sync_list"], {"tenant_id": tenant_id})}, name, "sync")
        _refuse_mode(sync, choice)
        run_ids = _chosen(conn, tenant_id, sync, choice)
        sink = _connection(conn, tenant_id, choice.to) if choice.to is not None else None
        logs = replayable(former_runs(conn, tenant_id, sync["sync_id"], run_ids), run_ids, storage)
        if sink is None:
            own = select(conn, _SQL["sync_destination"], {"tenant_id": tenant_id, "sync_id": sync["sync_id"]})[0]
            check_destination(logs, destination=f"{own['connection_id']}/{own['plugin']}", stream=own["stream"])
        ordered = tuple(one.run_id for one in logs)
        order = ReplayOrder(run_ids=ordered, **_target(sync, sink, choice))
        options: dict[str, Any] = {"replay": order.to_json(), "dry_run": dry_run, "priority": int(Priority.HIGH)}
        triggered = trigger_run(conn, tenant_id, sync_id=sync["sync_id"], actor=actor, **options)
    if not triggered.is_new:
        raise ConfigError(
            f"run {triggered.run_id} of the sync is open", next_step="wait for its end, or `wsync-engine runs cancel` it, then replay again"
        )
    return Replay(triggered=announced(triggered, index), run_ids=ordered)


def _chosen(conn: psycopg.Connection[Any], tenant_id: TenantId, sync: Row, choice: Choice) -> list[UUID]:
    if bool(choice.run_ids) == (choice.since is not None):
        raise ConfigError("which runs are to be replayed?", next_step="give --run RUN, several times for several runs, or --since TIME")
    if choice.until is not None and choice.since is None:
        raise ConfigError("--until goes with --since", next_step="give --since TIME as well")
    if choice.since is None:
        run_ids = list(dict.fromkeys(choice.run_ids))
    else:
        run_ids = delivered_between(conn, tenant_id, sync["sync_id"], choice.since, choice.until)
    if not run_ids:
        raise ConfigError(
            "no run of the sync delivered in that time", next_step=f"`wsync-engine runs list --sync {sync['name']}` shows when"
        )
    if len(run_ids) > MOST_RUNS:
        raise ConfigError(
            f"{len(run_ids)} runs are more than the {MOST_RUNS} that one run replays", next_step="replay a shorter time, the oldest first"
        )
    return run_ids


def _connection(conn: psycopg.Connection[Any], tenant_id: TenantId, name: str) -> Row:
    rows = select(conn, _SQL["connection_list"], {"tenant_id": tenant_id})
    found: Row = named({row["name"]: row for row in rows}, name, "connection")
    return found


def _target(sync: Row, sink: Row | None, choice: Choice) -> dict[str, Any]:
    stream = choice.stream or sync["spec"]["stream"]
    if sink is None or (sink["connection_id"] == sync["sink_connection_id"] and stream == sync["spec"]["stream"]):
        if choice.stream is not None and sink is None:
            raise ConfigError("--stream goes with --to", next_step="name the connection that has the stream with --to")
        return {}
    return {"sink_id": sink["connection_id"], "stream": stream}
