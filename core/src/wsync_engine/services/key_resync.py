"""Offer some subscribers of a sync again: those that their destination lost, or that somebody changed there by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from wsync_engine.model.ids import TenantId
from wsync_engine.model.sync import Mode
from wsync_engine.scheduler.rows import Event, Row, select, write_events
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.services.catalog import service_statements
from wsync_engine.services.syncs import sync_id_named
from wsync_engine.state.database import tenant_transaction
from wsync_engine.storage import LocalStorage
from wsync_sdk.errors import ConfigError

__all__ = ["MOST_KEYS", "KeyResync", "resync_keys"]

MOST_KEYS = 10_000
TRIES = 3
_SQL = service_statements("catalog")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyResync:
    """What a resync of keys will do. `keys`: how many are offered again; `missing`: as typed, those of which nothing was delivered.

    :param deletes: those of them that left the result are deleted.
    """

    sync: str
    keys: int
    missing: tuple[str, ...]
    deletes: bool


def resync_keys(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    name: str,
    typed: Sequence[str],
    *,
    storage: LocalStorage,
    keyring: Keyring,
    actor: str,
) -> KeyResync:
    """Let the next run offer these keys again, whatever was acknowledged. They are personal data: kept encrypted, and only until that is done.

    :param typed: see `parsed_keys`. :param storage: the tenant's.
    :raises ConfigError: there is no such sync, nothing was delivered yet, none of the keys is in the snapshot, or one is no key.
    """
    from wsync_engine.pipeline.local_database import SnapshotLost  # noqa: PLC0415  other commands do without Arrow and DuckDB

    for _ in range(TRIES - 1):
        with suppress(SnapshotLost):  # a run that ends removes the files that its snapshot replaces
            return _resync_keys(conn, tenant_id, name, typed, storage=storage, keyring=keyring, actor=actor)
    return _resync_keys(conn, tenant_id, name, typed, storage=storage, keyring=keyring, actor=actor)


def _resync_keys(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    name: str,
    typed: Sequence[str],
    *,
    storage: LocalStorage,
    keyring: Keyring,
    actor: str,
) -> KeyResync:
    from wsync_engine.pipeline.unsure_keys import KeyRequest, open_requests, sealed_requests  # noqa: PLC0415

    cipher = keyring.tenant(tenant_id)
    with tenant_transaction(conn, tenant_id):
        sync_id = sync_id_named(conn, tenant_id, name)
        columns = {"tenant_id": tenant_id, "sync_id": sync_id}
        row = select(conn, _SQL["sync_keys_lock"], columns)[0]
        known, missing = _known(row, name, typed, storage)
        if not known:
            raise ConfigError(
                f"none of the {len(typed)} keys is in the snapshot of `{name}`", next_step="a key that was never delivered needs no resync"
            )
        request = KeyRequest(
            number=row["key_resync"] + 1, columns=tuple(column for column, _ in row["manifest"]["key"]), keys=tuple(known.values())
        )
        requests = [*open_requests(row["unsure_keys"], cipher, done=row["manifest"].get("key_resync", 0)), request]
        if sum(len(one.keys) for one in requests) > MOST_KEYS:
            raise ConfigError(
                f"more than {MOST_KEYS} keys wait to be offered again", next_step=f"`wsync-engine sync resync {name}` offers all"
            )
        conn.execute(_SQL["sync_keys_resync"], {**columns, "unsure_keys": sealed_requests(requests, cipher)})
        detail: dict[str, str | int | None] = {"sync": name, "sync_id": str(sync_id), "actor": actor, "keys": len(known)}
        write_events(conn, [Event(kind="sync.resync_requested", tenant_id=tenant_id, detail=detail)])
    return KeyResync(sync=name, keys=len(known), missing=missing, deletes=row["spec"]["mode"] == Mode.MIRROR)


def _known(row: Row, name: str, typed: Sequence[str], storage: LocalStorage) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """(the key of each text that is in the snapshot, the other texts)."""
    from wsync_engine.pipeline.manifest import Manifest  # noqa: PLC0415
    from wsync_engine.pipeline.subscriber_keys import known_keys, parsed_keys  # noqa: PLC0415

    if row["manifest"] is None or not row["manifest"]["key"]:
        raise ConfigError(f"`{name}` delivered nothing yet", next_step=f"`wsync-engine sync run {name}` offers everything")
    manifest = Manifest.from_json(row["version"], row["manifest"])
    key_of = {text: parsed_keys([text], manifest.key)[0] for text in dict.fromkeys(typed)}
    with TemporaryDirectory() as scratch:
        known = known_keys(manifest, storage, list(key_of.values()), Path(scratch))
    return {text: key for text, key in key_of.items() if key in known}, tuple(text for text, key in key_of.items() if key not in known)
