"""The reference sinks with one thing wrong in each: what the rule of that name, and no other, finds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from toy_sink import (
    DATABASE,
    JSON_SINK,
    TICK_S,
    Key,
    PlainSink,
    PlainSinkHarness,
    Row,
    ToyDatabase,
    ToySink,
    ToySinkHarness,
    ToyVersions,
)

from wsync_sdk import (
    CheckReport,
    Chunk,
    ConfigError,
    FatalError,
    Finding,
    Inspection,
    RetryableError,
    RowRange,
    RunRef,
    SinkCapabilities,
    StateError,
    StreamSpec,
    Target,
    WriteMode,
    WriteResult,
)

ENOUGH_ROWS = 100


class ChangesValues(ToySink):
    def _upsert(self, rows: dict[Key, Row], key: Key, row: Row) -> None:
        super()._upsert(rows, key, {name: self._value(value) for name, value in row.items()})

    def _value(self, value: Any) -> Any:
        return value


class RoundsFloats(ChangesValues):
    def _value(self, value: Any) -> Any:
        return round(value, 6) if isinstance(value, float) else value


class TrimsText(ChangesValues):
    def _value(self, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value


class StoresEmptyAsNull(ChangesValues):
    def _value(self, value: Any) -> Any:
        return None if value == "" else value


class KeepsOldValues(ToySink):
    nulls = frozenset()

    def _upsert(self, rows: dict[Key, Row], key: Key, row: Row) -> None:
        new = {name: value for name, value in row.items() if value is not None}
        super()._upsert(rows, key, {**rows.get(key, {}), **new})


class SendsEveryNull(ToySink):
    def _stated(self, row: Row, target: Target) -> Row:
        return row


class InsertsOnly(ToySink):
    nulls = frozenset()

    def _upsert(self, rows: dict[Key, Row], key: Key, row: Row) -> None:
        rows.setdefault(key, row)


class LooksAtHalfTheKey(ToySink):
    def _upsert(self, rows: dict[Key, Row], key: Key, row: Row) -> None:
        super()._upsert(rows, key[:1], row)


class CutsChunks(ToySink):
    def _changes(self, chunk: Chunk) -> list[tuple[str, Key, Row]]:
        return super()._changes(chunk)[:ENOUGH_ROWS]


class IgnoresDeletes(ToySink):
    def _delete(self, rows: dict[Key, Row], key: Key) -> None:
        pass


class MissesAbsentKeys(ToySink):
    def _delete(self, rows: dict[Key, Row], key: Key) -> None:
        if key not in rows:
            raise FatalError("no such subscriber", next_step="see who removed it")
        super()._delete(rows, key)


class NeverForgetsDeletes(ToySink):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.deleted: set[Key] = set()

    def _delete(self, rows: dict[Key, Row], key: Key) -> None:
        super()._delete(rows, key)
        self.deleted.add(key)

    def _upsert(self, rows: dict[Key, Row], key: Key, row: Row) -> None:
        if key not in self.deleted:
            super()._upsert(rows, key, row)


class SharesABuffer(ToySink):
    def _send(self, chunk: Chunk) -> list[str]:
        self.buffer = chunk
        threading.Event().wait(5 * TICK_S)
        return super()._send(self.buffer)


class CountsOneMore(ToySink):
    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        result = super().write(chunk, token)
        return replace(result, accepted_rows=result.accepted_rows + 1)


class NamesTheFirstRow(ToySink):
    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        result = super().write(chunk, token)
        return replace(result, rejections=tuple(replace(rejection, row=0) for rejection in result.rejections))


class DropsAllForOne(ToySink):
    def _send(self, chunk: Chunk) -> list[str]:
        before = dict(self.shop.streams[chunk.target.stream])
        codes = super()._send(chunk)
        if any(codes):
            self.shop.streams[chunk.target.stream] = before
        return codes


class DoublesOnRepetition(ToySink):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answered: set[str] = set()

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        result = super().write(chunk, token)
        if chunk.key in self.answered:
            self.shop.streams[chunk.target.stream][(chunk.key,)] = {}
        self.answered.add(chunk.key)
        return result


class LetsErrorsEscape(ToySink):
    def _reply_lost(self) -> None:
        raise ConnectionResetError("connection reset by peer")


class AddsASummary(ToySink):
    def render(self, changes: pa.RecordBatch, target: Target) -> pa.StringArray | None:
        return pa.concat_arrays([super().render(changes, target), pa.array(["\n"])])


class IndentsTheFirst(ToySink):
    def render(self, changes: pa.RecordBatch, target: Target) -> pa.StringArray | None:
        first, *rest = super().render(changes, target).to_pylist()  # type: ignore[union-attr]
        return pa.array([f" {first}", *rest])


class ListsStreamsTwice(ToySink):
    def streams(self) -> Sequence[StreamSpec]:
        return [*super().streams(), *super().streams()]


class InventsStreams(ToySink):
    def stream(self, name: str) -> StreamSpec:
        try:
            return super().stream(name)
        except ConfigError:
            return replace(super().streams()[0], name=name)


class NamesNoStream(ToySink):
    def stream(self, name: str) -> StreamSpec:
        try:
            return super().stream(name)
        except ConfigError:
            raise ConfigError("no such stream", next_step="correct the name") from None


class KeepsTokensToItself(ToySink):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tokens: set[bytes] = set()

    def begin(self, run: RunRef, target: Target) -> bytes:
        token = super().begin(run, target)
        self.tokens.add(token)
        return token

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        if token not in self.tokens:
            raise FatalError("the token is not known", next_step="begin here")
        return super().write(chunk, token)


class BeginsOnce(ToySink):
    def begin(self, run: RunRef, target: Target) -> bytes:
        if self.find_open(run):
            raise StateError("the run has begun already", next_step="do not begin it again")
        return super().begin(run, target)


class EmptiesAtBegin(ToySink):
    def begin(self, run: RunRef, target: Target) -> bytes:
        self.shop.streams[target.stream].clear()
        return super().begin(run, target)


class CommitsOnce(ToySink):
    def commit(self, token: bytes, totals: Mapping[str, int]) -> None:
        if self.shop.runs[token] is Inspection.COMMITTED:
            raise StateError("the run is committed already", next_step="do not commit it again")
        super().commit(token, totals)


class AbortsOnce(ToySink):
    def abort(self, token: bytes) -> None:
        if self.shop.runs[token] is Inspection.GONE:
            raise StateError("the run is gone already", next_step="do not abort it again")
        super().abort(token)


class StaysOpen(ToySink):
    def inspect(self, token: bytes) -> Inspection:
        return Inspection.OPEN


class FindsWhatIsClosed(ToySink):
    def find_open(self, run: RunRef) -> Sequence[bytes]:
        return [f"{run.sync_id}/{run.run_id}".encode()]


class AlwaysComplains(ToySink):
    def check(self) -> CheckReport:
        complaint = Finding(name="quota", ok=False, message="the quota is low", next_step="buy more")
        return CheckReport(findings=(*super().check().findings, complaint))


class ChecksByWriting(ToySink):
    def check(self) -> CheckReport:
        for rows in self.shop.streams.values():
            rows[("probe",)] = {"id": 0}
        return super().check()


class NeverLooks(ToySink):
    def check(self) -> CheckReport:
        return CheckReport(findings=(Finding(name="login", ok=True, message="the config can be parsed"),))


class RetriesTheLogin(ToySink):
    def begin(self, run: RunRef, target: Target) -> bytes:
        try:
            return super().begin(run, target)
        except ConfigError as exc:
            raise RetryableError(exc.message, next_step=exc.next_step) from exc


class ShowsItsPassword(ToySink):
    def __repr__(self) -> str:
        return f"ShowsItsPassword(password={self.password!r})"


class AppliesAgain(ToyDatabase):
    def _is_recorded(self, chunk: Chunk) -> bool:
        return False

    def _record(self, chunk: Chunk) -> None:
        if not super()._is_recorded(chunk):
            super()._record(chunk)


class IgnoresEpochs(ToyDatabase):
    def _pass_fence(self, chunk: Chunk) -> None:
        self._pass(self.shop.deliveries, chunk.fence.sync_id, chunk.fence.delivery)


class RefusesTooLate(ToyDatabase):
    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        if self.shop.epochs.get((chunk.fence.sync_id, chunk.fence.partition), 0) > chunk.fence.epoch:
            self._apply_all(chunk)
        return super().write(chunk, token)


class KeepsDeliveriesByPartition(ToyDatabase):
    def _pass_fence(self, chunk: Chunk) -> None:
        fence = chunk.fence
        self._pass(self.shop.deliveries, f"{fence.sync_id}/{fence.partition}", fence.delivery)
        self._pass(self.shop.epochs, (fence.sync_id, fence.partition), fence.epoch)


class KeepsOneEpoch(ToyDatabase):
    def _pass_fence(self, chunk: Chunk) -> None:
        self._pass(self.shop.deliveries, chunk.fence.sync_id, chunk.fence.delivery)
        self._pass(self.shop.epochs, (chunk.fence.sync_id, 0), chunk.fence.epoch)


class TellsAcksUnsorted(ToyDatabase):
    def recorded(self, run: RunRef, target: Target, partition: int) -> Sequence[RowRange]:
        return list(self.shop.acks.get((run.run_id, partition), []))


class TellsAllPartitions(ToyDatabase):
    def recorded(self, run: RunRef, target: Target, partition: int) -> Sequence[RowRange]:
        return sorted(span for (run_id, _), ranges in self.shop.acks.items() if run_id == run.run_id for span in ranges)


class KeepsAcksOfRefusedChunks(ToyDatabase):
    def _roll_back(self, stream: str, rows: dict[Key, Row], acks: dict[tuple[str, int], list[RowRange]]) -> None:
        super()._roll_back(stream, rows, self.shop.acks)


class KeepsRowsOfRefusedChunks(ToyDatabase):
    def _roll_back(self, stream: str, rows: dict[Key, Row], acks: dict[tuple[str, int], list[RowRange]]) -> None:
        super()._roll_back(stream, self.shop.streams[stream], acks)


class RecordsAfterTheReply(ToyDatabase):
    def _record(self, chunk: Chunk) -> None:
        pass

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        result = super().write(chunk, token)
        if not self._is_recorded(chunk):
            super()._record(chunk)
        return result


class KeepsTheLastChunk(ToyVersions):
    def _send(self, chunk: Chunk) -> list[str]:
        if chunk.run.write_mode is WriteMode.APPEND:
            self.shop.streams[chunk.target.stream].clear()
        return super()._send(chunk)


class ShowsVersionsAtOnce(ToyVersions):
    def _send(self, chunk: Chunk) -> list[str]:
        codes = super()._send(chunk)
        if chunk.run.write_mode is WriteMode.REPLACE:
            self.hidden = self.shop.streams[chunk.target.stream]
            self.shop.streams[chunk.target.stream] = dict(self._rows_of(chunk))
        return codes

    def _drop(self, token: bytes) -> None:
        if token in self.shop.versions:
            self.shop.streams[self.shop.versions[token][0]] = self.hidden
        super()._drop(token)


class AddsToWhatWasThere(ToyVersions):
    def _switch(self, token: bytes) -> None:
        stream, rows = self.shop.versions.pop(token)
        self.shop.streams[stream].update(rows)


class EmptiesAtAbort(ToyVersions):
    def _drop(self, token: bytes) -> None:
        if token in self.shop.versions:
            stream, _ = self.shop.versions.pop(token)
            self.shop.streams[stream] = {}


class SwitchesAgain(ToyVersions):
    def _switch(self, token: bytes) -> None:
        stream, rows = self.shop.versions[token]
        self.shop.streams[stream] = rows
        self.shop.versions[token] = (stream, {})


class FindsItsOwnOnly(ToyVersions):
    def find_open(self, run: RunRef) -> Sequence[bytes]:
        return [token for token in super().find_open(run) if token.endswith(run.run_id.encode())]


class TakesDroppedForCommitted(ToyVersions):
    def inspect(self, token: bytes) -> Inspection:
        found = super().inspect(token)
        return Inspection.COMMITTED if found is Inspection.GONE else found


TWINS: tuple[tuple[str, type[PlainSink]], ...] = (
    ("test_values_arrive_exactly", RoundsFloats),
    ("test_text_arrives_unchanged", TrimsText),
    ("test_null_and_empty_stay_different", StoresEmptyAsNull),
    ("test_an_upsert_replaces_the_whole_row", KeepsOldValues),
    ("test_an_upsert_replaces_the_whole_row", InsertsOnly),
    ("test_a_null_is_sent_or_left_out_as_its_field_says", SendsEveryNull),
    ("test_a_key_of_two_fields_is_one_key", LooksAtHalfTheKey),
    ("test_the_largest_chunk_arrives_whole", CutsChunks),
    ("test_a_delete_removes_its_row_and_no_other", IgnoresDeletes),
    ("test_a_delete_of_an_absent_key_is_accepted", MissesAbsentKeys),
    ("test_a_deleted_row_can_come_back", NeverForgetsDeletes),
    ("test_writes_from_several_threads_all_arrive", SharesABuffer),
    ("test_verdicts_add_up", CountsOneMore),
    ("test_a_refused_row_is_named", NamesTheFirstRow),
    ("test_good_rows_beside_a_refused_one_are_as_the_verdict_says", DropsAllForOne),
    ("test_good_rows_beside_a_refused_one_are_as_the_verdict_says", KeepsRowsOfRefusedChunks),
    ("test_the_same_chunk_twice_is_harmless", DoublesOnRepetition),
    ("test_a_lost_reply_is_retryable_and_the_repetition_ends_right", LetsErrorsEscape),
    ("test_render_gives_one_record_per_change", AddsASummary),
    ("test_render_is_stable", IndentsTheFirst),
    ("test_a_stream_says_what_it_takes", ListsStreamsTwice),
    ("test_an_unknown_stream_is_a_config_error_that_names_one", InventsStreams),
    ("test_an_unknown_stream_is_a_config_error_that_names_one", NamesNoStream),
    ("test_another_worker_can_go_on", KeepsTokensToItself),
    ("test_a_repeated_begin_does_nothing", BeginsOnce),
    ("test_a_repeated_begin_does_nothing", EmptiesAtBegin),
    ("test_a_repeated_commit_does_nothing", CommitsOnce),
    ("test_a_repeated_abort_does_nothing", AbortsOnce),
    ("test_inspect_tells_what_became_of_a_token", StaysOpen),
    ("test_inspect_tells_what_became_of_a_token", FindsWhatIsClosed),
    ("test_appended_rows_stay", KeepsTheLastChunk),
    ("test_a_version_takes_the_place_of_what_was_there_at_its_commit", ShowsVersionsAtOnce),
    ("test_a_version_takes_the_place_of_what_was_there_at_its_commit", AddsToWhatWasThere),
    ("test_an_aborted_version_leaves_what_was_there", EmptiesAtAbort),
    ("test_a_version_that_was_switched_to_stays_when_it_is_committed_again", SwitchesAgain),
    ("test_a_version_that_nobody_finished_is_told_and_found", FindsItsOwnOnly),
    ("test_a_version_that_nobody_finished_is_told_and_found", TakesDroppedForCommitted),
    ("test_check_finds_nothing_wrong_with_a_right_config", AlwaysComplains),
    ("test_check_writes_nothing", ChecksByWriting),
    ("test_a_wrong_login_is_a_finding", NeverLooks),
    ("test_a_wrong_login_is_a_config_error", RetriesTheLogin),
    ("test_secrets_are_never_shown", ShowsItsPassword),
    ("test_a_range_is_applied_once", AppliesAgain),
    ("test_a_stale_epoch_is_refused", IgnoresEpochs),
    ("test_a_stale_epoch_is_refused", RefusesTooLate),
    ("test_a_stale_delivery_is_refused", KeepsDeliveriesByPartition),
    ("test_epochs_fence_their_own_partition_only", KeepsOneEpoch),
    ("test_recorded_tells_the_applied_ranges_in_order", TellsAcksUnsorted),
    ("test_recorded_tells_the_applied_ranges_in_order", TellsAllPartitions),
    ("test_a_refused_chunk_is_not_recorded", KeepsAcksOfRefusedChunks),
    ("test_rows_and_their_ack_are_there_together", RecordsAfterTheReply),
)


def harness_of(twin: type[PlainSink]) -> Callable[[], ToySinkHarness]:
    """Makes the harness that the twin's honest sibling passes with."""
    capabilities = DATABASE if issubclass(twin, ToyDatabase) else JSON_SINK
    return lambda: ToySinkHarness(twin, capabilities)


class RendersAnyway(PlainSink):
    def render(self, changes: pa.RecordBatch, target: Target) -> pa.StringArray | None:
        return pa.array(["{}"] * changes.num_rows)


MISDECLARED: tuple[tuple[str, Callable[[], ToySinkHarness]], ...] = (
    ("test_render_gives_one_record_per_change", lambda: PlainSinkHarness(RendersAnyway)),
    ("test_a_sink_is_what_it_declares", lambda: PlainSinkHarness(PlainSink, SinkCapabilities(transactional=True))),
)
