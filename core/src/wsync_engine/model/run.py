"""What a run can be: its state, what started it, how urgent it is, and what happens when another one is open."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from uuid import UUID

__all__ = ["OPEN_STATES", "TERMINAL_STATES", "OverlapPolicy", "Priority", "RunError", "RunState", "Trigger", "final_step"]


class RunState(StrEnum):
    """The states of a run and of a task, as in the type `wsync.run_state`."""

    BUFFERED = "buffered"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    BLOCKED = "blocked"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_STATES = frozenset({RunState.QUEUED, RunState.RUNNING, RunState.CANCELLING, RunState.BLOCKED})
"""States in which a run counts for overlap: the next run of its key is decided by the policy."""

TERMINAL_STATES = frozenset({RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.CANCELLED})
"""States that a run never leaves."""


class Trigger(StrEnum):
    """What made the run."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    BACKFILL = "backfill"
    RUN_AFTER = "run_after"
    HELPER = "helper"


class Priority(IntEnum):
    """Share of the slots where runs compete: high, medium and low get 8 : 4 : 1."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2


class OverlapPolicy(StrEnum):
    """What a fire does while another run of the same overlap key is open."""

    SKIP = "skip"
    BUFFER_ONE = "buffer_one"
    BUFFER_ALL = "buffer_all"
    CANCEL_OTHER = "cancel_other"
    TERMINATE_OTHER = "terminate_other"
    ALLOW_ALL = "allow_all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunError:
    """What stopped a run or an attempt, as people see it: no secret and no row's value is in it.

    :param error_class: a WsyncError's name, or `crash`, `crash_loop`, `timeout`, `memory_limit`.
    """

    error_class: str
    message: str
    next_step: str


def final_step(next_step: str, run_id: UUID) -> str:
    """What to do about a failure that ended its run: where it says that nothing is to be done, as it is tried again, that is true no more."""
    return f"`wsync-engine runs retry {run_id}` tries it anew" if next_step.startswith("nothing") else next_step
