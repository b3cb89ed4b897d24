"""Rules of a sink about what it says: a true verdict for every row, also when the reply is lost, and stable records."""

from __future__ import annotations

import pyarrow as pa

from wsync_sdk.errors import RetryableError, RowError
from wsync_sdk.sink import Chunk, WriteResult
from wsync_sdk.testing.harness import Refusal, SinkHarness
from wsync_sdk.testing.rules import ContractViolation, absent, refusal, require
from wsync_sdk.testing.sink_delivery import Delivery, Row, changes_of, delivering, people, require_contents, target_of

__all__ = ["SinkVerdictRules"]

RENDERED_ROWS = 6


def refusal_of(harness: SinkHarness) -> Refusal:
    """Rows of which the destination refuses the last."""
    refused = harness.refusal()
    if refused is None:
        absent("the harness has no row that the destination refuses")
    return refused


def _together(delivery: Delivery, refused: Refusal) -> list[Row]:
    """The good rows and the refused one as one chunk's; empty where a call takes fewer."""
    rows = [*refused.good, refused.bad]
    return rows if len(rows) <= delivery.stream.limits.max_rows else []


def written(delivery: Delivery, chunk: Chunk) -> WriteResult | None:
    """The verdicts on a chunk that holds a refused row; None where it was refused as a whole."""
    try:
        return delivery.send(chunk)
    except RowError as exc:
        require(exc.code.strip(), "a RowError: give it a `code`, by which rejections are grouped")
        return None
    except Exception as exc:
        raise ContractViolation(
            f"a row that the destination refuses: raise RowError or give a Rejection, not {type(exc).__name__}"
        ) from exc


class SinkVerdictRules:
    """What a sink says of its rows, and what it calls them."""

    def test_verdicts_add_up(self, harness: SinkHarness) -> None:
        """The books of a run balance or it fails: each row of a chunk is accepted, rejected or unknown, and is so once."""
        with delivering(harness) as delivery:
            chunk = delivery.chunk(delivery.fitting(people(range(3))))
            _require_sum(delivery.send(chunk), chunk.rows)
        refused = harness.refusal()
        if refused is None:
            return
        with harness.sink() as sink:
            delivery = Delivery(sink, refused.target)
            chunk = delivery.chunk(_together(delivery, refused) or [refused.bad])
            result = written(delivery, chunk)
        if result is not None:
            _require_sum(result, chunk.rows)

    def test_a_refused_row_is_named(self, harness: SinkHarness) -> None:
        """A person mends the row that was refused, so it has to be that one: by a Rejection, or by a RowError when it is sent alone."""
        refused = refusal_of(harness)
        with harness.sink() as sink:
            delivery = Delivery(sink, refused.target)
            rows = _together(delivery, refused)
            together = written(delivery, delivery.chunk(rows)) if rows else None
            alone = written(delivery, delivery.chunk([refused.bad]))
        verdicts = {"a refused row after good ones": (together, len(refused.good)), "a refused row alone": (alone, 0)}
        for what, (result, place) in verdicts.items():
            if result is None:
                continue
            named_rows = [rejection.row for rejection in result.rejections]
            require(named_rows == [place], f"{what}: reject row {place} of the chunk and no other; the rejections name {named_rows}")
            named = result.rejections[0]
            require(named.code.strip() and named.message.strip(), f"{what}: give the rejection a code and a message")

    def test_good_rows_beside_a_refused_one_are_as_the_verdict_says(self, harness: SinkHarness) -> None:
        """After a Rejection the other rows are applied, after a RowError none is: the engine sends them again in the second case only."""
        refused = refusal_of(harness)
        with harness.sink() as sink:
            delivery = Delivery(sink, refused.target)
            rows = _together(delivery, refused)
            if not rows:
                absent("the stream takes too few rows in a call")
            result = written(delivery, delivery.chunk(rows))
            if result is None:
                require_contents(harness, delivery, [], "a RowError says that nothing was applied; undo the chunk's other rows")
            else:
                expected = refused.good if result.rejections else [*refused.good, refused.bad]
                require_contents(harness, delivery, expected, "rows that were accepted are not there; reject them, or raise RowError")

    def test_the_same_chunk_twice_is_harmless(self, harness: SinkHarness) -> None:
        """A worker may die between the reply and its record of it: another sends the chunk again, under the same key."""
        with delivering(harness) as delivery:
            if not delivery.stream.limits.idempotent:
                absent("the stream does not declare `idempotent`")
            rows = delivery.fitting(people([1, 2]))
            chunk = delivery.chunk(rows)
            delivery.send(chunk)
            try:
                delivery.send(chunk)
            except Exception as exc:
                raise ContractViolation(f"the same chunk again: accept it; {type(exc).__name__} was raised") from exc
            advice = "the same chunk twice leaves other rows than once; use the chunk's key, or upsert by the row's key"
            require_contents(harness, delivery, rows, advice)

    def test_a_lost_reply_is_retryable_and_the_repetition_ends_right(self, harness: SinkHarness) -> None:
        """No reply says nothing about the rows: RetryableError, and the engine sends the chunk again, which must end as if it went once."""
        losing = harness.lose_reply()
        if losing is None:
            absent("the harness can't lose a reply")
        with delivering(harness) as delivery:
            if not delivery.stream.limits.idempotent:
                absent("the stream does not declare `idempotent`")
            rows = delivery.fitting(people([1, 2]))
            chunk = delivery.chunk(rows)
            with losing:
                refusal(lambda: delivery.send(chunk), RetryableError, what="a write whose reply is lost")
            delivery.send(chunk)
            require_contents(harness, delivery, rows, "a chunk whose reply was lost and that was sent again leaves other rows")

    def test_render_gives_one_record_per_change(self, harness: SinkHarness) -> None:
        """Chunks are cut by the bytes of their records, so each change has its own. Without `renders` there are none."""
        target = target_of(harness)
        with harness.sink() as sink:
            records = sink.render(changes_of(people(range(RENDERED_ROWS)), target.schema), target)
        if not harness.capabilities.renders:
            require(records is None, "`render` gives records: declare `renders`, or return None")
            return
        require(isinstance(records, pa.StringArray | pa.LargeStringArray), "`renders` is declared: let `render` give an array of text")
        require(records is not None and len(records) == RENDERED_ROWS, "render: give one record for each change, in their order")
        require(records is not None and not records.null_count, "render: give each change a record; NULL is none")

    def test_render_is_stable(self, harness: SinkHarness) -> None:
        """A chunk that is sent again, or cut in two, has the same bytes under the same key: a record depends on its change alone."""
        if not harness.capabilities.renders:
            absent("`renders` is not declared")
        target = target_of(harness)
        rows = people(range(RENDERED_ROWS))
        changes = changes_of(rows, target.schema)
        with harness.sink() as sink, harness.sink() as other:
            whole = sink.render(changes, target)
            parts = [sink.render(changes, target), other.render(changes, target)]
            single = [sink.render(changes.slice(place, 1), target) for place in range(RENDERED_ROWS)]
            turned = sink.render(changes_of(rows[::-1], target.schema), target)
        texts = _texts(whole)
        require(all(_texts(part) == texts for part in parts), "render: the same batch gives other records; use no clock, counter or chance")
        require([_texts(one)[0] for one in single] == texts[:RENDERED_ROWS], "render: a record depends on where its change is in the batch")
        require(_texts(turned)[:RENDERED_ROWS] == texts[:RENDERED_ROWS][::-1], "render: a record depends on the changes around it")


def _texts(records: pa.StringArray | pa.LargeStringArray | None) -> list[str]:
    texts: list[str] = [] if records is None else records.to_pylist()
    return texts


def _require_sum(result: WriteResult, rows: int) -> None:
    places = [rejection.row for rejection in result.rejections] + list(result.unknown)
    require(
        result.accepted_rows + len(places) == rows,
        f"a chunk of {rows} rows: {result.accepted_rows} accepted and {len(places)} rejected or unknown do not add up",
    )
    require(
        len(set(places)) == len(places) and all(0 <= place < rows for place in places),
        "verdicts: name each rejected or unknown row once, by its place in the chunk from 0 on",
    )
