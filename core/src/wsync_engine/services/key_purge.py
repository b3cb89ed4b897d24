"""Remove a subscriber's traces: of one sync's snapshot, change logs, rejections and what waits to be offered again. The destination's row is not touched.

In this order, so that whoever dies in the middle can begin again; each step finds nothing where it was done before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from wsync_engine.model.ids import TenantId
from wsync_engine.scheduler.rows import Event, Row, select, write_events
from wsync_engine.secrets.keyring import Keyring, TenantCipher
from wsync_engine.services.catalog import service_statements
from wsync_engine.services.syncs import sync_id_named
from wsync_engine.state.database import tenant_transaction
from wsync_engine.storage import LocalStorage
from wsync_sdk.errors import ConfigError, RetryableError

__all__ = ["PurgedKeys", "purge_keys"]

PAGE = 1_000
_SQL = service_statements("purge")
_CATALOG = service_statements("catalog")


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgedKeys:
    """What was removed, this time."""

    entries: int
    carried_rows: int
    changes: int
    rejections: int


def purge_keys(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    name: str,
    typed: Sequence[str],
    *,
    storage: LocalStorage,
    keyring: Keyring,
    actor: str,
) -> PurgedKeys:
    """Remove what is kept of these keys in a sync that no run of is open. What is still in its result is sent again by the next run that reads it.

    :param conn: the engine's login, which alone may change archived runs. :param typed: see `parsed_keys`. :param storage: the tenant's, where the workers have it.
    :raises ConfigError: there is no such sync, one is no key, a run of the sync is open, or one is not folded yet.
    :raises RetryableError: a run was made meanwhile. :raises SnapshotLost: a file of the snapshot is missing.
    """
    cipher = keyring.tenant(tenant_id)
    with tenant_transaction(conn, tenant_id):
        sync_id = sync_id_named(conn, tenant_id, name)
        ids = {"tenant_id": tenant_id, "sync_id": sync_id}
        _refuse_unsettled(conn, ids, name)
        (snapshot,) = select(conn, _SQL["sync_snapshot"], ids)
        runs = select(conn, _SQL["runs_with_logs"], ids)
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        entries, carried_rows = _purge_snapshot(conn, ids, snapshot, typed, name=name, storage=storage, cipher=cipher, scratch=scratch)
        changes = _purge_logs(runs, typed, storage=storage, scratch=scratch)
    rejections = _purge_rejections(conn, ids, typed, cipher)
    done = PurgedKeys(entries=entries, carried_rows=carried_rows, changes=changes, rejections=rejections)
    detail: dict[str, str | int | None] = {"sync": name, "sync_id": str(sync_id), "actor": actor, "keys": len(typed)}
    with tenant_transaction(conn, tenant_id):
        _forget_requests(conn, ids, typed, cipher)
        conn.execute(_SQL["logs_forget"], ids)
        write_events(conn, [Event(kind="sync.keys_purged", tenant_id=tenant_id, detail=detail)])
    return done


def _refuse_unsettled(conn: psycopg.Connection[Any], ids: dict[str, UUID], name: str) -> None:
    for row in select(conn, _SQL["runs_unsettled"], ids):
        if row["is_ended"]:
            raise ConfigError(
                f"what run {row['run_id']} sent is not in the snapshot yet", next_step=f"`wsync-engine sync run {name} --wait`, then again"
            )
        raise ConfigError(
            f"run {row['run_id']} of the sync is open",
            next_step="wait for its end, or `wsync-engine runs cancel` or `discard` it, then again",
        )


def _purge_snapshot(
    conn: psycopg.Connection[Any],
    ids: dict[str, UUID],
    row: Row,
    typed: Sequence[str],
    *,
    name: str,
    storage: LocalStorage,
    cipher: TenantCipher,
    scratch: Path,
) -> tuple[int, int]:
    """(entries, carried rows) that the next version of the snapshot lacks."""
    from wsync_engine.pipeline.key_removal import snapshot_without  # noqa: PLC0415  other commands do without Arrow
    from wsync_engine.pipeline.manifest import Manifest  # noqa: PLC0415

    if row["manifest"] is None or not row["manifest"]["key"]:
        return 0, 0
    former = Manifest.from_json(row["version"], row["manifest"])
    removed = snapshot_without(former, typed, sync_id=str(ids["sync_id"]), storage=storage, cipher=cipher, scratch=scratch)
    if not removed.entries and not removed.carried_rows:
        return 0, 0
    columns = {**ids, "version": row["version"], "manifest": Jsonb(removed.manifest.to_json())}
    dropped = removed.manifest.named - former.named  # unless the swap comes off
    try:
        with tenant_transaction(conn, TenantId(ids["tenant_id"])):
            conn.execute(_SQL["sync_hold"], ids)
            _refuse_unsettled(conn, ids, name)
            if not select(conn, _SQL["snapshot_swap"], columns):
                raise RetryableError("a run of the sync has ended meanwhile", next_step="run the command again", retry_after_s=1.0)
        dropped = former.named - removed.manifest.named
    finally:
        for superseded in dropped:
            storage.absolute(superseded).unlink(missing_ok=True)
    return removed.entries, removed.carried_rows


def _forget_requests(conn: psycopg.Connection[Any], ids: dict[str, UUID], typed: Sequence[str], cipher: TenantCipher) -> None:
    """Of what waits to be offered again, these keys only."""
    from wsync_engine.pipeline.manifest import Manifest  # noqa: PLC0415
    from wsync_engine.pipeline.subscriber_keys import parsed_keys  # noqa: PLC0415
    from wsync_engine.pipeline.unsure_keys import open_requests, sealed_requests  # noqa: PLC0415

    (row,) = select(conn, _CATALOG["sync_keys_lock"], ids)
    if row["unsure_keys"] is None or row["manifest"] is None:
        return
    forgotten = set(parsed_keys(typed, Manifest.from_json(row["version"], row["manifest"]).key))
    requests = open_requests(row["unsure_keys"], cipher, done=0)
    left = [replace(one, keys=tuple(key for key in one.keys if key not in forgotten)) for one in requests]
    conn.execute(_SQL["requests_keep"], {**ids, "unsure_keys": sealed_requests([one for one in left if one.keys], cipher)})


def _purge_logs(runs: Sequence[Row], typed: Sequence[str], *, storage: LocalStorage, scratch: Path) -> int:
    from wsync_engine.pipeline.key_removal import remove_from_log  # noqa: PLC0415
    from wsync_engine.pipeline.log_record import LogRecord  # noqa: PLC0415

    changes = 0
    for run in runs:
        storage.drop_run_leftovers(str(run["run_id"]))
        if run["change_log"] is not None:
            log = LogRecord.from_json(run["base_version"] or 0, run["change_log"])
            changes += remove_from_log(log, typed, storage=storage, scratch=scratch)
    return changes


def _purge_rejections(conn: psycopg.Connection[Any], ids: dict[str, UUID], typed: Sequence[str], cipher: TenantCipher) -> int:
    from wsync_engine.pipeline.rejected_keys import with_keys  # noqa: PLC0415

    removed, after = 0, None
    while True:
        with tenant_transaction(conn, TenantId(ids["tenant_id"])):
            rows = select(conn, _SQL["rejections_page"], {**ids, "after": after, "count": PAGE})
            found = with_keys([(row["rejection_id"], row["key"], cipher.decrypt(bytes(row["payload"]))) for row in rows], typed)
            conn.execute(_SQL["rejections_forget"], {**ids, "rejection_ids": found})
        removed += len(found)
        if len(rows) < PAGE:
            return removed
        after = rows[-1]["rejection_id"]
