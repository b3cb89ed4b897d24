"""The sink's own two tables in the destination, as SQL text: which rows were applied, and who may write. Pure.

`wsync_ack` has a row for each applied range; it is written in the data's own transaction, so it can't say more or less than the data.
`wsync_fence` has for each sync the highest delivery (`partition` -1) and for each partition the highest delivery and epoch. A writer holds both
rows FOR SHARE until its commit; whoever comes with a higher number raises a row first, and so waits for writers that are already inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wsync_sdk import ParameterValue, RowRange, RunRef, StateError

__all__ = ["SYNC_PARTITION", "Bookkeeping", "fenced_off", "missing_rows", "sync_name"]

SYNC_PARTITION = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookkeeping:
    """The statements for one schema.

    :param schema: quoted. :param literal: quotes a value.
    """

    schema: str
    literal: Callable[[ParameterValue], str]

    def exists(self) -> str:
        """One row, one boolean: both tables are there."""
        names = [self.literal(f"{self.schema}.{table}") for table in ("wsync_ack", "wsync_fence")]
        return f"SELECT to_regclass({names[0]}) IS NOT NULL AND to_regclass({names[1]}) IS NOT NULL"

    def create(self) -> Sequence[str]:
        """Make schema and tables; only under the lock that `begin` takes, since IF NOT EXISTS alone races."""
        return (
            f"CREATE SCHEMA IF NOT EXISTS {self.schema}",
            f"CREATE TABLE IF NOT EXISTS {self.schema}.wsync_ack ("
            "sync_id text, run_id text, delivery bigint NOT NULL, partition int, first_row bigint, last_row bigint NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (sync_id, run_id, partition, first_row))",
            f"CREATE TABLE IF NOT EXISTS {self.schema}.wsync_fence ("
            "sync_id text, partition int, delivery bigint NOT NULL, epoch bigint NOT NULL, PRIMARY KEY (sync_id, partition))",
        )

    def fence_lock(self, sync: str, partition: int) -> str:
        """Rows (partition, delivery, epoch) of the sync and of the partition, held until the commit."""
        return (
            f"SELECT partition, delivery, epoch FROM {self.schema}.wsync_fence "
            f"WHERE sync_id = {self.literal(sync)} AND partition IN ({SYNC_PARTITION}, {partition:d}) ORDER BY partition FOR SHARE"
        )

    def fence_wait(self, sync: str, partition: int) -> str:
        """Wait for writers of the partition that are inside: they hold its row FOR SHARE, this takes it for itself, for a moment."""
        return (
            f"SELECT 1 FROM {self.schema}.wsync_fence WHERE sync_id = {self.literal(sync)} AND partition = {partition:d} FOR NO KEY UPDATE"
        )

    def fence_raise(self, sync: str, partition: int, *, delivery: int, epoch: int) -> str:
        """Raise a fence, never lower it; waits for writers inside."""
        return (
            f"INSERT INTO {self.schema}.wsync_fence AS f (sync_id, partition, delivery, epoch) "
            f"VALUES ({self.literal(sync)}, {partition:d}, {delivery:d}, {epoch:d}) "
            "ON CONFLICT (sync_id, partition) DO UPDATE SET delivery = EXCLUDED.delivery, epoch = EXCLUDED.epoch "
            "WHERE (f.delivery, f.epoch) < (EXCLUDED.delivery, EXCLUDED.epoch)"
        )

    def ack_insert(self, sync: str, run: str, *, delivery: int, partition: int, rows: RowRange) -> str:
        """Record a range; gives a row unless it begins where a recorded one does."""
        return (
            f"INSERT INTO {self.schema}.wsync_ack (sync_id, run_id, delivery, partition, first_row, last_row) "
            f"VALUES ({self.literal(sync)}, {self.literal(run)}, {delivery:d}, {partition:d}, {rows.first:d}, {rows.last:d}) "
            "ON CONFLICT DO NOTHING RETURNING first_row"
        )

    def ack_near(self, sync: str, run: str, *, partition: int, rows: RowRange) -> str:
        """Recorded ranges that may overlap: recorded ones never overlap each other, so the last that begins before, and those that begin within."""
        table = f"SELECT first_row, last_row FROM {self.schema}.wsync_ack WHERE {self._of(sync, run, partition)}"
        return (
            f"({table} AND first_row <= {rows.first:d} ORDER BY first_row DESC LIMIT 1) "
            f"UNION ALL ({table} AND first_row > {rows.first:d} AND first_row <= {rows.last:d})"
        )

    def ack_all(self, sync: str, run: str, *, partition: int) -> str:
        """All recorded ranges, in order."""
        return f"SELECT first_row, last_row FROM {self.schema}.wsync_ack WHERE {self._of(sync, run, partition)} ORDER BY first_row"

    def forget(self, sync: str, run: str, *, delivery: int) -> Sequence[str]:
        """Remove what earlier deliveries of the sync left; their writers are fenced off by the sync's own row.

        The acks of the last delivery before this one stay: the engine may ask for them until it has folded the run that ended.
        """
        of_sync = f"sync_id = {self.literal(sync)}"
        last = f"(SELECT max(delivery) FROM {self.schema}.wsync_ack WHERE {of_sync} AND delivery < {delivery:d})"
        return (
            f"DELETE FROM {self.schema}.wsync_ack WHERE {of_sync} AND delivery < {last} AND run_id <> {self.literal(run)}",
            f"DELETE FROM {self.schema}.wsync_fence WHERE {of_sync} AND delivery < {delivery:d} AND partition <> {SYNC_PARTITION}",
        )

    def _of(self, sync: str, run: str, partition: int) -> str:
        return f"sync_id = {self.literal(sync)} AND run_id = {self.literal(run)} AND partition = {partition:d}"


def missing_rows(rows: RowRange, recorded: Sequence[RowRange]) -> int:
    """How many of `rows` are in none of the recorded ranges, which don't overlap each other."""
    covered = sum(max(0, min(rows.last, other.last) - max(rows.first, other.first) + 1) for other in recorded)
    return rows.rows - covered


def sync_name(run: RunRef) -> str:
    """The sync's name in the bookkeeping: two tenants may share a destination, and ids have no blanks."""
    return f"{run.tenant_id} {run.sync_id}"


def fenced_off() -> StateError:
    """What a writer gets whose fence is higher than its own numbers."""
    return StateError("another delivery or a newer lease of this sync writes now", next_step="nothing to do: the newer one goes on")
