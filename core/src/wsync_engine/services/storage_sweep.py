"""Frees the storage folder of what nobody needs: change logs whose time is over, and what processes left behind that died before they tidied up.

Whatever is in doubt stays, above all what belongs to tenants or runs that the state store does not know: it may have been restored, or the folder be
another installation's too. A run's files go once the run has ended and its acks are in the snapshot; a snapshot file goes if the snapshot does not name
it, the run that wrote it is settled, and it has lain there for days. Runs are asked for first, names afterwards: what is settled has its names.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.model.ids import created_s
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.services.catalog import service_statements
from wsync_engine.services.storage import known_storage_id
from wsync_engine.storage import LocalStorage, storage_id, tenants_in
from wsync_sdk.errors import WsyncError

__all__ = ["Swept", "keep_swept", "sweep_storage"]

ROUND_S = 600.0
DAY_S = 86_400
STRAY_DAYS = 2
"""Snapshot files without a name go after so long: longer than any process writes at one file."""
PAGE = 500
_SQL = service_statements("storage")
_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Swept:
    """How many were removed. `runs`: with all their files; `leftovers`: of runs whose change log stays."""

    runs: int = 0
    leftovers: int = 0
    snapshot_files: int = 0


def sweep_storage(conn: psycopg.Connection[Any], url: str, *, keep_days: int) -> Swept | None:
    """One round through the whole folder; None: another process is at it, or this is not the installation's storage.

    :param conn: the engine's, autocommit, used for nothing else: it keeps a lock. :param keep_days: change logs of ended runs stay so long.
    """
    if known_storage_id(conn) != storage_id(url) or not select(conn, _SQL["sweep_lock"], {})[0]["is_mine"]:
        return None
    swept = Swept()
    for tenant_id in _known_tenants(conn, url):
        storage = LocalStorage.of_url(url, tenant_id=str(tenant_id))
        try:
            _sweep_runs(conn, tenant_id, storage, keep_days, swept)
            _sweep_snapshots(conn, tenant_id, storage, swept)
        except OSError as exc:
            _log.warning("storage.not_swept", tenant_id=str(tenant_id), error=exc.strerror)
    if swept != Swept():
        _log.info("storage.swept", runs=swept.runs, leftovers=swept.leftovers, snapshot_files=swept.snapshot_files)
    return swept


def _known_tenants(conn: psycopg.Connection[Any], url: str) -> list[UUID]:
    return [row["tenant_id"] for row in select(conn, _SQL["tenants_known"], {"tenant_ids": tenants_in(url)})]


def _sweep_runs(conn: psycopg.Connection[Any], tenant_id: UUID, storage: LocalStorage, keep_days: int, swept: Swept) -> None:
    now_s = time.time()
    # Of a young run that left its change log only, there is nothing to ask.
    asked = [run_id for run_id in storage.runs() if created_s(run_id) < now_s - keep_days * DAY_S or storage.has_leftovers(str(run_id))]
    for row in _settled(conn, tenant_id, asked, keep_days):
        run_id = str(row["run_id"])
        if row["is_settled"] and row["is_old"]:
            storage.drop_run(run_id)
            swept.runs += 1
        elif row["is_settled"]:
            storage.drop_run_leftovers(run_id)
            swept.leftovers += 1


def _sweep_snapshots(conn: psycopg.Connection[Any], tenant_id: UUID, storage: LocalStorage, swept: Swept) -> None:
    for sync_id, files in storage.snapshots():
        strays = {path: run_id for path, run_id in files if _age_s(path) > STRAY_DAYS * DAY_S}
        settled = {row["run_id"] for row in _settled(conn, tenant_id, sorted(set(strays.values())), 0) if row["is_settled"]}
        named = {
            name for row in select(conn, _SQL["snapshot_files"], {"tenant_id": tenant_id, "sync_id": sync_id}) for name in row["files"]
        }
        for path, run_id in strays.items():
            if run_id in settled and storage.relative(path) not in named:
                path.unlink(missing_ok=True)
                swept.snapshot_files += 1


def _settled(conn: psycopg.Connection[Any], tenant_id: UUID, run_ids: Sequence[UUID], days: int) -> Iterator[Row]:
    for start in range(0, len(run_ids), PAGE):
        columns = {"tenant_id": tenant_id, "run_ids": list(run_ids[start : start + PAGE]), "days": days}
        yield from select(conn, _SQL["runs_settled"], columns)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its run has tidied up
        return 0.0


def keep_swept(connect: Callable[[], psycopg.Connection[Any]], url: str, *, keep_days: int, stop: threading.Event) -> None:
    """Sweep every ten minutes until `stop`; what fails is tried again in the next round.

    :param connect: opens a connection as the engine's login, autocommit.
    """
    pause_s = random.uniform(0.1, 1) * ROUND_S  # workers are started together
    while not stop.wait(pause_s):
        pause_s = ROUND_S
        try:
            with connect() as conn:
                sweep_storage(conn, url, keep_days=keep_days)
        except (psycopg.Error, WsyncError, OSError) as exc:  # also of a folder on the network that is away
            _log.warning("storage.not_swept", error=type(exc).__name__)
