"""What a child does with an assignment: open its connectors, execute the run, and store the end that fits what happened."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Literal

import psycopg
import structlog
from psycopg.rows import TupleRow

from wsync_engine.model.run import RunError
from wsync_engine.pipeline.context import Cancelled, RunContext
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.help import help_run
from wsync_engine.pipeline.job import Job, Outcome
from wsync_engine.pipeline.local_database import Budget
from wsync_engine.pipeline.run import execute
from wsync_engine.scheduler.runs import STALLED, ScheduleSettlement
from wsync_engine.secrets.keyring import TenantCipher
from wsync_engine.state import database
from wsync_engine.state.books import RunBooks
from wsync_engine.state.holding import Claim
from wsync_engine.storage import LocalStorage
from wsync_engine.worker.child import ChildSetup, RunInProgress
from wsync_engine.worker.messages import NO_ERROR, Assignment, Ended
from wsync_sdk import FatalError, PluginError, RetryableError, Sink, Source, StateError, WsyncError

__all__ = ["execute_assignment"]

_log = structlog.get_logger()


def execute_assignment(run: RunInProgress, setup: ChildSetup) -> Ended:
    """Bring the assigned run to its end, or to where it goes back; never raises."""
    a = run.assignment
    log = _log.bind(tenant_id=str(a.tenant_id), run_id=str(a.run_id), epoch=a.epoch)
    try:
        connection = database.connect(setup.api_url, application_name=f"wsync run {a.run_id}")
    except WsyncError as exc:
        return _ended(run, "retry" if isinstance(exc, RetryableError) else "failed", exc)
    try:
        return _Execution(run, setup, connection).run()
    except StateError:
        log.warning("run.dropped")
        return _ended(run, "dropped")
    except RetryableError as exc:
        # Its own connection broke: the run did nothing wrong.
        return _ended(run, "back" if connection.broken else "retry", exc)
    except Exception as exc:
        log.exception("run.failed")
        return _ended(run, "failed", _one_line(exc))
    finally:
        connection.close()


class _Execution:
    """One assignment, with what it holds open."""

    def __init__(self, run: RunInProgress, setup: ChildSetup, connection: psycopg.Connection[TupleRow]) -> None:
        self._run = run
        self._setup = setup
        self._a = run.assignment
        self._connection = connection
        self._cipher = TenantCipher.from_text(run.assignment.tenant_key)

    def run(self) -> Ended:
        try:
            source, sink = self._setup.opener(self._a)
        except WsyncError as exc:
            return _ended(self._run, "failed", exc)
        if self._a.helps is None:  # the query is not a helper's
            self._run.stop_reading = partial(_stop_reading, self._setup, self._a, self._cipher, source)
        if self._run.cancel_reason is not None:
            self._run.stop_reading()
        try:
            return self._settle(self._job(source, sink))
        finally:
            for connector in (source, sink):
                with suppress(WsyncError):
                    connector.close()

    def _settle(self, job: Job) -> Ended:
        """Execute, and store the end that fits what happened."""
        if self._a.helps is not None:
            return self._help(job)
        try:
            outcome = execute(job)
        except StateError:
            raise
        except Exception as exc:
            return self._settle_failure(job, exc)
        self._tell(outcome)
        return _ended(self._run, "concluded", state=outcome.state)

    def _help(self, job: Job) -> Ended:
        """A helper's end says nothing of its run: what its tasks came to is stored with them."""
        try:
            done = help_run(job)
        except Cancelled:
            return _ended(self._run, "concluded", state="cancelled") if self._run.cancel_reason is not None else _ended(self._run, "back")
        except StateError:
            return _ended(self._run, "concluded", state="cancelled")
        except RetryableError:  # the state store is away
            return _ended(self._run, "back")
        _log.info("helper.ended", run_id=str(self._a.helps), tasks=done)
        return _ended(self._run, "concluded", state="succeeded")

    def _tell(self, outcome: Outcome) -> None:
        """One line for each run, whatever became of it."""
        ids = {"run_id": str(self._a.run_id), "sync": self._a.sync_name}
        _log.info("run.ended", **ids, state=outcome.state, reason=outcome.reason)

    def _settle_failure(self, job: Job, exc: Exception) -> Ended:
        state = "failed"
        error = exc if isinstance(exc, WsyncError) else _one_line(exc)
        if self._run.cancel_reason == "cancelled":
            state, error = "cancelled", Cancelled("cancelled", next_step="`wsync-engine sync run` starts a new run")
        elif self._run.cancel_reason == "timeout":
            error = FatalError("out of time", next_step="raise the schedule's timeout, or make the query faster")
        elif self._run.cancel_reason == "stalled":
            error = RetryableError(STALLED.message, next_step=STALLED.next_step)
            if not self._a.is_last_attempt:
                raise error
        elif isinstance(exc, Cancelled):
            return _ended(self._run, "back")
        elif isinstance(exc, RetryableError) and (self._connection.broken or exc.retry_after_s is not None or not self._a.is_last_attempt):
            raise exc  # who was asked to wait has not failed: only the run's deadline ends that
        _log.warning("run.ending", run_id=str(self._a.run_id), state=state, error=type(error).__name__, exc_info=_cause(exc))
        outcome = conclude(job, error, outcome=state)
        self._tell(outcome)
        return _ended(self._run, "concluded", error, state=outcome.state)

    def _job(self, source: Source, sink: Sink) -> Job:
        a = self._a
        tenant = str(a.tenant_id)
        context = RunContext(
            tag=f"wsync/{a.sync_name}/{a.run_id}",
            is_cancelled=self._run.is_cancelled,
            shall_yield=lambda: self._run.shall_yield,
            goes_back=self._run.goes_back,
            is_paused=lambda: self._run.is_paused,
            await_right_to_write=self._run.fence.wait,
            destination=self._run.destination,
            budget=self._run.budget,
            progress=self._run.count,
            call_helpers=self._run.call_helpers,
            faults=self._setup.faults,
        )
        return Job(
            sync_id=a.sync_id,
            sync_name=a.sync_name,
            spec=a.spec,
            parameters=a.parameters,
            source=source,
            sink=sink,
            destination=a.destination,
            books=RunBooks(
                self._connection,
                tenant_id=a.tenant_id,
                run_id=a.helps or a.run_id,
                claim=Claim(holder=a.run_id, epoch=a.epoch, worker_id=a.worker_id),
                settlement=ScheduleSettlement(),
            ),
            storage=LocalStorage.of_url(self._setup.storage_url, tenant_id=tenant),
            cipher=self._cipher,
            context=context,
            seed=tenant,
            budget=Budget(rows_per_partition=a.rows_per_partition),
            call_timeout_s=a.call_timeout_s,
        )


def _stop_reading(setup: ChildSetup, assignment: Assignment, cipher: TenantCipher, source: Source) -> None:
    """Make the warehouse stop; its handle was stored before the query ran. A failure leaves it to the border check and the kill."""
    try:
        with (
            database.connect(setup.api_url, application_name=f"wsync cancel {assignment.run_id}") as connection,
            database.tenant_transaction(connection, assignment.tenant_id),
        ):
            row = connection.execute("SELECT warehouse_query FROM wsync.run WHERE run_id = %s", (assignment.run_id,)).fetchone()
        if row is not None and row[0] is not None:
            source.cancel(cipher.decrypt(row[0]))
    except Exception as exc:
        _log.warning("run.cancel_failed", run_id=str(assignment.run_id), error=type(exc).__name__)


def _ended(
    run: RunInProgress,
    kind: Literal["concluded", "retry", "back", "failed", "dropped"],
    error: WsyncError | None = None,
    *,
    state: str = "",
) -> Ended:
    return Ended(
        run_id=run.assignment.run_id,
        epoch=run.assignment.epoch,
        kind=kind,
        state=state,
        error=NO_ERROR if error is None else RunError(error_class=type(error).__name__, message=error.message, next_step=error.next_step),
        retry_after_s=error.retry_after_s if isinstance(error, RetryableError) else None,
        answers=run.destination.answers,
        has_failed=any(error is failure for failure in run.destination.failures),
    )


def _cause(exc: Exception) -> Exception | None:
    """What the log shows in full: faults of a connector or of the engine, not what a person can mend."""
    return exc if isinstance(exc, PluginError) or not isinstance(exc, WsyncError) else None


def _one_line(exc: Exception) -> WsyncError:
    """For people: the exception's type only, as its text may hold a row's value; the log has all of it."""
    return PluginError(f"the run failed with an unexpected {type(exc).__name__}", next_step="report it, with the worker's log")
