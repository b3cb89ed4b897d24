"""How many runs may hold a tenant, a connection, a sync or a credential at once. Postgres holds the caps, the index follows.

A circuit breaker limits a credential by a cap of its own, beside the operator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg
import structlog

from wsync_engine.index.due_index import Index
from wsync_engine.index.entries import Cap, CappedKind
from wsync_engine.scheduler.limits import refuse_texts
from wsync_engine.scheduler.rows import Event, select, statements, write_events
from wsync_sdk.errors import ConfigError, RetryableError, StateError

__all__ = ["announce_caps", "compare_caps", "load_caps", "set_cap"]

HEAVIEST = 100
MOST_RUNNING = 2**31 - 1
PAGE = 1_000
_SQL = statements("cap")
_BREAKER = statements("breaker")
_log = structlog.get_logger()


def set_cap(
    conn: psycopg.Connection[Any],
    tenant_id: UUID,
    kind: CappedKind,
    resource_id: UUID,
    *,
    max_running: int,
    weight: int = 1,
    actor: str,
) -> Cap:
    """Set one cap; 0 lets nothing run that needs the resource. What runs goes on. After the commit: `announce_caps`.

    :param conn: in the tenant's transaction, or the engine's. :param resource_id: for kind `T` the tenant. :param weight: of a tenant among tenants.
    :raises ConfigError: a number is out of its range, or the kind does not go with the resource.
    """
    refuse_texts(actor=actor)
    if not 0 <= max_running <= MOST_RUNNING:
        raise ConfigError(f"a cap can't be {max_running}", next_step="set 0 to let nothing run, or a positive number")
    if not 1 <= weight <= HEAVIEST:
        raise ConfigError(f"a weight can't be {weight}", next_step=f"set a whole number from 1 to {HEAVIEST}")
    if kind == "T" and resource_id != tenant_id:
        raise ConfigError("a tenant's cap is of that tenant", next_step="give the tenant's own id")
    columns = {"tenant_id": tenant_id, "kind": kind, "resource_id": resource_id, "max_running": max_running, "weight": weight}
    cap = Cap(**select(conn, _SQL["cap_set"], columns)[0])
    detail: dict[str, str | int | None] = {
        "actor": actor,
        "kind": kind,
        "resource": str(resource_id),
        "max_running": max_running,
        "weight": weight,
    }
    write_events(conn, [Event(kind="cap.set", tenant_id=tenant_id, detail=detail)])
    return cap


def announce_caps(index: Index, caps: Sequence[Cap]) -> bool:
    """Tell the index what was committed. Never raises for an index that is away: False, and the sweep tells it."""
    try:
        index.set_caps(caps)
    except (RetryableError, StateError) as exc:
        _log.warning("announcement.failed", error=type(exc).__name__, caps=len(caps))
        return False
    return True


def load_caps(conn: psycopg.Connection[Any], index: Index) -> None:
    """All caps of the index's tenants, before anything is dispatched."""
    for page in _pages(conn, index):
        index.set_caps(page)


def compare_caps(conn: psycopg.Connection[Any], index: Index) -> int:
    """The caps that the index does not have yet; returns how many it had newer, because Postgres lost commits: Postgres wins."""
    repairs = 0
    known: set[UUID] = set()
    for page in _pages(conn, index):
        known |= {cap.resource_id for cap in page if cap.kind == "B"}
        newer = index.set_caps(page)
        ahead = [cap for cap in page if cap.resource in newer]
        if ahead:
            caps = [*_outrun(conn, ahead, newer), *_outrun_breakers(conn, ahead, newer)]
            index.set_caps(caps)
            repairs += len(caps)
    return repairs + _restore_breakers(conn, index, known)


def _restore_breakers(conn: psycopg.Connection[Any], index: Index, known: set[UUID]) -> int:
    """Breakers that let no run go, or one, and of which Postgres has lost even the row: nobody would ever close them. They begin anew."""
    versions = {credential_id: version for credential_id, version in index.limiting_breakers().items() if credential_id not in known}
    columns = {"credential_ids": list(versions), "versions": list(versions.values())}
    lost = [Cap(**row) for row in select(conn, _BREAKER["breaker_restore"], columns)] if versions else []
    index.set_caps([cap for cap in lost if index.has(cap.tenant_id)])
    return len(lost)


def _outrun(conn: psycopg.Connection[Any], ahead: Sequence[Cap], newer: Mapping[str, int]) -> list[Cap]:
    caps = [cap for cap in ahead if cap.kind != "B"]
    columns = {"kinds": [cap.kind for cap in caps], "resource_ids": [cap.resource_id for cap in caps]}
    return [Cap(**row) for row in select(conn, _SQL["cap_outrun"], {**columns, "versions": [newer[cap.resource] for cap in caps]})]


def _outrun_breakers(conn: psycopg.Connection[Any], ahead: Sequence[Cap], newer: Mapping[str, int]) -> list[Cap]:
    caps = [cap for cap in ahead if cap.kind == "B"]
    columns = {"credential_ids": [cap.resource_id for cap in caps], "versions": [newer[cap.resource] for cap in caps]}
    return [Cap(**row) for row in select(conn, _BREAKER["breaker_outrun"], columns)]


def _pages(conn: psycopg.Connection[Any], index: Index) -> Iterator[list[Cap]]:
    for statement in (_SQL["cap_page"], _BREAKER["breaker_page"]):
        after: dict[str, Any] = {"after_tenant": UUID(int=0), "after_kind": "", "after_id": UUID(int=0)}
        while rows := select(conn, statement, {**after, "count": PAGE}):
            yield [Cap(**row) for row in rows if index.has(row["tenant_id"])]
            after = {"after_tenant": rows[-1]["tenant_id"], "after_kind": rows[-1]["kind"], "after_id": rows[-1]["resource_id"]}
