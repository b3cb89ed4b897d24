"""Where a run begins to read, and what its end stores about that.

A stored cursor says how far the result was read whose every change is settled: acknowledged, or rejected and kept. It lies beside the manifest, is swapped
in by the same transaction, and holds for that version of the snapshot only. It also holds for one fingerprint only: of the query, its parameters and the
mapping, and of the mapped fields' types. Where any of it is another one, the run reads from the start, as the first run does, and the snapshot takes out
what is delivered already.

    stored       {version, fingerprint, fields, last_sync_at, cursor: {kind, value}}
    :cursor      the cursor's value less the overlap; at the start `initial`, or the lowest value of the column's type
    :last_sync_time   when, by the state store's clock, the run that stored the cursor began to read; at the start 1970-01-01T00:00:00Z
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from wsync_engine.model.reading import CURSOR, LAST_SYNC_TIME, engine_parameters, reading_fingerprint
from wsync_engine.model.sync import Read, SyncSpec
from wsync_engine.pipeline.cursor import CursorColumn, CursorValue, Kind, read_from
from wsync_engine.pipeline.job import Job
from wsync_engine.state.records import Cipher, PublishedSplit, SnapshotRow
from wsync_sdk import ParameterValue, PlanExpired, Query, Source, WsyncError

__all__ = [
    "EPOCH",
    "FieldsChanged",
    "ReadFrom",
    "begin_reading",
    "cursor_column",
    "explain_refusal",
    "query_of",
    "unread_parameters",
    "usable",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FieldsChanged(PlanExpired):
    """The mapped fields are not those of the rows that were read before: it is planned again, from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFrom:
    """Where this run begins.

    :param former: what is stored, where the run goes on from it; None: it reads from the start.
    :param parameters: of the query, all of them; not stored. :param began_at: by the state store's clock, before the query.
    :param is_by_cursor: False: only `:last_sync_time` is asked for.
    """

    former: Mapping[str, Any] | None
    fingerprint: str
    parameters: Mapping[str, ParameterValue]
    began_at: datetime
    is_by_cursor: bool

    def to_json(self) -> dict[str, Any]:
        """As it is stored with the plan."""
        return {
            "former": None if self.former is None else dict(self.former),
            "fingerprint": self.fingerprint,
            "began_at": self.began_at.isoformat(),
            "is_by_cursor": self.is_by_cursor,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ReadFrom:
        """What `to_json` wrote."""
        return cls(**{**stored, "began_at": datetime.fromisoformat(stored["began_at"]), "parameters": {}})

    @property
    def is_whole(self) -> bool:
        """Whether the result is all there is, so that who is not in it has left it."""
        return self.former is None

    def column(self, job: Job, result: pa.Schema) -> CursorColumn | None:
        """The cursor as it is in the result.

        :raises ConfigError: there is none, or it is of another type than before.
        """
        if not self.is_by_cursor:
            return None
        assert job.spec.cursor is not None
        found = CursorColumn.of(job.spec.cursor, result)
        if self.former is not None:
            found.check_stored(CursorValue.from_json(self.former["cursor"], job.cipher))
        return found

    def check_fields(self, fields: pa.Schema) -> None:
        """See that rows that are not read now would be mapped as they were.

        :raises FieldsChanged: they would not.
        """
        if self.former is not None and self.former["fields"] != _fields_fingerprint(fields):
            raise FieldsChanged("the mapped fields changed", next_step="nothing: everything is read")

    def ended(self, cipher: Cipher, splits: Sequence[PublishedSplit], fields: pa.Schema, *, is_clear: bool) -> Mapping[str, Any] | None:
        """What is stored when every change is settled; without its version.

        :param is_clear: no key was refused for being repeated: when one of its rows goes, the other one is offered only if it is read again.
        """
        value = self._highest(cipher, splits)
        if not is_clear or (self.is_by_cursor and value is None):
            return self.former
        return {
            "fingerprint": self.fingerprint,
            "fields": _fields_fingerprint(fields),
            "last_sync_at": self.began_at.isoformat(),
            **({} if value is None else {"cursor": value.to_json(cipher)}),
        }

    def _highest(self, cipher: Cipher, splits: Sequence[PublishedSplit]) -> CursorValue | None:
        """Never lower than it was, and not in the future."""
        seen = [CursorValue.from_json(split.cursor, cipher).no_later_than(self.began_at) for split in splits if split.cursor is not None]
        before = (self.former or {}).get("cursor")
        if before is not None:
            seen.append(CursorValue.from_json(before, cipher))
        return max(seen, key=lambda one: one.value, default=None)


def begin_reading(job: Job, row: SnapshotRow, *, from_start: bool) -> ReadFrom | None:
    """Where the run begins; None: it reads the whole result, as its query does not ask where the last run came to.

    :param from_start: whatever is stored.
    :raises ConfigError: the query or the cursor's column is wrong; the source's own errors pass through.
    """
    names = engine_parameters(job.spec)
    if not names:
        return None
    fingerprint = reading_fingerprint(job.spec, job.parameters)
    asked = {"resync": row.resync, "key_resync": row.key_resync}
    stored = usable(row.cursor, row.manifest, version=row.version, asked=asked, fingerprint=fingerprint)
    former = None if from_start or stored is None or _is_ahead(job, stored, names, row.now) else stored
    if row.cursor is not None and former is None:
        job.books.event("cursor.forgotten", {})
    return ReadFrom(
        former=former,
        fingerprint=fingerprint,
        parameters={**job.parameters, **_bound(job, former, names)},
        began_at=row.now,
        is_by_cursor=CURSOR in names,
    )


def usable(
    stored: dict[str, Any] | None, manifest: dict[str, Any] | None, *, version: int, asked: Mapping[str, int], fingerprint: str
) -> Mapping[str, Any] | None:
    """What is stored beside a snapshot, if the next run may go on from it; None: that one reads from the start.

    :param version: the snapshot's. :param asked: how often a `resync` was asked for, or the sync moved to another destination, and a `key_resync`:
        the rows that are to be offered again are to be read again, too.
    """
    if stored is None or manifest is None or any(times > manifest.get(what, 0) for what, times in asked.items()):
        return None
    return stored if (stored["version"], stored["fingerprint"]) == (version, fingerprint) else None


def _is_ahead(job: Job, stored: Mapping[str, Any], names: frozenset[str], now: datetime) -> bool:
    """Whether the run would begin in the future: a clock that stored it has been put back since, and nobody knows when that was."""
    bound = _bound(job, stored, names)
    if CURSOR in bound:
        value = CursorValue(kind=Kind(stored["cursor"]["kind"]), value=bound[CURSOR])
        if value != value.no_later_than(now):
            return True
    return LAST_SYNC_TIME in bound and datetime.fromisoformat(stored["last_sync_at"]) > now


def _bound(job: Job, former: Mapping[str, Any] | None, names: frozenset[str]) -> dict[str, ParameterValue]:
    bound: dict[str, ParameterValue] = {}
    if LAST_SYNC_TIME in names:
        bound[LAST_SYNC_TIME] = EPOCH if former is None else datetime.fromisoformat(former["last_sync_at"])
    if CURSOR in names and former is None:
        bound[CURSOR] = cursor_column(job.source, job.spec, job.parameters).first()
    elif CURSOR in names and former is not None:
        assert job.spec.cursor is not None
        bound[CURSOR] = read_from(job.spec.cursor, CursorValue.from_json(former["cursor"], job.cipher))
    return bound


def cursor_column(source: Source, spec: SyncSpec, parameters: Mapping[str, ParameterValue]) -> CursorColumn:
    """The cursor as the source describes it, without reading: NULL is bound, which no row is at or behind.

    :raises ConfigError: the query is wrong, or its result has no such column.
    """
    assert spec.cursor is not None
    return CursorColumn.of(spec.cursor, source.preview(query_of(spec, {**parameters, **unread_parameters(spec)}), 1).schema)


def unread_parameters(spec: SyncSpec) -> dict[str, ParameterValue]:
    """The engine's own parameters of a query that is only described."""
    return {name: EPOCH if name == LAST_SYNC_TIME else None for name in engine_parameters(spec)}


def query_of(spec: SyncSpec, parameters: Mapping[str, ParameterValue]) -> Query:
    """The sync's query with its parameters."""
    return Query(sql=spec.query, table=spec.table, parameters=parameters, split_by=spec.split_by)


def explain_refusal(job: Job, reading: ReadFrom | None) -> None:
    """Why a source refused a query that it took before, where it is the cursor's type.

    :raises ConfigError: it is.
    """
    if reading is None or reading.former is None or job.spec.read is not Read.INCREMENTAL:
        return
    column = None
    with suppress(WsyncError):  # the first refusal says it then
        column = cursor_column(job.source, job.spec, job.parameters)
    if column is not None:
        column.check_stored(CursorValue.from_json(reading.former["cursor"], job.cipher))


def _fields_fingerprint(fields: pa.Schema) -> str:
    words = [f"{field.name}: {field.type} {sorted((field.metadata or {}).items())}" for field in fields]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]
