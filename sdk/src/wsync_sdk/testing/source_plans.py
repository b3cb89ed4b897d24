"""Rules of a source about a plan's life: started, read here and elsewhere, cancelled, released."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import monotonic

import pyarrow as pa

from wsync_sdk.errors import FatalError, PlanExpired, RetryableError, StateError, WsyncError
from wsync_sdk.source import Held, Query, ReadLimits, Source
from wsync_sdk.testing.elsewhere import call_elsewhere, rows_of_plan
from wsync_sdk.testing.harness import Context, SourceHarness
from wsync_sdk.testing.rules import ContractViolation, absent, differing_rows, refusal, require, require_quiet, wait_for
from wsync_sdk.testing.source_rows import numbered, planned, read_rows

__all__ = ["SourcePlanRules"]

ROWS = 400
BATCH = ReadLimits(batch_rows=50)
UNKNOWN_HANDLES = (b"", b"unknown", b"0" * 24, b"\x00\xff'; --", b"x" * 300)
FREE_WITHIN_S = 5.0
CANCEL_EVERY_S = 0.2


class SourcePlanRules:
    """What has to be true of a plan from `plan` to `release`."""

    def test_a_plan_is_started_once_before_the_query_runs(self, harness: SourceHarness) -> None:
        """`ctx.started(handle)` makes the handle durable; a crash after it leaves a query that can be cancelled, a crash before it leaves none."""
        query = harness.load(numbered(ROWS))
        before = harness.executions()
        during: list[int | None] = []
        context = Context(on_started=lambda _: during.append(harness.executions()))
        with harness.source() as source:
            plan = source.plan(query, ReadLimits(), context)
            source.release(plan)

        require(len(context.handles) == 1, f"plan: call `ctx.started` exactly once; it was called {len(context.handles)} times")
        require(context.handles[0] == plan.handle, "plan: put the handle that `ctx.started` got into the plan")
        require(during[0] == before, "plan: call `ctx.started` before the query runs, not after it")

    def test_a_refused_start_ends_the_plan(self, harness: SourceHarness) -> None:
        """When the run is no longer ours `ctx.started` raises StateError: it passes through unchanged, or two workers would read one run."""

        def refuse(_: bytes) -> None:
            raise StateError("the run has another holder", next_step="nothing to do: it goes on there")

        query = harness.load(numbered(ROWS))
        with harness.source() as source:
            refusal(
                lambda: source.plan(query, ReadLimits(), Context(on_started=refuse)),
                StateError,
                what="plan, after StateError from `started`",
            )

    def test_another_process_can_read_the_plan(self, harness: SourceHarness) -> None:
        """Splits are read by whichever worker is free: their bytes hold all that is needed, with the same connection config."""
        with harness.source() as source, planned(source, harness.load(numbered(ROWS)), BATCH) as plan:
            ours = read_rows(source, plan.splits)
            try:
                theirs = call_elsewhere(rows_of_plan, harness.factory(), plan.to_bytes())
            except ContractViolation as exc:
                raise ContractViolation(f"{exc}; put all that `read` needs into the split's token, not into the instance") from exc

        difference = differing_rows(theirs, ours)
        require(not difference, f"in another process {difference}; put all that `read` needs into the split's token")

    def test_reading_a_split_again_gives_the_same_rows(self, harness: SourceHarness) -> None:
        """A split is the unit of retry: after a failure it is read from its start, also after a read that was left half way."""
        with harness.source() as source, planned(source, harness.load(numbered(ROWS)), BATCH) as plan:
            first = read_rows(source, plan.splits)
            half = source.read(plan.splits[0])
            next(half)
            _close(half)
            again = read_rows(source, plan.splits)

        difference = differing_rows(again, first)
        require(not difference, f"reading a split again: {difference}; keep no position between reads")

    def test_closing_a_read_early_frees_what_it_holds(self, harness: SourceHarness) -> None:
        """A run that ends closes its iterators; a session that stays open is one of the warehouse's hundred."""
        with harness.source() as source, planned(source, harness.load(numbered(ROWS)), BATCH) as plan:
            before = _held(harness)
            read = source.read(plan.splits[0])
            next(read)
            _close(read)
            freed = wait_for(lambda: _held(harness) == before, timeout_s=FREE_WITHIN_S)

        require(freed, "a closed read leaves something open; free it in a `finally` around the generator's `yield`")

    def test_release_frees_what_the_plan_holds(self, harness: SourceHarness) -> None:
        """Temporary results and snapshots cost the customer storage and bloat: after `release` and `close` nothing is left of a plan."""
        query = harness.load(numbered(ROWS))
        before = _held(harness)
        with harness.source() as source, planned(source, query, BATCH) as plan:
            read_rows(source, plan.splits)

        freed = wait_for(lambda: _held(harness) == before, timeout_s=FREE_WITHIN_S)
        require(freed, "a released plan leaves something in the warehouse; drop in `release` all that `plan` made")

    def test_a_renewed_plan_reads_the_same_rows(self, harness: SourceHarness) -> None:
        """Staged files of a plan are kept when it is renewed, so the splits must stay what they were; what can't be renewed is PlanExpired."""
        with harness.source() as source, planned(source, harness.load(numbered(ROWS)), BATCH) as plan:
            expected = [read_rows(source, (split,)) for split in plan.splits]
            try:
                renewed = source.renew(plan)
            except PlanExpired:
                return
            except Exception as exc:
                raise ContractViolation(f"renew: give the plan with fresh splits or raise PlanExpired, not {type(exc).__name__}") from exc
            found = [read_rows(source, (split,)) for split in renewed.splits]

        same = len(found) == len(expected) and not any(map(differing_rows, found, expected))
        require(same, "renew: the splits hold other rows than before; raise PlanExpired when they can't be had again")

    def test_a_second_release_does_nothing(self, harness: SourceHarness) -> None:
        """`release` follows every outcome and may be repeated after a crash, by another instance too."""
        query = harness.load(numbered(ROWS))
        with harness.source() as source, harness.source() as other:
            plan = source.plan(query, BATCH, Context())
            half = source.read(plan.splits[0])
            next(half)
            _close(half)
            source.release(plan)
            for again in (source, other):
                require_quiet(lambda again=again: again.release(plan), what="a second `release`")  # type: ignore[misc]

    def test_a_released_plan_is_expired(self, harness: SourceHarness) -> None:
        """A worker that comes late learns with PlanExpired that it has to plan again; a held result that still reads must be the same."""
        with harness.source() as source:
            plan = source.plan(harness.load(numbered(ROWS)), BATCH, Context())
            expected = read_rows(source, plan.splits)
            source.release(plan)
            try:
                late = read_rows(source, plan.splits)
            except PlanExpired:
                return
            except Exception as exc:
                raise ContractViolation(f"reading a released plan: raise PlanExpired, not {type(exc).__name__}") from exc
        require(not isinstance(plan.lifetime, Held), "reading a released plan: raise PlanExpired, since its lifetime is Held")
        require(not differing_rows(late, expected), "reading a released plan: raise PlanExpired instead of giving other rows")

    def test_a_cancelled_query_ends(self, harness: SourceHarness) -> None:
        """A person who cancels wants the warehouse to stop spending, at once; `cancel` comes from another instance.

        Without `cancels`, a live handle does no harm: what can be read can still be read.
        """
        if not harness.capabilities.cancels:
            _require_harmless_cancel(harness)
            return
        query = harness.slow()
        if query is None:
            absent("the harness has no slow query")
        attempt = _Attempt(harness.source(), query)
        with harness.source() as other:
            ended = attempt.cancel_from(other, patience_s=harness.patience_s)

        require(ended, f"a cancelled query goes on after {harness.patience_s:g} s; let `cancel` end the statement in the warehouse")
        error = attempt.error
        require(error is not None, "a cancelled query ends as if it were complete; raise FatalError")
        require(
            isinstance(error, FatalError | RetryableError),
            f"a cancelled query: raise FatalError (or RetryableError, where all that is seen is a cut line), not {type(error).__name__}",
        )

    def test_a_query_out_of_time_ends(self, harness: SourceHarness) -> None:
        """A query that runs for days costs for days: `limits.statement_timeout_s` ends it in the warehouse, and a repetition would not help."""
        query = harness.slow()
        if query is None:
            absent("the harness has no slow query")
        attempt = _Attempt(harness.source(), query, ReadLimits(statement_timeout_s=harness.patience_s / 4))

        ended = attempt.wait(timeout_s=harness.patience_s)

        require(ended, "a query goes on beyond `limits.statement_timeout_s`; set the warehouse's own timeout for its statements")
        error = attempt.error
        require(isinstance(error, FatalError), f"a query out of time: raise FatalError, not {type(error).__name__}")

    def test_cancelling_an_unknown_handle_does_nothing(self, harness: SourceHarness) -> None:
        """Cancel is repeated and comes late: a handle that is over, foreign or damaged is no error and touches nobody else's plan."""
        with harness.source() as source:
            over = source.plan(harness.load(numbered(ROWS)), BATCH, Context())
            source.release(over)
            with planned(source, harness.load(numbered(ROWS)), BATCH) as alive:
                for handle in (*UNKNOWN_HANDLES, over.handle):
                    require_quiet(lambda handle=handle: source.cancel(handle), what="`cancel` of an unknown handle")  # type: ignore[misc]
                try:
                    count = len(read_rows(source, alive.splits))
                except WsyncError as exc:
                    raise ContractViolation("`cancel` of an unknown handle ended another plan; match the handle exactly") from exc
        require(count == ROWS, "`cancel` of an unknown handle took rows from another plan; match the handle exactly")

    def test_an_estimate_never_executes(self, harness: SourceHarness) -> None:
        """People ask what a query costs because they fear what it costs. With `estimates` it names rows; without, it makes none up."""
        query = harness.load(numbered(ROWS))
        before = harness.executions()
        with harness.source() as source:
            estimate = source.estimate(query)

        require(harness.executions() == before, "estimate: ask the planner (EXPLAIN, dry run); the query itself was run")
        if harness.capabilities.estimates:
            require(estimate.rows is not None and estimate.rows >= 0, "`estimates` is declared: give `Estimate.rows`")
        else:
            require(estimate.rows is None, "`Estimate.rows` is given: declare `estimates`, or leave it None")


class _Attempt:
    """A query that is planned and read in a thread of its own until it ends."""

    def __init__(self, source: Source, query: Query, limits: ReadLimits | None = None) -> None:
        self.error: BaseException | None = None
        self._limits = limits or ReadLimits()
        self._source = source
        self._query = query
        self._started = threading.Event()
        self._handle = b""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def wait(self, *, timeout_s: float) -> bool:
        """Whether the query ended by itself in time."""
        self._thread.start()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def cancel_from(self, other: Source, *, patience_s: float) -> bool:
        """Cancel again and again, since the first may come between two statements; whether the query ended in time."""
        self._thread.start()
        if not self._started.wait(patience_s):
            return False
        give_up_at_s = monotonic() + patience_s
        while self._thread.is_alive() and monotonic() < give_up_at_s:
            other.cancel(self._handle)
            self._thread.join(CANCEL_EVERY_S)
        return not self._thread.is_alive()

    def _on_started(self, handle: bytes) -> None:
        self._handle = handle
        self._started.set()

    def _run(self) -> None:
        try:
            with self._source as source:
                plan = source.plan(self._query, self._limits, Context(on_started=self._on_started))
                for split in plan.splits:
                    for _ in source.read(split):
                        pass
        except Exception as exc:
            self.error = exc


def _held(harness: SourceHarness) -> int:
    count = harness.held()
    if count is None:
        absent("the harness can't tell what the warehouse holds")
    return count


def _close(read: Iterator[pa.RecordBatch]) -> None:
    close = getattr(read, "close", None)
    if close is None:
        raise ContractViolation("read: be a generator, or give the iterator a `close()` that frees what it holds")
    close()


def _require_harmless_cancel(harness: SourceHarness) -> None:
    with harness.source() as source, planned(source, harness.load(numbered(ROWS)), BATCH) as plan:
        require_quiet(lambda: source.cancel(plan.handle), what="`cancel` where `cancels` is not declared")
        try:
            count = len(read_rows(source, plan.splits))
        except WsyncError as exc:
            raise ContractViolation("`cancel` ends a plan: declare `cancels`") from exc
    require(count == ROWS, "`cancel` takes rows from a plan: declare `cancels`, or do nothing in it")
