"""The snapshot's manifest: which files hold what was last acknowledged, and how their hashes were made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from wsync_engine.pipeline.shape import KeyColumn, Shape
from wsync_sdk import StateError

__all__ = ["KeyColumn", "Manifest", "partitions_for"]

MOST_PARTITIONS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A version of a sync's snapshot.

    Each file holds the key's columns, then `wsync_hash` (UUID; NULL: never acknowledged), `wsync_unsure`, and of a rejected change
    `wsync_rejected_hash` (NULL for a delete), `wsync_rejections` (how often, 0: none open) and `wsync_offer_at` (not offered again before, unless it changes).

    :param version: 0 where there is none yet. :param files: per partition its file, None while it is empty; relative to the storage.
    :param partitions: power of two; never shrinks. :param seed: the hash's.
    :param delivery: number of the last one that it holds; 0: what it holds was adopted, and no sink knows of it.
    :param resync: up to which request every entry has been offered again. :param is_unsure: whatever the files say, every entry is `unsure`.
    :param key_resync: up to which request entries of some keys have been; unsure_keys: those that are `unsure` whatever the files say, encrypted.
    :param carried: per partition the file of rejected rows that the next incremental read may not bring again, sealed; empty: there is none.
    :param is_version: the destination holds this and nothing else: it was switched to, or adopted as if it were.
    :param shape: of what was sent last; None: an engine before did not keep it.
    """

    version: int
    partitions: int
    files: tuple[str | None, ...]
    algorithm: str
    seed: str
    key: tuple[KeyColumn, ...] = ()
    rows: int = 0
    delivery: int = 0
    resync: int = 0
    is_unsure: bool = False
    carried: tuple[str | None, ...] = ()
    shape: Shape | None = None
    is_version: bool = False
    key_resync: int = 0
    unsure_keys: str | None = None

    def grown(self, partitions: int) -> Manifest:
        """The same snapshot seen as more partitions: each is read from the file of the one it was split from."""
        if partitions < self.partitions:
            raise StateError("a snapshot's partitions never shrink", next_step="report this")
        files = tuple(self.files[part & (self.partitions - 1)] for part in range(partitions))
        carried = tuple(self.carried[part & (self.partitions - 1)] for part in range(partitions)) if self.carried else ()
        return replace(self, partitions=partitions, files=files, carried=carried)

    @property
    def named(self) -> frozenset[str]:
        """All files that it names."""
        return frozenset(name for name in (*self.files, *self.carried) if name is not None)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "partitions": self.partitions,
            "files": list(self.files),
            "algorithm": self.algorithm,
            "seed": self.seed,
            "key": [[column.name, column.type] for column in self.key],
            "rows": self.rows,
            "delivery": self.delivery,
            "resync": self.resync,
            "is_unsure": self.is_unsure,
            "key_resync": self.key_resync,
            **({} if self.unsure_keys is None else {"unsure_keys": self.unsure_keys}),
            **({"carried": list(self.carried)} if self.carried else {}),
            **({} if self.shape is None else {"shape": asdict(self.shape)}),
            **({"is_version": True} if self.is_version else {}),
        }

    @classmethod
    def from_json(cls, version: int, document: dict[str, Any]) -> Manifest:
        """What `to_json` wrote."""
        return cls(
            version=version,
            partitions=document["partitions"],
            files=tuple(document["files"]),
            algorithm=document["algorithm"],
            seed=document["seed"],
            key=tuple(KeyColumn(name=name, type=kind) for name, kind in document["key"]),
            rows=document["rows"],
            delivery=document["delivery"],
            resync=document["resync"],
            is_unsure=document["is_unsure"],
            carried=tuple(document.get("carried", ())),
            shape=Shape(**document["shape"]) if document.get("shape") else None,
            is_version=document.get("is_version", False),
            key_resync=document.get("key_resync", 0),
            unsure_keys=document.get("unsure_keys"),
        )


def partitions_for(estimated_rows: int | None, manifest: Manifest, *, rows_per_partition: int) -> int:
    """How many partitions a run works with: a power of two, no fewer than the snapshot has."""
    rows = max(estimated_rows or 0, manifest.rows)
    wanted = 1
    while wanted < MOST_PARTITIONS and rows > wanted * rows_per_partition:
        wanted *= 2
    return max(wanted, manifest.partitions)
