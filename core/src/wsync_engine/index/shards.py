"""All shards of an installation: a tenant's entries live in one, a worker takes runs from each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from wsync_engine.index.connection import Client
from wsync_engine.index.due_index import Index
from wsync_engine.index.entries import ReadyRun
from wsync_engine.index.layout import shard_of
from wsync_sdk.errors import RetryableError, StateError

__all__ = ["ShardTurns", "Shards"]

MOST_REMEMBERED = 10_000


class ShardTurns:
    """In which order a worker asks the shards: who has given it least, in slot milliseconds over weight, comes first. One thread.

    Exact within a shard, approximate across them: each worker knows what it has seen of a shard's virtual time.
    """

    def __init__(self, count: int) -> None:
        self._passes = [0] * count
        self._seen = [0] * count
        self._is_idle = [True] * count

    def order(self) -> list[int]:
        """The shards, first to be asked first."""
        return sorted(range(len(self._passes)), key=lambda shard: self._passes[shard])

    def note(self, shard: int, virtual_ms: int, *, given: int) -> None:
        """What a shard said. One that comes back after it had nothing starts where the others are."""
        passed = virtual_ms - self._seen[shard] if virtual_ms >= self._seen[shard] else virtual_ms
        self._seen[shard] = virtual_ms
        if not given:
            self._is_idle[shard] = True
            return
        if self._is_idle[shard]:
            busy = [own for own, is_idle in zip(self._passes, self._is_idle, strict=True) if not is_idle]
            self._passes[shard] = max(self._passes[shard], min(busy, default=0))
            self._is_idle[shard] = False
        else:
            self._passes[shard] += passed


class Shards(Sequence[Index]):
    """The index of each shard, and what a worker asks of all of them. Any thread, but a worker's calls are for one.

    :param options: of each `Index`.
    """

    def __init__(self, client: Client, count: int = 1, **options: Any) -> None:
        self._indexes = tuple(Index(client, shard=shard, shards=count, **options) for shard in range(count))
        self._turns = ShardTurns(count)
        self._index_by_run: dict[UUID, Index] = {}

    def __len__(self) -> int:
        return len(self._indexes)

    def __iter__(self) -> Iterator[Index]:
        return iter(self._indexes)

    def __getitem__(self, shard: Any) -> Any:
        return self._indexes[shard]

    def of(self, tenant_id: UUID) -> Index:
        """The index that has the tenant's entries."""
        return self._indexes[shard_of(tenant_id, len(self._indexes))]

    def check_server(self) -> None:
        """As of an index: what is checked holds for all its servers."""
        self._indexes[0].check_server()

    def dispatch(self, worker_id: UUID, free_slots: int, *, queues: Sequence[int] = (0,)) -> list[tuple[UUID, UUID]]:
        """(tenant, run) from the shards in turn, held for 10 s. A shard that is away holds up no other.

        :raises RetryableError: no shard could be asked. :raises RebuildNeeded: as that.
        """
        found: list[tuple[UUID, UUID]] = []
        failures: list[RetryableError | StateError] = []
        for shard in self._turns.order():
            if len(found) >= free_slots:
                break
            try:
                given = self._indexes[shard].dispatch_members(worker_id, free_slots - len(found), queues=queues)
            except (RetryableError, StateError) as exc:
                failures.append(exc)
                continue
            self._turns.note(shard, given.virtual_ms, given=len(given.members))
            runs = [ReadyRun.run_of(member) for member in given.members]
            self._remember(runs, self._indexes[shard])
            found += runs
        if failures and len(failures) == len(self._indexes):
            raise failures[0]
        return found

    def first_waiting(self, queues: Sequence[int]) -> int | None:
        """As of an index, over all shards that can be asked."""
        found = []
        for index in self._indexes:
            with suppress(RetryableError, StateError):
                found.append(index.first_waiting(queues))
        return max((priority for priority in found if priority is not None), default=None)

    def renew(self, runs: Sequence[UUID], *, lease_ms: int) -> None:
        """Hold on to runs that were dispatched here and claimed."""
        self._for_each(runs, lambda index, some: index.renew(some, lease_ms=lease_ms))

    def release(self, runs: Sequence[UUID]) -> None:
        """Runs that were dispatched here ended: give back what they hold."""
        self._for_each(runs, Index.release)
        self._forget(runs)

    def refuse(self, runs: Sequence[UUID]) -> None:
        """Postgres did not let us have runs that were dispatched here: give back what they hold, at no charge."""
        self._for_each(runs, Index.refuse)
        self._forget(runs)

    def push(self, runs: Sequence[ReadyRun]) -> None:
        """Runs that are queued again."""
        for run in runs:
            self.of(run.tenant_id).commit_fire([], [run])

    def _remember(self, runs: Sequence[tuple[UUID, UUID]], index: Index) -> None:
        self._index_by_run |= {run_id: index for _, run_id in runs}
        while len(self._index_by_run) > MOST_REMEMBERED:  # lost between dispatch and claim, while Postgres was away
            del self._index_by_run[next(iter(self._index_by_run))]

    def _for_each(self, runs: Sequence[UUID], call: Callable[[Index, Sequence[UUID]], object]) -> None:
        runs_by_index: defaultdict[Index, list[UUID]] = defaultdict(list)
        for run_id in runs:
            if (index := self._index_by_run.get(run_id)) is not None:
                runs_by_index[index].append(run_id)
        failures: list[RetryableError | StateError] = []
        for index, some in runs_by_index.items():
            try:
                call(index, some)
            except (RetryableError, StateError) as exc:
                failures.append(exc)
        if failures:
            raise failures[0]

    def _forget(self, runs: Sequence[UUID]) -> None:
        for run_id in runs:
            self._index_by_run.pop(run_id, None)
