"""How a worker works."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wsync_engine.scheduler.runs import LEASE_S

__all__ = ["WorkerOptions"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    :param api_url: the children's login. :param storage_id: of the storage; a worker with another one than the installation's claims nothing; None: not compared.
    :param lease_s: a heartbeat comes six times in it, sink calls start in the first two thirds.
    :param drain_timeout_s: how long runs may go on after the first signal. :param stop_grace_s: from asking a run to end until its process is killed.
    :param memory_limit_bytes: of one child. :param queues: whose runs it takes. :param turn_s: how long a run keeps its slot while others of its priority are in line.
    :param breaker_failures: so many attempts in a row that a destination failed let its runs wait.
    :param rows_per_partition: a bigger result is cut into tasks, which several slots may execute.
    :param recycle_bytes: a child that is larger after a run is replaced, and one that has three quarters of what it may.
    """

    api_url: str = field(repr=False)
    storage_url: str
    storage_id: str | None = None
    slots: int = 2
    lease_s: float = LEASE_S
    drain_timeout_s: float = 30.0
    stop_grace_s: float = 30.0
    drain_grace_s: float = 9.0
    memory_limit_bytes: int = 2_048 * MIB
    recycle_bytes: int = 768 * MIB
    runs_per_child: int = 100
    crash_backoff_s: float = 1.0
    queues: tuple[int, ...] = (0,)
    turn_s: float = 60.0
    rows_per_partition: int = 2_000_000
    breaker_failures: int = 5
    secret_folders: tuple[Path, ...] = ()
