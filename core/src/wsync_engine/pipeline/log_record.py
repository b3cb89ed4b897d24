"""What the state store keeps of a change log: its files, and all that a fold in any later process needs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from wsync_engine.model.sync import Duplicates, Mode
from wsync_engine.pipeline.before import BeforeField, before_fields
from wsync_engine.pipeline.diff import DiffInput
from wsync_engine.pipeline.manifest import KeyColumn, Manifest
from wsync_engine.pipeline.shape import Shape, changes_between
from wsync_engine.storage import LocalStorage

__all__ = ["Aside", "LogRecord", "PartRead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRead:
    """Of a log whose query asks where the last run came to: what is stored of that by the fold.

    :param former: what was stored when it was read. :param settled: what is stored once every change is settled, else `former` again.
    :param is_whole: it was read from the start: who is not in the result has left it.
    """

    former: Mapping[str, Any] | None
    settled: Mapping[str, Any] | None
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """What a partition's diff leaves for the fold beside the log, so that the stage can go: see `DiffInput`."""

    gone: str | None
    held: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """A run's change log.

    :param files: one per partition. :param stage: per partition the staged files it is made from; none once it is.
    :param aside: per partition; None: an older engine made the log, and its stage is still there.
    :param destination, stream: where the log goes, whatever the sync says by the time it is delivered.
    :param base: the snapshot it was compared with, seen in `partitions`. :param schema: of the stream's fields.
    :param before: fields of the stream whose before-values it holds. :param planned_after: the sync's delivery number at the plan.
    :param is_elsewhere: it is replayed to a destination that is not the sync's: the snapshot says nothing of that.
    :param part: None where the whole result was read. :param shape: of what is sent; None: an engine before did not say.
    :param is_current: the destination holds just this version already: nothing of it is sent.
    """

    partitions: int
    files: tuple[str, ...]
    stage: dict[str, list[str]]
    base: Manifest
    key: tuple[KeyColumn, ...]
    schema: pa.Schema
    mode: Mode
    destination: str
    stream: str
    before: tuple[str, ...] = ()
    planned_after: int | None = None
    part: PartRead | None = None
    aside: tuple[Aside, ...] | None = None
    shape: Shape | None = None
    is_current: bool = False
    is_elsewhere: bool = False

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "partitions": self.partitions,
            "files": list(self.files),
            "stage": self.stage,
            "base": self.base.to_json(),
            "key": [[column.name, column.type] for column in self.key],
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode("ascii"),
            "mode": str(self.mode),
            "destination": self.destination,
            "stream": self.stream,
            "before": list(self.before),
            "planned_after": self.planned_after,
            "part": None if self.part is None else asdict(self.part),
            "aside": None if self.aside is None else [asdict(one) for one in self.aside],
            "is_elsewhere": self.is_elsewhere,
            "shape": None if self.shape is None else asdict(self.shape),
            "is_current": self.is_current,
        }

    @classmethod
    def from_json(cls, base_version: int, document: dict[str, Any]) -> LogRecord:
        """What `to_json` wrote."""
        return cls(
            partitions=document["partitions"],
            files=tuple(document["files"]),
            stage=document["stage"],
            base=Manifest.from_json(base_version, document["base"]),
            key=tuple(KeyColumn(name=name, type=kind) for name, kind in document["key"]),
            schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(document["schema"]))),
            mode=Mode(document["mode"]),
            destination=document["destination"],
            stream=document["stream"],
            before=tuple(document.get("before", ())),
            planned_after=document.get("planned_after"),
            part=PartRead(**document["part"]) if document.get("part") else None,
            aside=tuple(Aside(**one) for one in document["aside"]) if document.get("aside") else None,
            is_elsewhere=document.get("is_elsewhere", False),
            shape=Shape(**document["shape"]) if document.get("shape") else None,
            is_current=document.get("is_current", False),
        )

    @property
    def before_fields(self) -> tuple[BeforeField, ...]:
        """The fields whose before-values it holds."""
        return before_fields(self.before, self.schema)

    @property
    def schema_changes(self) -> list[str]:
        """How the result's columns changed since the snapshot, in words."""
        return changes_between(self.base.shape, self.shape)

    @property
    def is_part(self) -> bool:
        """Whether a row that was not read may still be in the result."""
        return self.part is not None and not self.part.is_whole

    def diff_input(self, partition: int, storage: LocalStorage, *, log: Path | None = None) -> DiffInput:
        """The files of one partition, as the fold reads them.

        :param log: a file that is still to be written.
        """
        snapshot = self.base.files[partition]
        aside = Aside(gone=None, held=None) if self.aside is None else self.aside[partition]
        return DiffInput(
            partition=partition,
            stage=[storage.absolute(path) for path in self.stage[str(partition)]],
            snapshot=None if snapshot is None else storage.absolute(snapshot),
            manifest=self.base,
            key=self.key,
            fields=tuple(self.schema.names),
            mode=self.mode,
            duplicates=Duplicates(),
            offer_before_us=0,
            log=storage.absolute(self.files[partition]) if log is None else log,
            before=self.before_fields,
            is_part=self.is_part,
            keeps_rejected=self.part is not None,
            gone=None if aside.gone is None else storage.absolute(aside.gone),
            held=None if aside.held is None else storage.absolute(aside.held),
            has_stage=self.aside is None,
            is_shared=self.base.files.count(snapshot) > 1,
        )
