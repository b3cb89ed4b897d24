"""Rules of a sink about what is in the destination afterwards: every change applied, every value as it was."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from wsync_sdk.nulls import Nulls, with_nulls
from wsync_sdk.testing.harness import SinkHarness
from wsync_sdk.testing.rules import ContractViolation, absent, require
from wsync_sdk.testing.sink_delivery import Delivery, Row, delete, delivering, people, require_contents
from wsync_sdk.testing.source_rows import HOSTILE_TEXTS, SAMPLE_TYPES

__all__ = ["SAMPLE_VALUES", "SinkRowRules"]

SAMPLE_VALUES = SAMPLE_TYPES.append_column(
    pa.field("nested_value", pa.struct([("email", pa.string()), ("tags", pa.list_(pa.string()))])),
    pa.array(
        [{"email": "a@example.com", "tags": ["x", "y"]}, {"email": None, "tags": []}, {"email": "", "tags": None}],
        pa.struct([("email", pa.string()), ("tags", pa.list_(pa.string()))]),
    ),
)
"""A column of each type that a mapping gives, without NULLs."""

PAIRS = pa.schema([("shop", pa.int64()), ("number", pa.int64()), ("name", pa.string())])
ASKED = pa.schema(
    [
        pa.field("id", pa.int64()),
        with_nulls(pa.field("kept", pa.string()), Nulls.OMIT),
        with_nulls(pa.field("cleared", pa.string()), Nulls.SEND),
    ]
)
LARGEST_CHUNK = 2_000
RECORD_BYTES = 500  # more than a sink renders of two short fields
MOST_THREADS = 8
CHUNKS_OF_A_THREAD = 3
CHUNK_ROWS = 5


def _require_column(harness: SinkHarness, name: str, values: Sequence[Any], kind: pa.DataType, advice: str) -> None:
    rows: list[Row] = [{"id": number, name: value} for number, value in enumerate(values)]
    with delivering(harness, pa.schema([("id", pa.int64()), (name, kind)])) as delivery:
        delivery.write(rows)
        require_contents(harness, delivery, rows, advice)


class SinkRowRules:
    """What the destination has to hold."""

    def test_values_arrive_exactly(self, harness: SinkHarness) -> None:
        """A value is stored as it was mapped: no decimal through a float, no instant moved by a zone. Nobody looks again until a customer does."""
        for name in sorted(set(SAMPLE_VALUES.column_names) - harness.unsupported):
            kind = SAMPLE_VALUES.schema.field(name).type
            advice = f"values of `{name}` ({kind}) are changed on their way; write them in a form that the destination reads back the same"
            _require_column(harness, name, SAMPLE_VALUES[name].to_pylist(), kind, advice)

    def test_text_arrives_unchanged(self, harness: SinkHarness) -> None:
        """Text is stored code point by code point: nothing is normalised, trimmed, escaped twice or cut."""
        advice = "text is changed on its way; encode as UTF-8 and let the driver or the JSON encoder escape it, once"
        _require_column(harness, "body", HOSTILE_TEXTS, pa.string(), advice)

    def test_null_and_empty_stay_different(self, harness: SinkHarness) -> None:
        """NULL, the empty text and zero are three different things to whoever sends messages by them."""
        for name, kind, values in (("body", pa.string(), [None, ""]), ("size", pa.int64(), [None, 0])):
            _require_column(
                harness, name, values, kind, f"NULLs of `{name}` are mixed up with empty values; write NULL as the absence it is"
            )

    def test_an_upsert_replaces_the_whole_row(self, harness: SinkHarness) -> None:
        """A change holds the row as it is now: the old values are gone, also where the new one is NULL. An unsubscribed address must not live on."""
        before: list[Row] = [{"id": 1, "name": "old"}, {"id": 2, "name": "old"}, {"id": 3, "name": "kept"}]
        after: list[Row] = [{"id": 1, "name": "new"}, {"id": 2, "name": None}]
        with delivering(harness) as delivery:
            delivery.write(before)
            delivery.write(after)
            advice = "an upsert leaves something of the old row, or a second row of its key; replace all mapped fields, by NULL too"
            require_contents(harness, delivery, [*after, before[2]], advice)

    def test_a_null_is_sent_or_left_out_as_its_field_says(self, harness: SinkHarness) -> None:
        """Who asks for `omit` has another system fill the field: a NULL of ours must not take its value away. Who asks for `send` wants just that."""
        before: Row = {"id": 1, "kept": "old", "cleared": "old"}
        after: Row = {"id": 1, "kept": None, "cleared": None}
        with delivering(harness, ASKED) as delivery:
            if delivery.stream.nulls != frozenset(Nulls):
                absent("the stream has its one way with NULLs")
            delivery.write([before])
            delivery.write([after])
            advice = "a NULL is not written as its field asks; look at `nulls_of` of each field, and leave out what says `omit`"
            require_contents(harness, delivery, [{**after, "kept": "old"}], advice)

    def test_a_key_of_two_fields_is_one_key(self, harness: SinkHarness) -> None:
        """Rows are told apart by the whole key: order 7 of one shop is not order 7 of another."""
        rows = [{"shop": shop, "number": number, "name": f"{shop}/{number}"} for shop in (1, 2) for number in (1, 2)]
        with delivering(harness, PAIRS, ("shop", "number")) as delivery:
            delivery.write(rows)
            require_contents(harness, delivery, rows, "rows with the same part of a key are mixed up; match all fields of `target.key`")

    def test_the_largest_chunk_arrives_whole(self, harness: SinkHarness) -> None:
        """The engine sends as many rows in a call as the stream's limits allow: what is declared has to be taken."""
        with delivering(harness) as delivery:
            limits = delivery.stream.limits
            rows = people(range(min(limits.max_rows, limits.max_bytes // RECORD_BYTES, LARGEST_CHUNK)))
            delivery.send(delivery.chunk(rows))
            require_contents(harness, delivery, rows, f"a chunk of {len(rows)} rows loses some; lower `max_rows` or send all of them")

    def test_a_delete_removes_its_row_and_no_other(self, harness: SinkHarness) -> None:
        """Who left the result of a `mirror` sync must get no more messages. Deletes come in one chunk with upserts, in key order."""
        with delivering(harness) as delivery:
            delivery.require_deletes()
            delivery.write(people([1, 2, 3]))
            delivery.write([delete({"id": 1}), delete({"id": 2}), *people([4])])
            require_contents(
                harness, delivery, people([3, 4]), "a chunk of deletes and upserts is not applied as it is; look at each row's `OP`"
            )

    def test_a_delete_of_an_absent_key_is_accepted(self, harness: SinkHarness) -> None:
        """A delete may be repeated, or somebody was faster: the row is not there, which is what was asked for."""
        with delivering(harness) as delivery:
            delivery.require_deletes()
            try:
                result = delivery.send(delivery.chunk([delete({"id": 1})]))
            except Exception as exc:
                raise ContractViolation(f"a delete of an absent key: accept it; {type(exc).__name__} was raised") from exc
        require(not result.rejections and not result.unknown, "a delete of an absent key: count it as accepted, the row is not there")

    def test_a_deleted_row_can_come_back(self, harness: SinkHarness) -> None:
        """Customers leave and return: a delete is no ban of the key."""
        with delivering(harness) as delivery:
            delivery.require_deletes()
            delivery.write(people([1]))
            delivery.write([delete({"id": 1})])
            delivery.write(people([1], "back"))
            require_contents(
                harness, delivery, people([1], "back"), "a row that was deleted and upserted again is not there; forget deletes"
            )

    def test_writes_from_several_threads_all_arrive(self, harness: SinkHarness) -> None:
        """The engine calls `write` from as many threads as `limits.concurrency` says; a connection or buffer that they share breaks the rows."""
        with delivering(harness) as delivery:
            threads = min(delivery.stream.limits.concurrency, MOST_THREADS)
            if threads == 1:
                absent("the stream takes one call at a time")
            rows = people(range(threads * CHUNKS_OF_A_THREAD * CHUNK_ROWS))
            try:
                _write_together(delivery, rows, threads)
            except Exception as exc:
                raise ContractViolation(
                    f"writes at the same time fail with {type(exc).__name__}; give each its own connection, or lower `concurrency`"
                ) from exc
            advice = "writes at the same time lose rows; share no buffer between calls, or lower `concurrency`"
            require_contents(harness, delivery, rows, advice)


def _write_together(delivery: Delivery, rows: list[dict[str, Any]], threads: int) -> None:
    """All threads begin each round together, else a machine with one core would write in turn."""
    most = min(CHUNK_ROWS, delivery.stream.limits.max_rows)
    chunks = [delivery.chunk(rows[start : start + most]) for start in range(0, len(rows), most)]
    together = threading.Barrier(threads)

    def write(thread: int) -> None:
        try:
            for chunk in chunks[thread::threads]:
                together.wait(timeout=60)
                delivery.send(chunk)
        except BaseException:
            together.abort()
            raise

    with ThreadPoolExecutor(max_workers=threads) as pool:
        for done in [pool.submit(write, thread) for thread in range(threads)]:
            done.result()
