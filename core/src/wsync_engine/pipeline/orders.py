"""What the tasks of a run are told, as the state store keeps it: whoever executes one, in whatever process, does just this."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from wsync_engine.model.declaration import sync_spec_from_json, sync_spec_to_json
from wsync_engine.model.sync import Duplicates, SyncSpec
from wsync_engine.pipeline.cursor import CursorColumn
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.pipeline.mapping import CompiledMapping, compile_mapping
from wsync_engine.pipeline.reading import ReadFrom
from wsync_engine.state.records import Cipher
from wsync_sdk import Durable, ReadPlan

__all__ = ["Comparison", "ReadOrder"]

_TIME_TO_READ = timedelta(minutes=1)
"""A plan that lives no longer than this is not begun with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOrder:
    """How the splits of a plan are read.

    :param spec: the sync as it was at the plan. :param reading: where the run begins; None: it reads the whole result.
    :param planned_after: the sync's delivery number at the plan.
    :param casts: of the fields whose types the stream says.
    """

    plan: ReadPlan
    spec: SyncSpec
    partitions: int
    seed: str
    reading: ReadFrom | None
    planned_after: int
    casts: Mapping[str, str]

    def mapping(self) -> CompiledMapping:
        """How rows are mapped."""
        return compile_mapping(self.spec, self.plan.schema, seed=self.seed, partitions=self.partitions, casts=self.casts)

    def cursor(self) -> CursorColumn | None:
        """The column whose highest value is looked for."""
        if self.reading is None or not self.reading.is_by_cursor:
            return None
        assert self.spec.cursor is not None
        return CursorColumn.of(self.spec.cursor, self.plan.schema)

    @property
    def is_durable(self) -> bool:
        """Whether splits can be read whatever happens to the process that planned."""
        return isinstance(self.plan.lifetime, Durable) and self.plan.lifetime.until > datetime.now(UTC) + _TIME_TO_READ

    def to_bytes(self, cipher: Cipher) -> bytes:
        """Encrypted: the splits are secret."""
        document = {
            "plan": base64.b64encode(self.plan.to_bytes()).decode("ascii"),
            "spec": sync_spec_to_json(self.spec),
            "partitions": self.partitions,
            "seed": self.seed,
            "reading": None if self.reading is None else self.reading.to_json(),
            "planned_after": self.planned_after,
            "casts": dict(self.casts),
        }
        return cipher.encrypt(json.dumps(document).encode())

    @classmethod
    def from_bytes(cls, data: bytes, cipher: Cipher) -> ReadOrder:
        """What `to_bytes` wrote."""
        document = json.loads(cipher.decrypt(data))
        return cls(
            plan=ReadPlan.from_bytes(base64.b64decode(document["plan"])),
            spec=sync_spec_from_json(document["spec"]),
            partitions=document["partitions"],
            seed=document["seed"],
            reading=None if document["reading"] is None else ReadFrom.from_json(document["reading"]),
            planned_after=document["planned_after"],
            casts=document["casts"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the partitions of a stage are compared with the snapshot.

    :param log: what the change log will be; its files are still to be written. :param read_rows: of all splits.
    :param withhold_deletes: nobody knows who left the result. :param offer_before_us: see `DiffInput`.
    """

    log: LogRecord
    read_rows: int
    withhold_deletes: bool
    offer_before_us: int
    duplicates: Duplicates

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "log": self.log.to_json(),
            "read_rows": self.read_rows,
            "withhold_deletes": self.withhold_deletes,
            "offer_before_us": self.offer_before_us,
            "duplicates": asdict(self.duplicates),
        }

    @classmethod
    def from_json(cls, base_version: int, document: Mapping[str, Any]) -> Comparison:
        """What `to_json` wrote."""
        return cls(
            log=LogRecord.from_json(base_version, document["log"]),
            read_rows=document["read_rows"],
            withhold_deletes=document["withhold_deletes"],
            offer_before_us=document["offer_before_us"],
            duplicates=Duplicates(**document["duplicates"]),
        )
