"""What a replay sends: the change logs of former runs, to the same destination or to another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

__all__ = ["ReplayOrder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOrder:
    """A replay of one sync's runs.

    :param run_ids: whose change logs. :param sink_id: the connection it goes to; None: the sync's own sink, in its stream.
    :param stream: of that connection; None with None.
    """

    run_ids: tuple[UUID, ...]
    sink_id: UUID | None = None
    stream: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is stored with the run."""
        sink = None if self.sink_id is None else str(self.sink_id)
        return {"runs": [str(run_id) for run_id in self.run_ids], "sink": sink, "stream": self.stream}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ReplayOrder:
        """What `to_json` wrote."""
        sink_id = None if stored["sink"] is None else UUID(stored["sink"])
        return cls(run_ids=tuple(UUID(one) for one in stored["runs"]), sink_id=sink_id, stream=stored["stream"])
