"""The reference source with one thing wrong in each: what the rule of that name, and no other, finds.

A twin is named by the rule that it breaks; where a rule asks for different things with and without a capability, `PLAIN_TWINS` has the other half.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from toy_source import HANDLE, SCAN, PlainSource, ToySource

from wsync_sdk import (
    REFUSED_COLUMNS,
    CheckReport,
    ConfigError,
    Estimate,
    FatalError,
    Finding,
    PlanContext,
    Preview,
    Query,
    ReadLimits,
    ReadPlan,
    RetryableError,
    Split,
    StateError,
)

PAGE_ROWS = 1000
LARGEST_CELL = 1024 * 1024


class Altered(ToySource):
    """Changes loaded rows on their way."""

    def _answer(self, query: Query) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        schema, batches = super()._answer(query)
        if not SCAN.fullmatch(query.sql or ""):
            return schema, batches
        return self._altered(schema.empty_table()).schema, (self._altered_batch(batch) for batch in batches)

    def _altered_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        table = self._altered(pa.Table.from_batches([batch])).combine_chunks()
        return table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema=table.schema)

    def _altered(self, rows: pa.Table) -> pa.Table:
        arrays = [self._column(column.combine_chunks()) for column in rows.columns]
        return pa.table(arrays, names=rows.column_names)

    def _column(self, array: pa.Array) -> pa.Array:
        return array


class RoundsDecimals(Altered):
    def _column(self, array: pa.Array) -> pa.Array:
        return array.cast(pa.float64()) if pa.types.is_decimal(array.type) else array


class TrimsText(Altered):
    def _column(self, array: pa.Array) -> pa.Array:
        return pc.utf8_trim_whitespace(array) if pa.types.is_string(array.type) else array


class ReadsEmptyAsNull(Altered):
    def _column(self, array: pa.Array) -> pa.Array:
        return pc.if_else(pc.equal(array, ""), None, array) if pa.types.is_string(array.type) else array


class CutsCells(Altered):
    def _column(self, array: pa.Array) -> pa.Array:
        return pc.utf8_slice_codeunits(array, 0, LARGEST_CELL) if pa.types.is_string(array.type) else array


class DropsColumns(Altered):
    def _altered(self, rows: pa.Table) -> pa.Table:
        return rows.select(rows.column_names[:100])


class ReplacesInfinity(Altered):
    def _altered(self, rows: pa.Table) -> pa.Table:
        if REFUSED_COLUMNS not in rows.column_names:
            return rows
        return rows.set_column(0, "day", pc.fill_null(rows["day"], pa.scalar(0, pa.date32())))


class PlansNoSplit(ToySource):
    def _tokens(self, query: Query, limits: ReadLimits, handle: str, rows: int) -> list[dict[str, Any]]:
        return super()._tokens(query, limits, handle, rows) if rows else []


class SkipsAtPageEnds(ToySource):
    def _stored(self, path: Any) -> Iterator[pa.RecordBatch]:
        for batch in super()._stored(path):
            yield batch.slice(0, PAGE_ROWS - 1)


class LosesNullKeys(ToySource):
    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        for batch in super()._read(token, offset):
            yield batch.filter(pc.is_valid(batch.column(token["split_by"]))) if token["split_by"] else batch


class SharesACursor(ToySource):
    is_busy = False

    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        if self.is_busy:
            raise FatalError("the cursor is in use", next_step="read one split after the other")
        self.is_busy = True
        try:
            yield from super()._read(token, offset)
        finally:
            self.is_busy = False


class AddsMetadata(ToySource):
    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        for batch in super()._read(token, offset):
            yield batch.replace_schema_metadata({"driver": "toy"})


class GivesLargeBatches(ToySource):
    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        return super()._read({**token, "batch_rows": PAGE_ROWS}, offset)


class PreviewsAll(ToySource):
    def preview(self, query: Query, rows: int) -> Preview:
        return super().preview(query, PAGE_ROWS)


class ReadsAllAtOnce(ToySource):
    def _stored(self, path: Any) -> Iterator[pa.RecordBatch]:
        return iter(list(super()._stored(path)))


class SkipsOneLess(ToySource):
    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        return super()._read(token, max(offset - 1, 0))


class StartsAfterTheQuery(ToySource):
    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        plan = super().plan(query, limits, _Deaf())
        ctx.started(plan.handle)
        return plan


class _Deaf:
    tag = ""

    def started(self, handle: bytes) -> None:
        pass

    def is_cancelled(self) -> bool:
        return False


class IgnoresARefusedStart(ToySource):
    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        return super().plan(query, limits, _Stubborn(ctx))


class _Stubborn(_Deaf):
    def __init__(self, ctx: PlanContext) -> None:
        self.ctx = ctx

    def started(self, handle: bytes) -> None:
        with suppress(StateError):
            self.ctx.started(handle)


class KeepsPlansToItself(ToySource):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.handles: set[str] = set()

    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        plan = super().plan(query, limits, ctx)
        self.handles.add(plan.handle.decode())
        return plan

    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        if token["handle"] not in self.handles:
            raise FatalError("the plan is not known", next_step="plan here")
        return super()._read(token, offset)


class GoesOnWhereItStopped(ToySource):
    stopped_at = 0

    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        position, self.stopped_at = self.stopped_at, 0
        for batch in super()._read(token, offset + position):
            position += batch.num_rows
            try:
                yield batch
            except GeneratorExit:
                self.stopped_at = position
                raise


class LeavesReadsOpen(ToySource):
    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        batches = super()._read(token, offset)
        for batch in batches:
            try:
                yield batch
            except GeneratorExit:
                (self.warehouse.folder / "open" / "forgotten").touch()
                raise


class KeepsResults(ToySource):
    def release(self, plan: ReadPlan) -> None:
        pass


class RenewsHalf(ToySource):
    def renew(self, plan: ReadPlan) -> ReadPlan:
        (split,) = plan.splits
        token = json.loads(split.token)
        half = json.dumps({**token, "end": token["end"] // 2}).encode()
        return replace(plan, splits=(replace(split, token=half),))


class NeverTimesOut(ToySource):
    def _dawdle(self, handle: str, timeout_s: float) -> None:
        super()._dawdle(handle, float("inf"))


class ReleasesOnce(ToySource):
    def release(self, plan: ReadPlan) -> None:
        shutil.rmtree(self.warehouse.result(plan.handle.decode()))


class LosesExpiredPlans(ToySource):
    def _read(self, token: dict[str, Any], offset: int) -> Iterator[pa.RecordBatch]:
        if not self.warehouse.result(token["handle"]).exists():
            raise FatalError("no such result", next_step="start the run again")
        return super()._read(token, offset)


class CancelsNothing(ToySource):
    def cancel(self, handle: bytes) -> None:
        pass


class KnowsOnlyItsHandles(ToySource):
    def cancel(self, handle: bytes) -> None:
        if not HANDLE.fullmatch(handle.decode("ascii", errors="replace")):
            raise ConfigError("no such query", next_step="look at the handle")
        super().cancel(handle)


class RunsToEstimate(ToySource):
    def estimate(self, query: Query) -> Estimate:
        self.warehouse.count_execution()
        return super().estimate(query)


class AlwaysComplains(ToySource):
    def check(self) -> CheckReport:
        complaint = Finding(name="read_only", ok=False, message="the login might write", next_step="make another login")
        return CheckReport(findings=(*super().check().findings, complaint))


class NeverLooks(ToySource):
    def check(self) -> CheckReport:
        return CheckReport(findings=(Finding(name="login", ok=True, message="the config can be parsed"),))


class RetriesTheLogin(ToySource):
    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        try:
            self._log_in()
        except ConfigError as exc:
            raise RetryableError(exc.message, next_step=exc.next_step) from exc
        return super().plan(query, limits, ctx)


class CallsTyposFatal(ToySource):
    def _answer(self, query: Query) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        if (query.sql or "").startswith("SELEKT"):
            raise FatalError("the query failed", next_step="correct it")
        return super()._answer(query)


class BindsDecimalsAsFloats(ToySource):
    def _value(self, value: Any) -> Any:
        return float(value) if isinstance(value, Decimal) else value


class PastesParameters(ToySource):
    def _value(self, value: Any) -> Any:
        return value.replace("'", "''") if isinstance(value, str) else value


class TakesMissingAsNull(ToySource):
    def _check_names(self, names: list[str], parameters: Mapping[str, Any]) -> None:
        super()._check_names(names, {**dict.fromkeys(names), **parameters})


class IgnoresUnknownParameters(ToySource):
    def _check_names(self, names: list[str], parameters: Mapping[str, Any]) -> None:
        super()._check_names(names, {name: value for name, value in parameters.items() if name in names})


class WritesBeforeItRefuses(ToySource):
    def _drop(self, table: str) -> None:
        self.warehouse.table(table).unlink(missing_ok=True)
        super()._drop(table)


class ShowsItsPassword(ToySource):
    def __repr__(self) -> str:
        return f"ShowsItsPassword(password={self.password!r})"


TWINS: dict[str, type[ToySource]] = {
    "test_types_come_back_exactly": RoundsDecimals,
    "test_text_is_not_changed": TrimsText,
    "test_null_stays_null_and_empty_stays_empty": ReadsEmptyAsNull,
    "test_an_empty_result_has_the_schema_and_no_rows": PlansNoSplit,
    "test_wide_rows_come_whole": DropsColumns,
    "test_huge_cells_come_whole": CutsCells,
    "test_every_row_comes_exactly_once": SkipsAtPageEnds,
    "test_splits_hold_every_row_once_together": LosesNullKeys,
    "test_splits_can_be_read_at_the_same_time": SharesACursor,
    "test_batches_have_the_plans_schema": AddsMetadata,
    "test_batches_keep_to_the_limit_of_rows": GivesLargeBatches,
    "test_a_preview_shows_what_a_plan_will_read": PreviewsAll,
    "test_memory_stays_flat": ReadsAllAtOnce,
    "test_reading_from_an_offset": SkipsOneLess,
    "test_a_value_without_an_arrow_form_is_refused_not_replaced": ReplacesInfinity,
    "test_a_plan_is_started_once_before_the_query_runs": StartsAfterTheQuery,
    "test_a_refused_start_ends_the_plan": IgnoresARefusedStart,
    "test_another_process_can_read_the_plan": KeepsPlansToItself,
    "test_reading_a_split_again_gives_the_same_rows": GoesOnWhereItStopped,
    "test_closing_a_read_early_frees_what_it_holds": LeavesReadsOpen,
    "test_release_frees_what_the_plan_holds": KeepsResults,
    "test_a_renewed_plan_reads_the_same_rows": RenewsHalf,
    "test_a_query_out_of_time_ends": NeverTimesOut,
    "test_a_second_release_does_nothing": ReleasesOnce,
    "test_a_released_plan_is_expired": LosesExpiredPlans,
    "test_a_cancelled_query_ends": CancelsNothing,
    "test_cancelling_an_unknown_handle_does_nothing": KnowsOnlyItsHandles,
    "test_an_estimate_never_executes": RunsToEstimate,
    "test_check_finds_nothing_wrong_with_a_right_config": AlwaysComplains,
    "test_a_wrong_login_is_a_finding": NeverLooks,
    "test_a_wrong_login_is_a_config_error": RetriesTheLogin,
    "test_bad_sql_is_a_config_error": CallsTyposFatal,
    "test_parameters_arrive_typed": BindsDecimalsAsFloats,
    "test_hostile_parameters_stay_data": PastesParameters,
    "test_a_missing_parameter_is_a_config_error": TakesMissingAsNull,
    "test_an_unknown_parameter_is_a_config_error": IgnoresUnknownParameters,
    "test_a_writing_query_changes_nothing": WritesBeforeItRefuses,
    "test_secrets_are_never_shown": ShowsItsPassword,
}


class SplitsAnyway(PlainSource):
    def _tokens(self, query: Query, limits: ReadLimits, handle: str, rows: int) -> list[dict[str, Any]]:
        return ToySource._tokens(self, query, limits, handle, rows)


class GuessesAnOffset(PlainSource):
    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        return super().read(split)


class DropsOnCancel(PlainSource):
    def cancel(self, handle: bytes) -> None:
        if len(handle) == 32:
            shutil.rmtree(self.warehouse.result(handle.decode()), ignore_errors=True)


class MakesUpAnEstimate(PlainSource):
    def estimate(self, query: Query) -> Estimate:
        return replace(super().estimate(query), rows=1000)


PLAIN_TWINS: dict[str, type[ToySource]] = {
    "test_splits_hold_every_row_once_together": SplitsAnyway,
    "test_reading_from_an_offset": GuessesAnOffset,
    "test_a_cancelled_query_ends": DropsOnCancel,
    "test_an_estimate_never_executes": MakesUpAnEstimate,
}
