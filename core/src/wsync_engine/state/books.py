"""What one run writes into Postgres while it works: plan, splits, change log, chunks, acks, rejections, and its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from wsync_engine.model.run import final_step
from wsync_engine.state.holding import Claim, HeldRun
from wsync_engine.state.records import Ack, NewRejection, NewSnapshot, PublishedSplit, RunRecord, SentChunk, SnapshotRow
from wsync_engine.state.turns import await_earlier
from wsync_sdk import FatalError, PlanExpired, RetryableError, RowRange, StateError, WsyncError

__all__ = ["DELIVERY_WAIT_S", "IS_OVER", "TERMINAL", "RunBooks", "Settlement"]

TERMINAL = ("succeeded", "partial", "failed", "cancelled")
IS_OVER = (  # one parameter: TERMINAL. A terminated run's process may live, and write, as long as its lease is not over; helpers as long as they have not ended.
    "(state = ANY(%s::wsync.run_state[]) AND (cancel_reason IS DISTINCT FROM 'terminated' OR coalesce(lease_until <= wsync.clock(), true))"
    " AND NOT EXISTS (SELECT FROM wsync.run AS h WHERE h.helps = run.run_id AND h.state IN ('running', 'cancelling')))"
)
DELIVERY_WAIT_S = 5.0
"""Until a run looks again whether the one that delivers has ended."""


class Settlement(Protocol):
    """Counts the end of a run for whoever wanted it, in the transaction that stores the end. The tenant is set there."""

    def lock(self, conn: psycopg.Connection[Any], run_id: UUID) -> bool:
        """Take what must be locked before the run is; False: it can't be had now, and `count` is not to be called."""
        ...

    def count(self, conn: psycopg.Connection[Any], run_id: UUID, epoch: int, outcome: str) -> None:
        """Count it."""
        ...


def _stale_plan(*, is_approved: bool) -> WsyncError:
    message = "stale plan: another run of the sync has delivered since"
    if is_approved:
        return FatalError(message, next_step="run the sync again")
    return PlanExpired(message, next_step="nothing: it is planned again", retry_after_s=DELIVERY_WAIT_S)


def _error_columns(error: WsyncError | None, run_id: UUID) -> tuple[str | None, str | None, str | None]:
    return (None, None, None) if error is None else (type(error).__name__, error.message, final_step(error.next_step, run_id))


class RunBooks(HeldRun):
    """One run's writes.

    :param conn: autocommit; used by one thread. :param settlement: None: nobody counts how it ends.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        *,
        tenant_id: UUID,
        run_id: UUID,
        claim: Claim,
        settlement: Settlement | None = None,
    ) -> None:
        super().__init__(conn, tenant_id=tenant_id, run_id=run_id, claim=claim)
        self._settlement = settlement

    # -- reading

    def load(self) -> RunRecord:
        """The run as it stands now.

        :raises StateError: there is no such run, or the epoch is no longer ours.
        """
        with self.fenced() as cursor:
            return self._record(cursor, self.run_id)

    def unfolded(self, sync_id: UUID) -> Sequence[UUID]:
        """Ended runs of the sync that delivered and are not folded yet, oldest first. Not those that may still write."""
        with self.fenced() as cursor:
            rows = cursor.execute(
                "SELECT run_id FROM wsync.run WHERE sync_id = %s AND run_id <> %s AND delivery IS NOT NULL AND folded_at IS NULL"
                f" AND {IS_OVER} ORDER BY delivery",
                (sync_id, self.run_id, list(TERMINAL)),
            ).fetchall()
        return [row[0] for row in rows]

    def record_of(self, run_id: UUID) -> RunRecord:
        """Another run of this tenant."""
        with self.fenced() as cursor:
            return self._record(cursor, run_id)

    def snapshot(self, sync_id: UUID) -> SnapshotRow:
        """The sync's snapshot now."""
        with self.fenced() as cursor:
            row = cursor.execute(
                "SELECT coalesce(s.version, 0), s.manifest, y.resync, y.forgotten, y.delivery, s.cursor, y.key_resync, y.unsure_keys, wsync.clock()"
                " FROM wsync.sync y LEFT JOIN wsync.snapshot s USING (tenant_id, sync_id) WHERE y.sync_id = %s",
                (sync_id,),
            ).fetchone()
        if row is None:
            raise StateError("the run's sync does not exist any more", next_step="nothing to do: it was purged")
        return SnapshotRow(**dict(zip(SnapshotRow.__slots__, row, strict=True)))

    def splits(self, generation: int) -> list[PublishedSplit]:
        """The published splits of one plan."""
        with self.fenced() as cursor:
            rows = cursor.execute(
                "SELECT part, files, read_rows, counts FROM wsync.split"
                " WHERE run_id = %s AND plan_generation = %s AND state = 'published' ORDER BY part",
                (self.run_id, generation),
            ).fetchall()
        return [
            PublishedSplit(
                part=part,
                files={int(partition): list(paths) for partition, paths in files.items()},
                read_rows=read_rows,
                refused_rows=counts["refused"],
                unreadable_keys=counts["unreadable_keys"],
                cursor=counts.get("cursor"),
                null_cursors=counts.get("null_cursors", 0),
            )
            for part, files, read_rows, counts in rows
        ]

    def chunks(self, run_id: UUID, partition: int) -> list[RowRange]:
        """Chunks of a partition that may have been sent, in order."""
        with self.fenced() as cursor:
            rows = cursor.execute(
                "SELECT first_row, last_row FROM wsync.chunk WHERE run_id = %s AND partition = %s AND sent_at IS NOT NULL"
                " ORDER BY first_row, last_row",
                (run_id, partition),
            ).fetchall()
        return [RowRange(first, last) for first, last in rows]

    def acks(self, run_id: UUID, partition: int) -> list[Ack]:
        """Verdicts of a partition, in order."""
        with self.fenced() as cursor:
            rows = cursor.execute(
                "SELECT first_row, last_row, verdict FROM wsync.ack WHERE run_id = %s AND partition = %s ORDER BY first_row",
                (run_id, partition),
            ).fetchall()
        return [Ack(partition=partition, range=RowRange(first, last), verdict=verdict) for first, last, verdict in rows]

    # -- plan and extract

    def begin_plan(self) -> int:
        """Open a new plan generation; what earlier ones staged or compared no longer counts."""
        with self.fenced("plan.started") as cursor:
            row = cursor.execute(
                "UPDATE wsync.run SET plan_generation = plan_generation + 1, plan = NULL, comparison = NULL, change_log = NULL, phase = 'plan'"
                " WHERE run_id = %s AND delivery IS NULL RETURNING plan_generation",
                (self.run_id,),
            ).fetchone()
            if row is None:
                raise StateError("a run that may have sent rows never plans again", next_step="report this")
            cursor.execute("DELETE FROM wsync.split WHERE run_id = %s", (self.run_id,))
            cursor.execute("DELETE FROM wsync.task WHERE run_id = %s", (self.run_id,))
            cursor.execute("DELETE FROM wsync.rejection WHERE tenant_id = %s AND run_id = %s", (self.tenant_id, self.run_id))
            return int(row[0])

    def store_handle(self, handle: bytes) -> None:
        """Make the warehouse handle durable; comes before the query runs."""
        with self.fenced() as cursor:
            cursor.execute("UPDATE wsync.run SET warehouse_query = %s WHERE run_id = %s", (handle, self.run_id))

    def store_plan(self, plan: bytes, base_version: int) -> None:
        """Store the (encrypted) plan, with all that its reads need to know, and the snapshot version the run starts from."""
        with self.fenced("plan.stored") as cursor:
            cursor.execute(
                "UPDATE wsync.run SET plan = %s, base_version = %s, phase = 'extract' WHERE run_id = %s", (plan, base_version, self.run_id)
            )

    def publish_split(self, generation: int, split: PublishedSplit) -> None:
        """From here on the split's staged files count."""
        counts: dict[str, Any] = {"refused": split.refused_rows, "unreadable_keys": split.unreadable_keys}
        counts |= {"cursor": split.cursor, "null_cursors": split.null_cursors}
        with self.fenced("split.published", {"part": split.part, "read_rows": split.read_rows}) as cursor:
            cursor.execute(
                "INSERT INTO wsync.split (run_id, plan_generation, part, tenant_id, state, files, read_rows, counts, epoch, published_at)"
                " SELECT run_id, plan_generation, %s, tenant_id, 'published', %s, %s, %s, %s, wsync.clock() FROM wsync.run"
                " WHERE run_id = %s AND plan_generation = %s ON CONFLICT DO NOTHING",
                (split.part, Jsonb(split.files), split.read_rows, Jsonb(counts), self.claim.epoch, self.run_id, generation),
            )

    # -- diff and guards

    def store_comparison(self, comparison: Mapping[str, Any]) -> None:
        """From here on all is read, and whoever executes the run goes on with what is staged."""
        with self.fenced("extract.done") as cursor:
            cursor.execute("UPDATE wsync.run SET comparison = %s, phase = 'diff' WHERE run_id = %s", (Jsonb(comparison), self.run_id))

    def store_change_log(self, change_log: Mapping[str, Any], counts: Mapping[str, int]) -> None:
        """From here on the change log is what the run delivers."""
        with self.fenced("change_log.stored", dict(counts)) as cursor:
            cursor.execute(
                "UPDATE wsync.run SET change_log = %s, counts = %s, comparison = NULL, phase = 'deliver' WHERE run_id = %s",
                (Jsonb(change_log), Jsonb(counts), self.run_id),
            )

    def block(self, reasons: Sequence[str]) -> None:
        """A guard stopped the run, or it was a dry run: it waits for approve or discard, without a worker."""
        with self.fenced("run.blocked", {"reasons": list(reasons)}) as cursor:
            cursor.execute(
                "UPDATE wsync.run SET state = 'blocked', guards = %s, outcome_reason = %s, worker_id = NULL, lease_until = NULL"
                " WHERE run_id = %s AND state = 'running'",
                (Jsonb(list(reasons)), "; ".join(reasons), self.run_id),
            )

    # -- deliver

    def await_turn(self, sync_id: UUID) -> None:
        """See that nothing is read which is compared anew before it can be delivered: runs of a sync go one after the other, first made first.

        :raises RetryableError: an earlier run of the sync is executed, or another one delivers, or may still; this one goes on after it.
        """
        with self.fenced() as cursor:
            await_earlier(cursor, sync_id, self.run_id)
            self._is_alone(cursor, sync_id)

    def is_folded(self, run_id: UUID) -> bool:
        """Whether somebody has folded another run."""
        with self.fenced() as cursor:
            return self._record(cursor, run_id).folded

    def is_stale(self, sync_id: UUID, planned_after: int | None) -> bool:
        """Whether this run's plan can't be delivered any more, as `start_delivery` would find; nobody approved it."""
        with self.fenced() as cursor:
            _, is_current, is_approved = self._standing(cursor, planned_after)
            return not is_approved and not (is_current and self._is_alone(cursor, sync_id))

    def _standing(self, cursor: psycopg.Cursor[Any], planned_after: int | None) -> tuple[int | None, bool, bool]:
        """(its delivery, whether no run of the sync was let deliver or folded since its plan, whether somebody approved it)."""
        row = cursor.execute(
            "SELECT r.delivery, coalesce(s.version, 0) = r.base_version AND y.delivery = coalesce(%s, y.delivery), r.approved_by IS NOT NULL"
            " FROM wsync.run r JOIN wsync.sync y USING (tenant_id, sync_id) LEFT JOIN wsync.snapshot s USING (tenant_id, sync_id) WHERE r.run_id = %s",
            (planned_after, self.run_id),
        ).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    def start_delivery(self, sync_id: UUID, planned_after: int | None) -> int:
        """Let this run deliver: compare the snapshot it started from, and raise the sync's delivery number, in one transaction. One run of a
        sync delivers at a time, also where others may be executed beside it.

        :param planned_after: the sync's delivery number at the plan: who was let deliver since has read later, also if there was nothing to send.
            None: not known, an older engine planned it.
        :raises RetryableError: another run of the sync delivers, or may still; this one goes on after it.
        :raises PlanExpired: the snapshot has moved on since the plan ("stale plan"), or will when what another run left is folded.
        :raises FatalError: so it has, and somebody approved just this plan.
        """
        with self.fenced("delivery.started") as cursor:
            cursor.execute("SELECT delivery FROM wsync.sync WHERE sync_id = %s FOR NO KEY UPDATE", (sync_id,))
            delivery, is_current, is_approved = self._standing(cursor, planned_after)
            if delivery is not None:
                return int(delivery)
            is_folded = self._is_alone(cursor, sync_id)
            if not (is_current and is_folded):
                raise _stale_plan(is_approved=is_approved)
            number = cursor.execute(
                "UPDATE wsync.sync SET delivery = delivery + 1 WHERE sync_id = %s RETURNING delivery", (sync_id,)
            ).fetchone()
            assert number is not None
            cursor.execute("UPDATE wsync.run SET delivery = %s, phase = 'deliver' WHERE run_id = %s", (number[0], self.run_id))
            return int(number[0])

    def _is_alone(self, cursor: psycopg.Cursor[Any], sync_id: UUID) -> bool:
        """Whether all that other runs of the sync delivered is folded; the caller holds the sync.

        :raises RetryableError: one of them is not at its end, or was terminated and its process may still live.
        """
        rows = cursor.execute(
            f"SELECT {IS_OVER} FROM wsync.run WHERE sync_id = %s AND run_id <> %s AND delivery IS NOT NULL AND folded_at IS NULL",
            (list(TERMINAL), sync_id, self.run_id),
        ).fetchall()
        if not all(is_ended for (is_ended,) in rows):
            raise RetryableError(
                "another run of the sync is delivering", next_step="nothing: this one goes on after it", retry_after_s=DELIVERY_WAIT_S
            )
        return not rows

    def store_token(self, token: bytes) -> None:
        """Store what `Sink.begin` gave, before the first write."""
        with self.fenced() as cursor:
            cursor.execute("UPDATE wsync.run SET sink_token = %s WHERE run_id = %s", (token, self.run_id))

    def start_commit(self) -> None:
        """Durable before the call: from here on the run's version may be what the destination shows."""
        with self.fenced("commit.started") as cursor:
            cursor.execute("UPDATE wsync.run SET commit_started_at = wsync.clock() WHERE run_id = %s", (self.run_id,))

    def mark_sent(self, chunks: Sequence[SentChunk]) -> None:
        """Durable before the calls: from here on these rows may be at the destination."""
        with self.fenced() as cursor:
            cursor.executemany(
                "INSERT INTO wsync.chunk (run_id, partition, first_row, last_row, tenant_id, sent_at)"
                " VALUES (%s, %s, %s, %s, %s, wsync.clock())"
                " ON CONFLICT (run_id, partition, first_row, last_row) DO UPDATE SET sent_at = coalesce(chunk.sent_at, excluded.sent_at)",
                [(self.run_id, chunk.partition, chunk.range.first, chunk.range.last, self.tenant_id) for chunk in chunks],
            )

    def record_acks(self, acks: Sequence[Ack], rejections: Sequence[NewRejection], *, of_run: UUID | None = None) -> None:
        """Store verdicts; the same range twice is stored once.

        :param of_run: a predecessor that ended without them, which this run folds; None: this run.
        """
        with self.fenced() as cursor:
            cursor.executemany(
                "INSERT INTO wsync.ack (run_id, partition, first_row, last_row, tenant_id, epoch, verdict, at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, wsync.clock()) ON CONFLICT DO NOTHING",
                [
                    (of_run or self.run_id, a.partition, a.range.first, a.range.last, self.tenant_id, self.claim.epoch, a.verdict)
                    for a in acks
                ],
            )
            self.insert_rejections(cursor, rejections)

    # -- finish

    def finish(
        self,
        *,
        outcome: str,
        reason: str,
        counts: Mapping[str, int],
        error: WsyncError | None,
        fold: NewSnapshot | None,
        is_folded: bool = True,
        sync_id: UUID,
    ) -> None:
        """End the run: snapshot, counts and outcome in one transaction, and what its end means for its schedule.

        :param error: what stopped the run, if something did. :param fold: None where nothing was sent, and no cursor moves.
        """
        detail = {"outcome": outcome, "reason": reason, **counts}
        with (
            self.transaction(),
            self._settled(outcome) as is_counted,
            self.fenced("run.finished", detail, lock="FOR UPDATE") as cursor,
        ):
            if fold is not None:
                self._swap(cursor, sync_id, self.run_id, fold)
            cursor.execute(
                "WITH tasks AS (DELETE FROM wsync.task WHERE run_id = %s)"
                " UPDATE wsync.run SET state = CAST(%s AS wsync.run_state), outcome_reason = %s, counts = %s, error_class = %s, error = %s,"
                " next_step = %s,"
                " finished_at = wsync.clock(), folded_at = CASE WHEN %s THEN wsync.clock() END, worker_id = NULL, lease_until = NULL, phase = %s"
                " WHERE run_id = %s",
                (
                    self.run_id,
                    outcome,
                    reason,
                    Jsonb(dict(counts)),
                    *_error_columns(error, self.run_id),
                    is_folded,
                    "finish" if is_counted else "count",
                    self.run_id,
                ),
            )

    def fold_other(self, run_id: UUID, sync_id: UUID, fold: NewSnapshot | None) -> bool:
        """Fold what an ended run left unfolded; False: someone else has done it, and nothing was written."""
        with self.fenced() as cursor:
            row = cursor.execute("SELECT folded_at IS NULL FROM wsync.run WHERE run_id = %s FOR UPDATE", (run_id,)).fetchone()
            if row is None or not row[0]:
                return False
            if fold is not None:
                self._swap(cursor, sync_id, run_id, fold)
            cursor.execute("UPDATE wsync.run SET folded_at = wsync.clock() WHERE run_id = %s", (run_id,))
            self.write_event(cursor, "run.folded", {"run": str(run_id)})
        return True

    def event(self, kind: str, detail: Mapping[str, Any] | None = None) -> None:
        """Write one event of the run."""
        with self.fenced(kind, detail):
            pass

    # -- inside

    @contextmanager
    def _settled(self, outcome: str) -> Iterator[bool]:
        """The end is counted in its own transaction: nobody has to live on for that. Where it can't be, the supervisor counts it, or a scheduler.

        Gives whether it is counted here.
        """
        is_counted = self._settlement is None or self._settlement.lock(self._conn, self.run_id)
        yield is_counted
        if self._settlement is not None and is_counted:
            self._settlement.count(self._conn, self.run_id, self.claim.epoch, outcome)

    def _record(self, cursor: psycopg.Cursor[Any], run_id: UUID) -> RunRecord:
        row = cursor.execute(
            "SELECT run_id, sync_id, state::text, dry_run, adopt, offer_rejected, replay, plan, plan_generation, base_version, delivery, sink_token,"
            " change_log, counts, approved_by, folded_at IS NOT NULL, comparison, fanned, commit_started_at IS NOT NULL FROM wsync.run WHERE run_id = %s",
            (run_id,),
        ).fetchone()
        if row is None:
            raise StateError("there is no such run", next_step="`wsync-engine runs list`")
        names = tuple(RunRecord.__dataclass_fields__)
        values = dict(zip(names, row, strict=True))
        values["counts"] = values["counts"] or {}
        return RunRecord(**values)

    def _swap(self, cursor: psycopg.Cursor[Any], sync_id: UUID, run_id: UUID, new: NewSnapshot) -> None:
        # With the version it belongs to: a swap by an engine that knows of no cursors leaves this one behind, and it counts no more.
        stored = None if new.cursor is None else Jsonb({**new.cursor, "version": new.base + 1})
        row = cursor.execute(
            "INSERT INTO wsync.snapshot AS s (sync_id, tenant_id, version, manifest, cursor, run_id, updated_at)"
            " VALUES (%(sync)s, %(tenant)s, %(base)s + 1, %(manifest)s, %(cursor)s, %(run)s, wsync.clock())"
            " ON CONFLICT (sync_id) DO UPDATE SET version = s.version + 1, manifest = excluded.manifest, cursor = excluded.cursor,"
            " run_id = excluded.run_id, updated_at = excluded.updated_at WHERE s.version = %(base)s RETURNING version",
            {
                "sync": sync_id,
                "tenant": self.tenant_id,
                "base": new.base,
                "manifest": Jsonb(dict(new.manifest)),
                "cursor": stored,
                "run": run_id,
            },
        ).fetchone()
        if row is None or row[0] != new.base + 1:
            raise StateError("the snapshot has changed under this run", next_step="run the sync again")
        cursor.execute(  # people's keys stay no longer than they are needed
            "UPDATE wsync.sync SET unsure_keys = NULL WHERE sync_id = %s AND unsure_keys IS NOT NULL AND key_resync <= %s",
            (sync_id, new.manifest.get("key_resync", 0)),
        )

    def insert_rejections(self, cursor: psycopg.Cursor[Any], rejections: Sequence[NewRejection]) -> None:
        """List refused rows, in a transaction of this process."""
        if not rejections:
            return
        cursor.executemany(
            "INSERT INTO wsync.rejection (rejection_id, tenant_id, sync_id, run_id, partition, row, phase, code, message, retryable, payload, at)"
            " SELECT %s, tenant_id, sync_id, run_id, %s, %s, %s, %s, %s, %s, %s, wsync.clock() FROM wsync.run WHERE run_id = %s"
            " ON CONFLICT DO NOTHING",
            [(r.rejection_id, r.partition, r.row, r.phase, r.code, r.message, r.retryable, r.payload, self.run_id) for r in rejections],
        )
