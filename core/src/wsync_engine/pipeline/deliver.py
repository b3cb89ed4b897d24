"""Deliver: send one partition's changes in chunks and store a verdict for every row.

For each chunk: its boundaries and `sent_at` are durable, then the call, then its acks. So whatever dies wherever, a row of the log is one of
acknowledged, rejected, maybe sent (`unsure`), or not sent, and nothing is forgotten. A chunk's key names the run, partition and rows: whoever sends these
rows again sends them under the same key.

One thread renders, marks and acknowledges; a pool of them calls. Nothing waits for a slow call but its own rows: chunks go out as long as calls may be
made (`turns.py`) and what is rendered fits (`rendering.py`), marks and acks are written some chunks at a time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import pyarrow as pa

from wsync_engine.model.ids import uuid7
from wsync_engine.pipeline.change_log import ChangeLogReader
from wsync_engine.pipeline.chunking import halves, leaves, remaining, verdict_ranges
from wsync_engine.pipeline.context import RunContext
from wsync_engine.pipeline.rejected_row import largest_field, payload_of
from wsync_engine.pipeline.rendering import Oversized, Piece, Rendering, part_of
from wsync_engine.pipeline.turns import CallGate
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
    WsyncError,
)

__all__ = ["Delivery", "RetryPolicy", "deliver_partition", "is_covered", "missing_recorded"]

LEAST_MARKS = 16
"""So many chunks are marked as sent in one transaction, or as many as there are calls at once."""
LEAST_ACKS = 4
"""So many chunks' verdicts are stored in one transaction, or as many as there are calls at once; twice as many if they are there."""
ACK_AFTER_S = 0.05
"""A verdict waits for others no longer than this before it is stored with them."""
HELD_BYTES = 64 * 1024 * 1024
"""Beyond it nothing is rendered ahead: only what would leave a call without work."""
LOOK_S = 0.2
MOST_REFUSED_ROWS = 1_000
"""So many refused rows before a single one is taken end the run: each costs calls, and a million of them nobody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often one chunk is tried, or a destination that answers none, and the bounds of the wait between (full jitter)."""

    tries: int = 5
    first_wait_s: float = 0.5
    max_wait_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """A chunk that the sink refused for what some of its rows hold."""

    error: RowError


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the destination said so far of all rows of the run."""

    has_accepted: bool = False
    refused: int = 0

    def note(self, verdict: str, rows: int) -> None:
        """A verdict on some rows."""
        self.has_accepted |= verdict == "accepted"
        self.refused += rows if verdict == "rejected" else 0

    def add(self, rows: int, result: WriteResult | _Refused) -> None:
        """The result of a call with so many rows; of many that were refused as a whole nothing is known yet."""
        if isinstance(result, WriteResult):
            self.note("accepted" if result.accepted_rows else "unknown", result.accepted_rows)
            self.note("rejected", len(result.rejections))
        elif rows == 1:
            self.note("rejected", 1)

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
    """What all chunks of one run's delivery share. `gate`: what it learns of the destination holds for all partitions."""

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
    gate: CallGate = field(init=False)

    def __post_init__(self) -> None:
        gate = CallGate(self.limits, self.context.budget, longest_wait_s=self.retry.max_wait_s)
        object.__setattr__(self, "gate", gate)


_Result = WriteResult | _Refused


def deliver_partition(delivery: Delivery, reader: ChangeLogReader, partition: int, *, epoch: int) -> None:
    """Send what has no verdict yet; returns when every row has one.

    :param epoch: of the partition's holder: a destination that compares them refuses earlier ones.

    :raises WsyncError: what ended the delivery; chunks that were sent without a verdict stay so.
    """
    with ThreadPoolExecutor(max_workers=delivery.limits.concurrency, thread_name_prefix="deliver") as pool:
        _Partition(delivery, reader, partition, epoch, pool).run()


class _Stopped(Exception):
    """The delivery ended before this call began: nothing was sent."""


class _Partition:
    """One partition's delivery. All but `_send` is for one thread."""

    def __init__(self, delivery: Delivery, reader: ChangeLogReader, partition: int, epoch: int, pool: ThreadPoolExecutor) -> None:
        self._epoch = epoch
        self._d = delivery
        self._partition = partition
        self._pool = pool
        self._rendering = Rendering(reader, delivery.sink, delivery.target, delivery.limits)
        self._reader = reader
        self._ready: list[Piece] = []
        """Rendered and not marked."""
        self._running: dict[Future[_Result], Piece] = {}
        self._ended: SimpleQueue[Future[_Result]] = SimpleQueue()
        self._unsettled: list[tuple[Piece, _Result]] = []
        self._settle_at_s = 0.0
        self._error: BaseException | None = None
        self._is_stopped = False

    def run(self) -> None:
        try:
            pieces = self._todo()
            while self._feed(pieces) or self._running or self._unsettled:
                self._collect()
                self._settle()
        finally:
            self._is_stopped = True  # who still waits for a call goes away, and with it the pool
        if self._error is not None:
            raise self._error

    # -- what is to be sent

    def _todo(self) -> Iterator[list[Piece]]:
        """What has no verdict: chunks that may have been sent as they were cut then, and rows that were not."""
        books = self._d.books
        acks = books.acks(books.run_id, self._partition)
        for ack in acks:  # of a holder before us
            self._d.tally.note(ack.verdict, ack.range.rows)
        acked = [ack.range for ack in acks]
        acked += self._adopt_recorded(acked)
        sent = [chunk for chunk in leaves(books.chunks(books.run_id, self._partition)) if not is_covered(chunk, acked)]
        return self._pieces(sent, remaining(self._reader.rows, [*acked, *sent]))

    def _pieces(self, sent: Sequence[RowRange], gaps: Sequence[RowRange]) -> Iterator[list[Piece]]:
        for span in sent:
            yield self._rendering.again(span)
        for pieces, oversized in self._rendering.fresh(gaps):
            self._refuse_oversized(oversized)
            yield pieces

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

    def _refuse_oversized(self, rows: Sequence[Oversized]) -> None:
        """Rows beyond the stream's record limit are rejections and never sent."""
        if not rows:
            return
        rejections = [self._rejection(one.row, one.change, "record_too_large", self._too_large(one), retryable=False) for one in rows]
        self._d.books.record_acks([self._ack(RowRange(one.row, one.row), "rejected") for one in rows], rejections)
        self._d.context.count("rejected", len(rows))
        self._d.tally.note("rejected", len(rows))

    # -- on the way

    def _feed(self, pieces: Iterator[list[Piece]]) -> bool:
        """Hand chunks to the pool until it has enough to go on with; whether there was something to hand over."""
        has_fed = False
        try:
            while self._error is None and self._is_short():
                self._d.context.border()
                most = max(LEAST_MARKS, self._d.gate.calls_at_once)
                while len(self._ready) < most and (more := self._rendered(pieces)):
                    self._ready += more
                if not self._ready:
                    break
                batch, self._ready = self._ready[:most], self._ready[most:]
                self._mark([piece.range for piece in batch])
                self._submit(batch)
                has_fed = True
        except WsyncError as exc:  # calls on their way are waited for, and what they say is stored
            self._fail(exc)
        return has_fed

    def _is_short(self) -> bool:
        """Whether calls may soon be without work."""
        return len(self._running) < self._d.gate.calls_at_once + LEAST_MARKS // 2

    def _rendered(self, pieces: Iterator[list[Piece]]) -> list[Piece]:
        """The next block's chunks; none if all is rendered, or enough for now."""
        if self._rendering.held_bytes > HELD_BYTES and len(self._running) + len(self._ready) >= self._d.gate.calls_at_once:
            return []
        return next((some for some in pieces if some), [])

    def _mark(self, spans: Sequence[RowRange]) -> None:
        self._d.context.faults("before_mark_sent")
        self._d.books.mark_sent([SentChunk(partition=self._partition, range=span) for span in spans])
        self._d.context.faults("after_mark_sent")

    def _submit(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            future = self._pool.submit(self._send, self._chunk(piece))
            self._running[future] = piece
            future.add_done_callback(self._ended.put)

    def _collect(self) -> None:
        """Wait until a call has ended, or verdicts have waited long enough; take all that have."""
        wait_s = LOOK_S
        if self._unsettled:
            wait_s = max(0.0, min(LOOK_S, self._settle_at_s - time.monotonic()))
        try:
            future = self._ended.get(timeout=wait_s) if wait_s else self._ended.get_nowait()
            while True:
                self._take(self._running.pop(future), future)
                future = self._ended.get_nowait()
        except Empty:
            pass

    def _take(self, piece: Piece, future: Future[_Result]) -> None:
        failure = future.exception()
        if failure is not None:
            self._fail(failure)
            self._rendering.settled(piece)
            return
        if not self._unsettled:
            self._settle_at_s = time.monotonic() + ACK_AFTER_S
        result = future.result()
        self._unsettled.append((piece, result))
        self._d.tally.add(piece.range.rows, result)  # at once: each further call to one that refuses everything is wasted
        refusal = self._d.tally.refusal()
        if refusal is not None:
            self._fail(refusal)

    def _fail(self, error: BaseException) -> None:
        """The first error ends the delivery: no further call begins."""
        if self._error is None and not isinstance(error, _Stopped):
            self._error = error
            self._is_stopped = True

    # -- verdicts

    def _settle(self) -> None:
        """Store the verdicts, if they are enough or have waited enough; what was refused as a whole is cut in halves, which go next."""
        enough = max(LEAST_ACKS, self._d.gate.calls_at_once)
        is_due = len(self._unsettled) >= enough or time.monotonic() >= self._settle_at_s or not self._running
        if not self._unsettled or not is_due:
            return
        results, self._unsettled = self._unsettled[: 2 * enough], self._unsettled[2 * enough :]
        acks: list[Ack] = []
        rejections: list[NewRejection] = []
        for piece, result in results:
            self._judge(piece, result, acks, rejections)
        if acks:
            self._d.context.faults("before_ack")
            self._d.books.record_acks(acks, rejections)
            self._d.context.faults("after_ack")
        for ack in acks:
            self._d.context.count(ack.verdict, ack.range.rows)
        self._bisect([piece for piece, result in results if isinstance(result, _Refused) and piece.range.rows > 1])
        for piece, _ in results:
            self._rendering.settled(piece)

    def _bisect(self, refused: Sequence[Piece]) -> None:
        """Mark the halves of each in one transaction, so that they always cover their parent, and send them."""
        if not refused or self._error is not None:
            return
        parts = [self._rendering.half(piece, span) for piece in refused for span in halves(piece.range)]
        self._mark([part.range for part in parts])
        self._submit(parts)

    def _judge(self, piece: Piece, result: _Result, acks: list[Ack], rejections: list[NewRejection]) -> None:
        if isinstance(result, _Refused):
            if piece.range.rows == 1:
                error = result.error
                acks.append(self._ack(piece.range, "rejected"))
                rejections.append(self._rejection(piece.range.first, piece.changes, error.code, error.message, retryable=False))
            return
        rejected = {rejection.row: rejection for rejection in result.rejections}
        acks += [self._ack(span, verdict) for span, verdict in verdict_ranges(piece.range, rejected, result.unknown)]
        for place, one in rejected.items():
            change = part_of(piece.changes, place, 1)
            rejections.append(self._rejection(piece.range.first + place, change, one.code, one.message, retryable=one.retryable))

    # -- in a thread of the pool

    def _send(self, chunk: Chunk) -> _Result:
        """One chunk, with repetitions."""
        gate, policy, destination = self._d.gate, self._d.retry, self._d.context.destination
        tries = 0
        while True:
            gate.enter(self._look)
            answers = destination.answers
            try:
                return self._call(chunk)
            except RetryableError as exc:
                # Who is told to wait while others get through is in line, and has not failed.
                tries += exc.retry_after_s is None or destination.answers == answers
                failures = max(tries, gate.failures_in_a_row)
                # Who asks for a longer wait than a slot may be held for gets it in the queue.
                if failures >= policy.tries or (exc.retry_after_s or 0) > policy.max_wait_s:
                    raise
                if exc.retry_after_s is None:
                    gate.back_off(random.random() * min(policy.max_wait_s, policy.first_wait_s * 2.0 ** max(0, failures - 1)), self._look)

    def _look(self) -> None:
        """While a call waits: whether it is still to be made."""
        if self._is_stopped:
            raise _Stopped
        self._d.context.border()

    def _call(self, chunk: Chunk) -> _Result:
        """One attempt, after `CallGate.enter`; tells the gate what became of it."""
        context, gate = self._d.context, self._d.gate
        try:
            context.await_right_to_write()
            self._look()
            began_s = time.monotonic()
        except BaseException:
            gate.left()
            raise
        try:
            with context.destination.called():
                result = self._d.sink.write(chunk, self._d.token)
        except RowError as exc:
            gate.answered(began_s)
            context.destination.answered()
            return _Refused(error=exc)
        except RetryableError as exc:
            gate.failed(began_s, exc.retry_after_s)
            raise
        except BaseException:
            gate.left()
            raise
        gate.answered(began_s)
        context.destination.answered()
        context.faults("after_write")
        return _checked(chunk, result)

    # -- values

    def _chunk(self, piece: Piece) -> Chunk:
        span = piece.range
        return Chunk(
            key=f"{self._d.run.run_id}.{self._partition}.{span.first}-{span.last}",
            run=self._d.run,
            partition=self._partition,
            range=span,
            target=self._d.target,
            changes=piece.changes,
            records=piece.records,
            fence=Fence(sync_id=self._d.run.sync_id, delivery=self._d.run.delivery, partition=self._partition, epoch=self._epoch),
            timeout_s=self._d.call_timeout_s,
        )

    def _ack(self, span: RowRange, verdict: str) -> Ack:
        return Ack(partition=self._partition, range=span, verdict=verdict)

    def _too_large(self, one: Oversized) -> str:
        limit = self._d.limits.max_record_bytes
        return f"`{largest_field(one.change)}`: the record is larger than {limit} bytes, and this is its largest field"

    def _rejection(self, row: int, change: pa.RecordBatch, code: str, message: str, *, retryable: bool) -> NewRejection:
        if BEFORE in change.schema.names:  # what was refused is the row
            change = change.drop_columns([BEFORE])
        return NewRejection(
            rejection_id=uuid7(),
            partition=self._partition,
            row=row,
            phase="deliver",
            code=code,
            message=message,
            retryable=retryable,
            payload=self._d.cipher.encrypt(payload_of(change, self._d.target.key)),
        )


def _checked(chunk: Chunk, result: WriteResult) -> WriteResult:
    """A result whose rows add up, or the connector is at fault and nothing is known of the chunk."""
    places = [rejection.row for rejection in result.rejections] + list(result.unknown)
    adds_up = result.accepted_rows + len(places) == chunk.rows and len(set(places)) == len(places)
    if not adds_up or any(not 0 <= place < chunk.rows for place in places):
        raise PluginError("write gave verdicts that do not add up to the chunk's rows", next_step="report it to the connector's author")
    return result


def missing_recorded(sink: TransactionalSink, run: RunRef, target: Target, partition: int, acked: Sequence[RowRange]) -> list[RowRange]:
    """Ranges that the sink says it applied and that have no ack here."""
    return [span for span in sink.recorded(run, target, partition) if not is_covered(span, acked)]


def is_covered(span: RowRange, ranges: Sequence[RowRange]) -> bool:
    """Whether the ranges hold all rows of `span`."""
    return not remaining(span.rows, [RowRange(r.first - span.first, r.last - span.first) for r in ranges if r.last >= span.first])
