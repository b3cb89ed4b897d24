"""What a counting sink wrote down, and its sums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Counted", "Total", "total"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One chunk. `ids`: the sum of its keys."""

    chunk: str
    rows: int
    ids: int
    deletes: int

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All chunks, each once. `repeated`: how many calls were sent again; `differing`: under one key, but with other rows."""

    rows: int
    ids: int
    deletes: int
    repeated: int
    differing: int


def total(folder: Path) -> Total:
    """Add up what is written in a folder. A last line that a killed process left unfinished is passed over."""
    by_chunk: dict[str, Mapping[str, Any]] = {}
    repeated = differing = 0
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            counted = json.loads(line)
            known = by_chunk.setdefault(counted["chunk"], counted)
            repeated += known is not counted
            differing += known != counted
    return Total(
        rows=sum(one["rows"] for one in by_chunk.values()),
        ids=sum(one["ids"] for one in by_chunk.values()),
        deletes=sum(one["deletes"] for one in by_chunk.values()),
        repeated=repeated,
        differing=differing,
    )
