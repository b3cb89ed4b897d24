"""Rules of a transactional sink: the ack lies with the rows, so every row is applied exactly once, and by nobody who was fenced off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from wsync_sdk.errors import StateError, WsyncError
from wsync_sdk.sink import RowRange, Sink, TransactionalSink
from wsync_sdk.testing.harness import SinkHarness
from wsync_sdk.testing.rules import ContractViolation, absent, refusal, require
from wsync_sdk.testing.sink_delivery import Delivery, Row, delivering, differing_contents, people, require_contents
from wsync_sdk.testing.sink_verdicts import refusal_of, written

__all__ = ["SinkTransactionRules"]


def _recorded(delivery: Delivery, partition: int = 0, *, by: Sink | None = None) -> list[RowRange]:
    sink = by or delivery.sink
    if not isinstance(sink, TransactionalSink):
        raise ContractViolation("hold a sink that is no TransactionalSink to SinkContract, or derive it from TransactionalSink")
    return list(sink.recorded(delivery.run, delivery.target, partition))


class SinkTransactionRules:
    """What an ack in the destination has to mean."""

    def test_a_range_is_applied_once(self, harness: SinkHarness) -> None:
        """A chunk that comes again is answered from its record: applying it would take back what came after it."""
        with delivering(harness) as delivery:
            late = delivery.chunk(people([1], "old"))
            delivery.send(late)
            delivery.write(people([1], "new"))
            try:
                result = delivery.send(late)
            except Exception as exc:
                raise ContractViolation(f"a range that is recorded: answer as accepted; {type(exc).__name__} was raised") from exc
            require(result.accepted_rows == 1, "a range that is recorded: answer as accepted")
            require_contents(
                harness, delivery, people([1], "new"), "a range that is recorded was applied again; look for it before the rows"
            )

    def test_a_stale_epoch_is_refused(self, harness: SinkHarness) -> None:
        """A worker that lost its lease does not know it yet: whoever has a higher epoch of the partition has shut it out."""
        with delivering(harness) as delivery:
            delivery.write(people([1]), epoch=2)
            with _unchanged(harness, delivery, people([1])):
                refusal(lambda: delivery.write(people([2]), epoch=1), StateError, what="an epoch lower than one seen for the partition")

    def test_a_stale_delivery_is_refused(self, harness: SinkHarness) -> None:
        """A run that was given up may still write: a later delivery of the sync shuts it out of every partition, also of those it has not reached."""
        with delivering(harness) as delivery:
            delivery.write(people([1]))
            newer = Delivery(delivery.sink, delivery.target, sync_id=delivery.run.sync_id, number=2)
            newer.write(people([2]), partition=1)
            with _unchanged(harness, delivery, people([1, 2])):
                refusal(lambda: delivery.write(people([3]), epoch=9), StateError, what="a delivery lower than one seen for the sync")

    def test_epochs_fence_their_own_partition_only(self, harness: SinkHarness) -> None:
        """Partitions and syncs have leases of their own: a high epoch of one says nothing about another, or runs block each other for ever."""
        with delivering(harness) as delivery:
            delivery.write(people([1]), epoch=5)
            other_sync = Delivery(delivery.sink, delivery.target)
            try:
                delivery.write(people([2]), partition=1, epoch=1)
                other_sync.write(people([3]), epoch=1)
            except StateError as exc:
                raise ContractViolation("an epoch was held against another partition or sync; keep the fence by both") from exc
            require_contents(harness, delivery, people([1, 2, 3]), "rows of another partition or sync are not there")

    def test_recorded_tells_the_applied_ranges_in_order(self, harness: SinkHarness) -> None:
        """After a crash any worker asks what is there, and sends the rest: ranges of this run and partition, rising, and no other."""
        with delivering(harness) as delivery, harness.sink() as other:
            require(_recorded(delivery, by=other) == [], "recorded: give nothing where nothing was written")
            delivery.write(people([5, 6]), first=10)
            delivery.write(people([1, 2]), first=0)
            delivery.write(people([9]), first=4, partition=1)
            ranges = {partition: _recorded(delivery, partition, by=other) for partition in range(3)}
        found = {partition: [row for span in spans for row in range(span.first, span.last + 1)] for partition, spans in ranges.items()}
        require(
            found == {0: [0, 1, 10, 11], 1: [4], 2: []},
            "recorded: give the ranges of the run and partition from the destination, sorted by their first row",
        )

    def test_a_refused_chunk_is_not_recorded(self, harness: SinkHarness) -> None:
        """A RowError leaves neither rows nor ack: the engine cuts the chunk, and its good half, sent again, must be applied."""
        refused = refusal_of(harness)
        with harness.sink() as sink:
            delivery = Delivery(sink, refused.target)
            if written(delivery, delivery.chunk([*refused.good, refused.bad])) is not None:
                absent("the sink gives rejections and no RowError")
            require(_recorded(delivery) == [], "a refused chunk is recorded; write the ack in the transaction of the rows")
            delivery.write(refused.good, first=0)
            require_contents(harness, delivery, refused.good, "the good half of a refused chunk is not applied when it is sent again")

    def test_rows_and_their_ack_are_there_together(self, harness: SinkHarness) -> None:
        """When the reply is lost, the record alone tells whether the rows are there: it can only if both are one transaction."""
        losing = harness.lose_reply()
        if losing is None:
            absent("the harness can't lose a reply")
        with delivering(harness) as delivery, harness.sink() as other:
            chunk = delivery.chunk(people([1, 2]))
            with losing, suppress(WsyncError):
                delivery.send(chunk)
            are_there = not differing_contents(harness, delivery.target, people([1, 2]))
            are_recorded = _recorded(delivery, by=other) == [chunk.range]
        require(are_there == are_recorded, "rows without their ack, or the other way round; write both in one transaction")


@contextmanager
def _unchanged(harness: SinkHarness, delivery: Delivery, rows: Sequence[Row]) -> Iterator[None]:
    """Hold a refused write to having changed neither rows nor record."""
    recorded = _recorded(delivery)
    yield
    require(_recorded(delivery) == recorded, "a fenced off write is recorded; check the fence in the transaction of the rows")
    difference = differing_contents(harness, delivery.target, rows)
    require(not difference, f"a fenced off write changed rows ({difference}); check the fence in the transaction of the rows")
