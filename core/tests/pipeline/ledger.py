"""A world whose warehouse is asked for what changed: rows with a position, read from `:cursor` on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from wsync_engine.model.sync import Cursor, Guards, MappingEntry, Mode, Read
from wsync_sdk import Durable, Held, PlanContext, PlanExpired, Preview, Query, ReadLimits, ReadPlan, Split

from .world import TableSource, World

QUERY = "SELECT id, name, seen FROM people WHERE seen >= :cursor"


class LedgerSource(TableSource):
    """`entries`: name and position by id. A row without a position is always read. `asked`: what was bound, run by run."""

    def __init__(self) -> None:
        super().__init__({})
        self.entries: dict[int | None, tuple[str, Any]] = {}
        self.type: pa.DataType = pa.int64()
        self.asked: list[dict[str, Any]] = []
        self.expire_plans = 0
        self.estimated_rows: int | None = None
        self.is_durable = False
        self.extra_rows: list[dict[str, Any]] = []

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("id", pa.int64()), ("name", pa.string()), ("seen", self.type)])

    def preview(self, query: Query, rows: int) -> Preview:
        found = super().preview(query, rows)
        return replace(found, schema=self.schema, rows=pa.RecordBatch.from_pylist([], schema=self.schema))

    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        ctx.started(b"handle")
        self.plans += 1
        if self.expire_plans:
            self.expire_plans -= 1
            raise PlanExpired("the snapshot is gone", next_step="plan again")
        self.asked.append(dict(query.parameters))
        splits = (Split(index=0, token=b"0"), Split(index=1, token=b"1"))
        rows = self.estimated_rows
        lifetime = Durable(until=datetime.now(UTC) + timedelta(hours=1)) if self.is_durable else Held()
        return ReadPlan(schema=self.schema, splits=splits, lifetime=lifetime, handle=b"handle", connector_version="1", estimated_rows=rows)

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        cursor = self.asked[-1].get("cursor")
        rows = [{"id": key, "name": name, "seen": seen} for key, (name, seen) in self.entries.items()]
        rows = [row for row in [*rows, *self.extra_rows] if row["seen"] is None or cursor is None or row["seen"] >= cursor]
        mine = [row for row in rows if (row["id"] or 0) % 2 == split.index]
        for start in range(0, len(mine), 10):
            yield pa.RecordBatch.from_pylist(mine[start : start + 10], schema=self.schema)


class Ledger(World):
    """A sync that reads by cursor; `put` writes a row as the warehouse's own people do, with the next position."""

    source: LedgerSource  # type: ignore[assignment]

    def __init__(self, database: Any, folder: Path) -> None:
        super().__init__(database, folder)
        self.source = LedgerSource()
        self.spec = replace(
            self.spec,
            query=QUERY,
            mode=Mode.UPSERT,
            read=Read.INCREMENTAL,
            cursor=Cursor(column="seen"),
            mapping=(MappingEntry(target="id", column="id"), MappingEntry(target="name", column="name")),
            guards=Guards(max_shrink_percent=10),
        )
        self.at = 0

    def put(self, *keys: int, name: str = "") -> None:
        for key in keys:
            self.at += 1
            self.source.entries[key] = (name or f"name {key} at {self.at}", self.at)

    def last_asked(self) -> Any:
        return self.source.asked[-1]["cursor"]

    def stored(self) -> Any:
        """The stored cursor's value."""
        return self.scalar("SELECT cursor -> 'cursor' ->> 'value' FROM wsync.snapshot WHERE sync_id = %s", self.sync_id)

    def carried_files(self) -> list[Path]:
        return list(self.storage.snapshot_folder(str(self.sync_id)).glob("*.sealed"))

    def names(self) -> dict[int | None, str]:
        """What the query's rows are, whenever they were read."""
        return {key: name for key, (name, _) in self.source.entries.items()}


def instant(minute: int, day: int = 1) -> datetime:
    return datetime(2026, 3, day, minute // 60, minute % 60, tzinfo=UTC)
