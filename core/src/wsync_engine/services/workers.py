"""Workers and queues: of the installation, so the operator's; with the engine's login."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.scheduler.rows import Row, select
from wsync_engine.services.catalog import read_queues, service_statements
from wsync_sdk.errors import ConfigError

__all__ = ["add_queue", "drain_workers", "list_queues", "list_workers", "queues_named"]

MOST_QUEUES = 16
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SQL = service_statements("workers")


def list_workers(conn: psycopg.Connection[Any]) -> list[Row]:
    """Workers that have shown themselves in the last day, the newest first; `state`: working, draining, refusing or silent."""
    return select(conn, _SQL["worker_list"], {})


def drain_workers(conn: psycopg.Connection[Any], text: str | None) -> list[UUID]:
    """Ask the worker whose id begins or ends with `text`, or all of them (None), to finish what they do and end; returns them.

    :raises ConfigError: there is no such worker, or more than one.
    """
    workers = [row["worker_id"] for row in list_workers(conn) if row["state"] != "silent"]
    if text is not None:
        digits = text.replace("-", "").lower()
        workers = [x for x in workers if digits and (x.hex.startswith(digits) or x.hex.endswith(digits))]
        if len(workers) != 1:
            what = "more than one worker's id begins or ends" if workers else "no living worker's id begins or ends"
            raise ConfigError(f"{what} with `{text}`", next_step="`wsync-engine workers list` shows the ids")
    select(conn, _SQL["worker_drain"], {"worker_ids": workers})
    return workers


def list_queues(conn: psycopg.Connection[Any]) -> list[Row]:
    """Queues with their syncs and the living workers that serve them."""
    return select(conn, _SQL["queue_use"], {})


def add_queue(conn: psycopg.Connection[Any], name: str) -> int:
    """Make a queue that syncs can name; twice is once. Returns its number.

    :raises ConfigError: the name is not one, or there are as many queues as there can be.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"`{name}` is no name of a queue", next_step="use letters, digits, `_`, `.` and `-`")
    select(conn, _SQL["queue_insert"], {"name": name, "most": MOST_QUEUES})
    found = read_queues(conn).get(name)
    if found is None:
        raise ConfigError(f"there are {MOST_QUEUES} queues already", next_step="let syncs share one: `wsync-engine queues list` shows them")
    return found


def queues_named(conn: psycopg.Connection[Any], names: Sequence[str]) -> list[int]:
    """The numbers of queues; none named: the default queue.

    :raises ConfigError: there is no such queue.
    """
    known = read_queues(conn)
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no queue `{name}`", next_step=f"`wsync-engine queues add {name}` makes it")
    return [known[name] for name in names] or [0]
