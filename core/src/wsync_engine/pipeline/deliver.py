"""Deliver: send one partition's changes in chunks and store a verdict for every row.

For each chunk: its boundaries and `sent_at` are durable, then the call, then its acks. So whatever dies wherever, a row of the log is one of
acknowledged, rejected, maybe sent (`unsure`), or not sent, and nothing is forgotten. A chunk's key names the run, partition and rows: whoever sends these
rows again sends them under the same key.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wsync_engine.model.ids import uuid7
from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.chunking import cut, halves, leaves, remaining, verdict_ranges
from wsync_engine.pipeline.context import RunContext
from wsync_engine.pipeline.rejected_row import largest_field, payload_of
from wsync_engine.state.books import RunBooks
from wsync_engine.state.records import Ack, Cipher, NewRejection, SentChunk
from wsync_sdk import (
    BEFORE,
    Chunk,
    FatalError,
    Fence,
    PluginError,
    RetryableError,
    RowError,
    RowRange,
    RunRef,
    Sink,
    StreamLimits,
    Target,
    TransactionalSink,
    WriteResult,
)

__all__ = ["Delivery", "RetryPolicy", "deliver_partition", "is_covered", "missing_recorded"]

WINDOW_CHUNKS = 16
MOST_WINDOW_ROWS = 32_768
MOST_REFUSED_ROWS = 1_000
"""So many refused rows before a single one is taken end the run: each costs calls, and a million of them nobody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often one chunk is tried, and the bounds of the wait between (full jitter)."""

    tries: int = 5
    first_wait_s: float = 0.5
    max_wait_s: float = 30.0


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the destination said so far of all rows of the run."""

    has_accepted: bool = False
    refused: int = 0

    def note(self, verdict: str, rows: int) -> None:
        """A verdict on some rows."""
        self.has_accepted |= verdict == "accepted"
        self.refused += rows if verdict == "rejected" else 0

    def refusal(self) -> FatalError | None:
        """Why it is no use to go on, if it is none."""
        if self.has_accepted or self.refused < MOST_REFUSED_ROWS:
            return None
        return FatalError(
            f"the destination refused the first {self.refused} changes, and took none",
            next_step="see `wsync-engine runs rejections`, correct the mapping, the rows or the destination, then run the sync again",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What all chunks of one run's delivery share."""

    sink: Sink
    token: bytes
    run: RunRef
    target: Target
    limits: StreamLimits
    books: RunBooks
    cipher: Cipher
    context: RunContext
    retry: RetryPolicy
    call_timeout_s: float = 9.0
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """A chunk that the sink refused for what some of its rows hold."""

    error: RowError


class _Pace:
    """Keeps calls apart as the stream's limit asks. Any thread."""

    def __init__(self, calls_per_s: float | None) -> None:
        self._apart_s = 1 / calls_per_s if calls_per_s else 0.0
        self._next_s = 0.0
        self._lock = threading.Lock()

    def reserve_s(self) -> float:
        """Take the next free place; how long it is until then."""
        with self._lock:
            now_s = time.monotonic()
            at_s = max(now_s, self._next_s)
            self._next_s = at_s + self._apart_s
            return at_s - now_s


def deliver_partition(delivery: Delivery, reader: ChangeLogReader, partition: int, *, epoch: int) -> None:
    """Send what has no verdict yet; returns when every row has one.

    :param epoch: of the partition's holder: a destination that compares them refuses earlier ones.

    :raises WsyncError: what ended the delivery; chunks that were sent without a verdict stay so.
    """
    _Partition(delivery, reader, partition, epoch).run()


class _Partition:
    """One partition's delivery: a window of chunks is marked sent, sent by a few threads, acknowledged together."""

    def __init__(self, delivery: Delivery, reader: ChangeLogReader, partition: int, epoch: int) -> None:
        self._epoch = epoch
        self._d = delivery
        self._reader = reader
        self._partition = partition
        self._pace = _Pace(delivery.limits.calls_per_s)

    def run(self) -> None:
        acks = self._d.books.acks(self._d.books.run_id, self._partition)
        for ack in acks:  # of a holder before us
            self._d.tally.note(ack.verdict, ack.range.rows)
        acked = [ack.range for ack in acks]
        acked += self._adopt_recorded(acked)
        sent = [chunk for chunk in leaves(self._d.books.chunks(self._d.books.run_id, self._partition)) if not is_covered(chunk, acked)]
        with ThreadPoolExecutor(max_workers=self._d.limits.concurrency, thread_name_prefix="deliver") as pool:
            for start in range(0, len(sent), WINDOW_CHUNKS):
                self._send_window(pool, [self._chunk(span, *self._rendered(span)) for span in sent[start : start + WINDOW_CHUNKS]])
            for window in self._fresh_windows(remaining(self._reader.rows, [*acked, *sent])):
                self._send_window(pool, window)

    def _adopt_recorded(self, acked: Sequence[RowRange]) -> list[RowRange]:
        """A transactional sink knows what it applied: that is acknowledged without being sent again."""
        if not isinstance(self._d.sink, TransactionalSink):
            return []
        with self._d.context.destination.asked():
            missing = missing_recorded(self._d.sink, self._d.run, self._d.target, self._partition, acked)
        if missing:
            self._d.books.record_acks([self._ack(span, "accepted") for span in missing], [])
            self._d.tally.has_accepted = True
        return missing

    def _fresh_windows(self, gaps: Sequence[RowRange]) -> Iterator[list[Chunk]]:
        """Rows that were never sent, rendered once a window and cut into chunks."""
        limits = self._d.limits
        window_rows = min(limits.max_rows * WINDOW_CHUNKS, max(limits.max_rows, MOST_WINDOW_ROWS))
        for gap in gaps:
            first = gap.first
            while first <= gap.last:
                span = self._window(RowRange(first, min(gap.last, first + window_rows - 1)))
                changes, records = self._rendered(span)
                sizes = _record_bytes(changes, records)
                chunks = cut(first, sizes, max_rows=limits.max_rows, max_bytes=limits.max_bytes)
                kept = self._without_oversized(chunks, first, sizes)
                for start in range(0, len(kept), WINDOW_CHUNKS):
                    yield [self._chunk(c, *_part(changes, records, c, first)) for c in kept[start : start + WINDOW_CHUNKS]]
                first = span.last + 1

    def _window(self, span: RowRange) -> RowRange:
        """As much of the span as is rendered at once: wide rows are few in a row group. Whole chunks, where it holds some."""
        near = self._reader.within(span)
        whole = near.rows // self._d.limits.max_rows * self._d.limits.max_rows
        return RowRange(near.first, near.first + whole - 1) if near.last < span.last and whole else near

    def _without_oversized(self, chunks: list[RowRange], first: int, sizes: npt.NDArray[np.int64]) -> list[RowRange]:
        """Rows beyond the stream's record limit are rejections and never sent; the chunks are cut around them."""
        limit = self._d.limits.max_record_bytes
        if limit is None or int(sizes.max(initial=0)) <= limit:
            return chunks
        spans = [RowRange(first + int(place), first + int(place)) for place in np.flatnonzero(sizes > limit)]
        rejections = [self._oversized(span.first, limit) for span in spans]
        self._d.books.record_acks([self._ack(span, "rejected") for span in spans], rejections)
        self._d.context.count("rejected", len(spans))
        self._d.tally.note("rejected", len(spans))
        kept: list[RowRange] = []
        for chunk in chunks:
            inside = [RowRange(s.first - chunk.first, s.last - chunk.first) for s in spans if chunk.first <= s.first <= chunk.last]
            kept += [RowRange(chunk.first + gap.first, chunk.first + gap.last) for gap in remaining(chunk.rows, inside)]
        return kept

    def _send_window(self, pool: ThreadPoolExecutor, window: Sequence[Chunk]) -> None:
        """Send chunks side by side; a refused one is cut in halves that join the window."""
        if not window:
            return
        self._d.context.border()
        self._mark([chunk.range for chunk in window])
        running: dict[Future[WriteResult | _Refused], Chunk] = {}
        error: BaseException | None = None
        todo = list(window)
        while todo or running:
            while todo and error is None and len(running) < self._d.limits.concurrency:
                chunk = todo.pop(0)
                running[pool.submit(self._try, chunk)] = chunk
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            finished = [(running.pop(future), future) for future in done]
            results, error = _sorted_out(finished, error)
            todo += self._settle(results) if error is None else self._settle_without_halves(results)
            error = error or self._d.tally.refusal()
        if error is not None:
            raise error

    def _mark(self, spans: Sequence[RowRange]) -> None:
        self._d.context.faults("before_mark_sent")
        self._d.books.mark_sent([SentChunk(partition=self._partition, range=span) for span in spans])
        self._d.context.faults("after_mark_sent")

    def _settle(self, results: Sequence[tuple[Chunk, WriteResult | _Refused]]) -> list[Chunk]:
        """Store verdicts; give the halves of what was refused as a whole."""
        self._settle_without_halves(results)
        refused = [chunk for chunk, result in results if isinstance(result, _Refused) and chunk.rows > 1]
        parts = [
            self._chunk(half, *_part(chunk.changes, chunk.records, half, chunk.range.first))
            for chunk in refused
            for half in halves(chunk.range)
        ]
        if parts:
            self._mark([part.range for part in parts])
        return parts

    def _settle_without_halves(self, results: Sequence[tuple[Chunk, WriteResult | _Refused]]) -> list[Chunk]:
        acks: list[Ack] = []
        rejections: list[NewRejection] = []
        for chunk, result in results:
            if isinstance(result, WriteResult):
                self._judge(chunk, result, acks, rejections)
            elif chunk.rows == 1:
                acks.append(self._ack(chunk.range, "rejected"))
                rejections.append(self._rejection(chunk.range.first, result.error.code, result.error.message, retryable=False))
        if acks:
            self._d.context.faults("before_ack")
            self._d.books.record_acks(acks, rejections)
            self._d.context.faults("after_ack")
        for ack in acks:
            self._d.context.count(ack.verdict, ack.range.rows)
            self._d.tally.note(ack.verdict, ack.range.rows)
        return []

    def _judge(self, chunk: Chunk, result: WriteResult, acks: list[Ack], rejections: list[NewRejection]) -> None:
        rejected = {rejection.row: rejection for rejection in result.rejections}
        for span, verdict in verdict_ranges(chunk.range, rejected, result.unknown):
            acks.append(self._ack(span, verdict))
        for place, rejection in rejected.items():
            row = chunk.range.first + place
            rejections.append(self._rejection(row, rejection.code, rejection.message, retryable=rejection.retryable))

    def _try(self, chunk: Chunk) -> WriteResult | _Refused:
        """One chunk, with repetitions, in a pool thread."""
        policy = self._d.retry
        for attempt in range(1, policy.tries + 1):
            self._d.context.pause(self._pace.reserve_s())
            self._d.context.await_right_to_write()
            self._d.context.border()
            try:
                with self._d.context.destination.called():
                    result = self._d.sink.write(chunk, self._d.token)
                self._d.context.destination.answered()
                self._d.context.faults("after_write")
                return _checked(chunk, result)
            except RowError as exc:
                self._d.context.destination.answered()
                return _Refused(error=exc)
            except RetryableError as exc:
                # Who asks for a longer wait than a slot may be held for gets it in the queue.
                if attempt == policy.tries or (exc.retry_after_s or 0) > policy.max_wait_s:
                    raise
                backoff = random.random() * min(policy.max_wait_s, policy.first_wait_s * 2.0 ** (attempt - 1))
                self._d.context.pause(exc.retry_after_s if exc.retry_after_s is not None else backoff)
        raise AssertionError("unreachable")

    def _chunk(self, span: RowRange, changes: pa.RecordBatch, records: Any) -> Chunk:
        return Chunk(
            key=f"{self._d.run.run_id}.{self._partition}.{span.first}-{span.last}",
            run=self._d.run,
            partition=self._partition,
            range=span,
            target=self._d.target,
            changes=changes,
            records=records,
            fence=Fence(sync_id=self._d.run.sync_id, delivery=self._d.run.delivery, partition=self._partition, epoch=self._epoch),
            timeout_s=self._d.call_timeout_s,
        )

    def _rendered(self, span: RowRange) -> tuple[pa.RecordBatch, Any]:
        changes = self._reader.read(span)
        records = self._d.sink.render(changes, self._d.target)
        if records is not None and len(records) != changes.num_rows:
            raise PluginError(
                "render gave another number of records than there are changes", next_step="report it to the connector's author"
            )
        return changes, records

    def _ack(self, span: RowRange, verdict: str) -> Ack:
        return Ack(partition=self._partition, range=span, verdict=verdict)

    def _oversized(self, row: int, limit: int) -> NewRejection:
        largest = largest_field(self._reader.read(RowRange(row, row)))
        message = f"`{largest}`: the record is larger than {limit} bytes, and this is its largest field"
        return self._rejection(row, "record_too_large", message, retryable=False)

    def _rejection(self, row: int, code: str, message: str, *, retryable: bool) -> NewRejection:
        payload = self._reader.read(RowRange(row, row))
        if BEFORE in payload.schema.names:  # what was refused is the row
            payload = payload.drop_columns([BEFORE])
        return NewRejection(
            rejection_id=uuid7(),
            partition=self._partition,
            row=row,
            phase="deliver",
            code=code,
            message=message,
            retryable=retryable,
            payload=self._d.cipher.encrypt(payload_of(payload, self._d.target.key)),
        )


def _part(changes: pa.RecordBatch, records: Any, span: RowRange, first: int) -> tuple[pa.RecordBatch, Any]:
    """The rows of `span` out of a batch whose first row has the number `first`; nothing is copied."""
    start = span.first - first
    return changes.slice(start, span.rows), None if records is None else records.slice(start, span.rows)


def _checked(chunk: Chunk, result: WriteResult) -> WriteResult:
    """A result whose rows add up, or the connector is at fault and nothing is known of the chunk."""
    places = [rejection.row for rejection in result.rejections] + list(result.unknown)
    adds_up = result.accepted_rows + len(places) == chunk.rows and len(set(places)) == len(places)
    if not adds_up or any(not 0 <= place < chunk.rows for place in places):
        raise PluginError("write gave verdicts that do not add up to the chunk's rows", next_step="report it to the connector's author")
    return result


def _sorted_out(
    finished: Sequence[tuple[Chunk, Future[WriteResult | _Refused]]], error: BaseException | None
) -> tuple[list[tuple[Chunk, WriteResult | _Refused]], BaseException | None]:
    results = []
    for chunk, future in finished:
        failure = future.exception()
        if failure is None:
            results.append((chunk, future.result()))
        else:
            error = error or failure
    return results, error


def missing_recorded(sink: TransactionalSink, run: RunRef, target: Target, partition: int, acked: Sequence[RowRange]) -> list[RowRange]:
    """Ranges that the sink says it applied and that have no ack here."""
    return [span for span in sink.recorded(run, target, partition) if not is_covered(span, acked)]


def is_covered(span: RowRange, ranges: Sequence[RowRange]) -> bool:
    """Whether the ranges hold all rows of `span`."""
    return not remaining(span.rows, [RowRange(r.first - span.first, r.last - span.first) for r in ranges if r.last >= span.first])


def _record_bytes(changes: pa.RecordBatch, records: Any) -> npt.NDArray[np.int64]:
    """Bytes of each record as the limits count them; without records, the batch's mean."""
    if records is None:
        return np.full(changes.num_rows, max(1, changes.nbytes // max(1, changes.num_rows)), dtype=np.int64)
    lengths: npt.NDArray[np.int64] = pc.binary_length(records).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths
