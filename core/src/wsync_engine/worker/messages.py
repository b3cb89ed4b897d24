"""What supervisor and child say to each other, over a pipe that only the two of them hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from wsync_engine.index.entries import ReadyRun
from wsync_engine.model.run import RunError
from wsync_engine.model.sync import SyncSpec

if TYPE_CHECKING:  # a supervisor needs no Arrow
    from wsync_sdk import ParameterValue

__all__ = [
    "Assignment",
    "Called",
    "Cancel",
    "CancelReason",
    "ConnectionPart",
    "Drain",
    "Ended",
    "Lost",
    "Pause",
    "Renewed",
    "Resume",
    "Tick",
    "TurnsGiven",
    "TurnsWanted",
    "Yield",
]

NO_ERROR = RunError(error_class="", message="", next_step="")
CancelReason = Literal["cancelled", "timeout", "stalled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPart:
    """A configured source or sink; `secret_by_reference` holds what its config refers to, and nothing else does."""

    plugin: str
    config: Mapping[str, Any]
    secret_by_reference: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A claimed run and all that its child needs to execute it.

    :param parameters: of the query, bound for this run. :param destination: the sink's connection and plugin, opaque. :param credential_id: what the sink is called with.
    :param rate_credential: the same for whoever calls the same destination with the same secret, of all tenants; it tells nothing of it.
    :param write_until_s: until when a sink call may start, by `boot_time_s`.
    :param call_timeout_s: how long a sink call may take. :param is_last_attempt: a failure that might pass ends the run none the less.
    :param helps: the run whose tasks this helper executes; None: it is a run.
    """

    tenant_id: UUID
    run_id: UUID
    epoch: int
    worker_id: UUID
    sync_id: UUID
    sync_name: str
    spec: SyncSpec
    parameters: Mapping[str, ParameterValue]
    source: ConnectionPart
    sink: ConnectionPart
    destination: str
    credential_id: UUID
    rate_credential: str
    tenant_key: str = field(repr=False)
    write_until_s: float
    call_timeout_s: float
    is_last_attempt: bool
    helps: UUID | None = None
    rows_per_partition: int = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """The run is ours for longer: sink calls may start until then."""

    run_id: UUID
    epoch: int
    write_until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End the run; what it sent stays sent."""

    run_id: UUID
    epoch: int
    reason: CancelReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Stop the run at the next border; it goes back to the queue."""

    run_id: UUID
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """Others wait for the slot: go back to the queue at the next border where nothing of the run's work is lost."""

    run_id: UUID
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Others wait for the slot, and the run has come to no border: stand still where you are, while another process has the slot's turn."""

    run_id: UUID
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on; nobody waits any more."""

    run_id: UUID
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The run is no longer ours: write nothing more."""

    run_id: UUID
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnsGiven:
    """Places for calls; instants are by `boot_time_s`. The first of `count` is at `first_s`, each other `apart_s` later.

    :param is_reply: to what the child asked; False: another run of the credential was asked to wait. :param is_shared: False: the index can't be asked,
        the run goes at its own pace. :param ask_from_s: before it there is nothing to be had. :param held_until_s: the destination wants no call before it.
    """

    run_id: UUID
    epoch: int
    is_reply: bool = True
    is_shared: bool = True
    count: int = 0
    first_s: float = 0.0
    apart_s: float = 0.0
    ask_from_s: float = 0.0
    held_until_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnsWanted:
    """The child will call its destination so often, at most `calls_per_s` times a second (None: as often as it likes).

    :param hold_s: it was just told to leave the destination alone for so long; then nothing else is asked, and no answer comes.
    """

    run_id: UUID
    epoch: int
    calls: int = 0
    calls_per_s: float | None = None
    hold_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The child lives; its run's counters so far, and how often its destination has taken or refused rows."""

    counters: Mapping[str, int] = field(default_factory=dict)
    answers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """Helpers were queued for the run: the index is to be told."""

    helpers: tuple[ReadyRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the child left its run.

    `concluded`: its end, or a guard's block, is stored (`state`). `retry`: a failure that may pass. `back`: to be queued again without using an attempt.
    `failed`: the end could not be stored by the child. `dropped`: the run was not ours any more.

    :param answers: as of a tick. :param has_failed: the destination is why the execution ended.
    """

    run_id: UUID
    epoch: int
    kind: Literal["concluded", "retry", "back", "failed", "dropped"]
    state: str = ""
    error: RunError = NO_ERROR
    retry_after_s: float | None = None
    answers: int = 0
    has_failed: bool = False
