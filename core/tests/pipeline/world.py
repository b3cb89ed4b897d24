"""A sync with its warehouse, sink and real state store, whose runs are executed, and killed, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg.types.json import Jsonb

from wsync_engine.model.ids import uuid7
from wsync_engine.model.replay import ReplayOrder
from wsync_engine.model.sync import Guards, Mode, SyncSpec
from wsync_engine.pipeline.context import RunContext, no_faults
from wsync_engine.pipeline.deliver import RetryPolicy
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.job import Job, Outcome
from wsync_engine.pipeline.local_database import Budget
from wsync_engine.pipeline.run import execute
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state.books import RunBooks
from wsync_engine.state.holding import Claim
from wsync_engine.storage import LocalStorage
from wsync_sdk import (
    CheckReport,
    Chunk,
    Estimate,
    Held,
    Operation,
    PlanContext,
    PlanExpired,
    Preview,
    Query,
    ReadLimits,
    ReadPlan,
    RetryableError,
    RowError,
    RowRange,
    RunRef,
    Sink,
    Source,
    Split,
    StreamLimits,
    StreamSpec,
    Target,
    TransactionalSink,
    WriteMode,
    WriteResult,
    WsyncError,
)

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])


class Crash(BaseException):
    """The process dies here."""


class TableSource(Source):
    """A warehouse of one table, read in batches of ten rows through two splits."""

    def __init__(self, rows: dict[int, str]) -> None:
        self.rows = rows
        self.plans = 0
        self.expire_reads = 0

    def check(self) -> CheckReport:
        return CheckReport(findings=())

    def estimate(self, query: Query) -> Estimate:
        return Estimate()

    def preview(self, query: Query, rows: int) -> Preview:
        return Preview(schema=SCHEMA, rows=pa.RecordBatch.from_pylist([], schema=SCHEMA), estimate=Estimate())

    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        ctx.started(b"handle")
        self.plans += 1
        splits = (Split(index=0, token=b"0"), Split(index=1, token=b"1"))
        return ReadPlan(schema=SCHEMA, splits=splits, lifetime=Held(), handle=b"handle", connector_version="1")

    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        mine = [{"id": key, "name": name} for key, name in self.rows.items() if key % 2 == split.index]
        for start in range(0, len(mine), 10):
            yield pa.RecordBatch.from_pylist(mine[start : start + 10], schema=SCHEMA)
            if self.expire_reads:
                self.expire_reads -= 1
                raise PlanExpired("the snapshot is gone", next_step="plan again")

    def release(self, plan: ReadPlan) -> None:
        pass

    def cancel(self, handle: bytes) -> None:
        pass


class RecordingSink(Sink):
    """Applies what it is sent and remembers every call; does not deduplicate."""

    def __init__(self) -> None:
        self.contents: dict[int, str] = {}
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.refuse: frozenset[int] = frozenset()
        self.lose_replies = 0
        self.calls_per_s: float | None = None
        self.continues: list[int] = []
        self.needs_before: frozenset[str] = frozenset()
        self.write_modes = frozenset(WriteMode)
        self.sent_as: set[WriteMode] = set()
        self.refuse_begin: WsyncError | None = None
        self.fail: WsyncError | None = None
        self.fail_streams: dict[int, WsyncError] = {}
        self.asked_streams = 0
        self.verdict: Callable[[Chunk], WriteResult] | None = None

    def check(self) -> CheckReport:
        return CheckReport(findings=())

    def streams(self) -> Sequence[StreamSpec]:
        self.asked_streams += 1
        if self.asked_streams in self.fail_streams:
            raise self.fail_streams[self.asked_streams]
        limits = StreamLimits(max_rows=7, concurrency=3, calls_per_s=self.calls_per_s)
        return [
            StreamSpec(
                name="people",
                title="People",
                operations=frozenset(Operation),
                limits=limits,
                needs_before=self.needs_before,
                write_modes=self.write_modes,
            )
        ]

    def begin(self, run: RunRef, target: Target) -> bytes:
        if self.refuse_begin is not None:
            raise self.refuse_begin
        self.continues.append(run.continues)
        return b""

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        rows = chunk.to_rows()
        self.sent_as.add(chunk.run.write_mode)
        if self.fail is not None:
            raise self.fail
        if any(row["id"] in self.refuse for row in rows):
            raise RowError("refused", code="refused", next_step="mend the row")
        self.calls.append((chunk.key, tuple(row["id"] for row in rows)))
        if self.verdict is not None:
            return self.verdict(chunk)
        for row in rows:
            if row["wsync_op"] == "delete":
                self.contents.pop(row["id"], None)
            else:
                self.contents[row["id"]] = row["name"]
        if self.lose_replies:
            self.lose_replies -= 1
            raise RetryableError("reply lost", next_step="wait", retry_after_s=0.0)
        return WriteResult(accepted_rows=chunk.rows)


class RememberingSink(RecordingSink, TransactionalSink):
    """One that is asked what it applied, and does not say."""

    def recorded(self, run: RunRef, target: Target, partition: int) -> Sequence[RowRange]:
        assert self.fail is not None
        raise self.fail


class World:
    """A sync with its warehouse, sink and state; `run` makes a run and executes it, again after each crash."""

    def __init__(self, database: Any, folder: Path) -> None:
        self.source = TableSource({n: f"name {n}" for n in range(100)})
        self.sink = RecordingSink()
        self._earlier = count(1_000, -1)
        self.destination = "s/recording"
        self.rows_per_partition = Budget().rows_per_partition
        self.cipher = Keyring.throwaway().tenant(uuid7())
        self.storage = LocalStorage(root=folder, tenant_id="t")
        self.spec = SyncSpec(
            name="people", source="w", sink="s", query="SELECT", key=("id",), stream="people", mode=Mode.MIRROR, guards=Guards()
        )
        self.tenant_id, self.sync_id = uuid7(), uuid7()
        self.engine = psycopg.connect(database.engine_url, autocommit=True)
        self.api = psycopg.connect(database.api_url, autocommit=True)
        self.engine.execute("INSERT INTO wsync.tenant (tenant_id, name) VALUES (%s, %s)", (self.tenant_id, str(self.tenant_id)))
        connection_id = uuid7()
        self.engine.execute(
            "INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin) VALUES (%s, %s, 'c', 'none')",
            (connection_id, self.tenant_id),
        )
        self.engine.execute(
            "INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, spec, overlap_key)"
            " VALUES (%s, %s, 'people', %s, %s, '{}', %s)",
            (self.sync_id, self.tenant_id, connection_id, connection_id, self.sync_id),
        )

    def close(self) -> None:
        self.engine.close()
        self.api.close()

    def new_run(
        self,
        *,
        dry_run: bool = False,
        adopt: bool = False,
        is_beside: bool = False,
        is_earlier: bool = False,
        offer_rejected: bool = False,
        replay: ReplayOrder | None = None,
    ) -> UUID:
        """:param is_earlier: than all that were made."""
        run_id = UUID(int=next(self._earlier)) if is_earlier else uuid7()
        self.engine.execute(
            "INSERT INTO wsync.run (run_id, tenant_id, shard, sync_id, connection_id, credential_id, overlap_key, trigger, nominal_at,"
            " due_at, ready_at, priority, exclusive, state, dry_run, adopt, offer_rejected, replay)"
            " VALUES (%s, %s, 0, %s, %s, %s, %s, 'manual', now(), now(), now(), 1, %s, 'queued', %s, %s, %s, %s)",
            (
                run_id,
                self.tenant_id,
                self.sync_id,
                uuid7(),
                uuid7(),
                self.sync_id,
                not (dry_run or is_beside),
                dry_run,
                adopt,
                offer_rejected,
                None if replay is None else Jsonb(replay.to_json()),
            ),
        )
        return run_id

    def job(self, run_id: UUID, faults: Callable[[str], None] = no_faults) -> Job:
        """A claim by a new holder."""
        row = self.engine.execute(
            "UPDATE wsync.run SET state = 'running', epoch = epoch + 1, worker_id = %s WHERE run_id = %s RETURNING epoch, worker_id",
            (uuid7(), run_id),
        ).fetchone()
        assert row is not None
        return Job(
            sync_id=self.sync_id,
            sync_name="people",
            parameters={},
            spec=self.spec,
            source=self.source,
            sink=self.sink,
            destination=self.destination,
            books=RunBooks(
                self.api,
                tenant_id=self.tenant_id,
                run_id=run_id,
                claim=Claim(holder=run_id, epoch=row[0], worker_id=row[1]),
            ),
            storage=self.storage,
            cipher=self.cipher,
            context=RunContext(tag="test", faults=faults),
            seed="seed",
            budget=Budget(rows_per_partition=self.rows_per_partition),
            retry=RetryPolicy(tries=3, first_wait_s=0.0),
        )

    def run(self, faults: Callable[[str], None] = no_faults) -> Outcome:
        return execute(self.job(self.new_run(), faults))

    def run_beside(self) -> Outcome:
        """As under the policy `allow_all`, while another run of the sync is executed: one that was made before it, and whose worker had died."""
        return execute(self.job(self.new_run(is_beside=True, is_earlier=True)))

    def failed_run(self) -> WsyncError:
        """A run that fails, and is ended as a child does it."""
        job = self.job(self.new_run())
        try:
            raise AssertionError(f"the run did not fail: {execute(job)}")
        except WsyncError as exc:
            conclude(job, exc)
            return exc

    def adopt(self, faults: Callable[[str], None] = no_faults) -> Outcome:
        return execute(self.job(self.new_run(adopt=True), faults))

    def move(self) -> None:
        """As `apply` does when the sync goes to another destination."""
        self.engine.execute("UPDATE wsync.sync SET resync = resync + 1, forgotten = resync + 1 WHERE sync_id = %s", (self.sync_id,))

    def end_backoff(self) -> None:
        """As if the time had passed after which rejected rows are offered again."""
        for path in self.storage.snapshot_folder(str(self.sync_id)).glob("*.parquet"):
            entries = pq.read_table(path)
            place = entries.schema.get_field_index("wsync_offer_at")
            ended = pc.if_else(pc.is_valid(entries["wsync_offer_at"]), 0, entries["wsync_offer_at"])
            pq.write_table(entries.set_column(place, "wsync_offer_at", ended), path)

    def ask_for_resync(self) -> None:
        self.engine.execute("UPDATE wsync.sync SET resync = resync + 1 WHERE sync_id = %s", (self.sync_id,))

    def scalar(self, query: str, *values: object) -> Any:
        row = self.engine.execute(query, values).fetchone()  # type: ignore[arg-type]
        return None if row is None else row[0]


def crash_at(step: str, occurrence: int) -> Callable[[str], None]:
    seen = 0

    def faults(name: str) -> None:
        nonlocal seen
        if name == step:
            seen += 1
            if seen == occurrence:
                raise Crash(step)

    return faults


def change(world: World) -> None:
    """100 rows: ten change, five leave, five come."""
    for key in range(10):
        world.source.rows[key] = f"changed {key}"
    for key in range(20, 25):
        del world.source.rows[key]
    for key in range(200, 205):
        world.source.rows[key] = f"new {key}"
