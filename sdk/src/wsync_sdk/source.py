"""What a source connector is: plan a query once, then stream its splits as Arrow record batches.

The engine's order of calls for one run:

    plan ──► read(split 0) … read(split n) ──► release
      └─ ctx.started(handle) before the query runs        cancel(handle): from any process, at any time

A `Source` is made by its spec's factory from a validated config and must not connect before its first call. One instance is used by one
thread at a time, except `read`, which may run for different splits in several threads at once, and `cancel`, which comes from anywhere.

Rows that can't be represented. A value that has no faithful Arrow form (a date before year 1, an infinite timestamp) is never replaced by another
value. The cell is NULL and the column's name is listed, for that row, in the extra column `REFUSED_COLUMNS` (list<string>, last column of the
batch, NULL or empty list where the row is whole). The engine makes a rejection of that row. The column is part of `ReadPlan.schema` if it is in batches.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID

import pyarrow as pa

from wsync_sdk.errors import PlanExpired

__all__ = [
    "REFUSED_COLUMNS",
    "CheckReport",
    "Durable",
    "Estimate",
    "Finding",
    "Held",
    "Lifetime",
    "ParameterValue",
    "PlanContext",
    "Preview",
    "Query",
    "ReadLimits",
    "ReadPlan",
    "Source",
    "SourceCapabilities",
    "Split",
]

REFUSED_COLUMNS = "wsync_refused_columns"

ParameterValue = None | bool | int | float | Decimal | str | bytes | date | time | datetime | UUID
"""What a named parameter may be; a datetime is aware, else it is meant as the warehouse's type without zone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to read: SQL text, or a table; exactly one of `sql` and `table` is set.

    :param sql: one statement that returns rows; `:name` stands for the parameter of that name, `::` is a cast, and a colon inside
        quotes or comments means nothing.
    :param table: `name` or `schema.name`, quoted by the connector; all columns are read unless `columns` names some.
    :param parameters: by name; typed and quoted by the driver, never pasted as text.
    :param split_by: a column of the result whose values have an order (integer, uuid, timestamp, text): the connector may cut the
        result into ranges of it and read these in parallel, under one snapshot. None: one split.
    """

    sql: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    split_by: str | None = None

    def __post_init__(self) -> None:
        if (self.sql is None) == (self.table is None):
            raise ValueError("a query has either `sql` or `table`")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """Bounds on one plan and its reads; a connector stays within them or refuses with ConfigError.

    :param batch_rows: most rows in one batch.
    :param batch_bytes: soft size of one batch; a single row may exceed it.
    :param max_splits: most splits; 1 asks for a plan without parallelism.
    :param rows_per_split: splits that are expected to hold fewer rows than this are not worth it.
    :param statement_timeout_s: the warehouse ends any statement of this plan after so long.
    """

    batch_rows: int = 65_536
    batch_bytes: int = 16 * 1024 * 1024
    max_splits: int = 1
    rows_per_split: int = 1
    statement_timeout_s: float = 3600.0


class PlanContext(Protocol):
    """What `Source.plan` may ask of the engine."""

    @property
    def tag(self) -> str:
        """Short ASCII text that names tenant, sync and run, for the warehouse's query tag; holds no secret."""
        ...

    def started(self, handle: bytes) -> None:
        """Make `handle` durable; when this returns, any process can cancel. Called before the query runs.

        :raises StateError: the run is no longer ours; let it pass.
        """
        ...

    def is_cancelled(self) -> bool:
        """True once the run shall end; polled while the warehouse works."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """A plan whose splits can be read until an instant, whatever happens to the process that planned."""

    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A plan that lives as long as the `Source` instance that planned it (an exported snapshot): its death means PlanExpired for readers."""


Lifetime = Durable | Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A unit of reading, retried whole.

    :param index: 0..n-1 within its plan.
    :param token: all that `read` needs, in any process with the same connection config. Secret: the engine stores it encrypted.
    :param estimated_rows: for balancing only.
    """

    index: int
    token: bytes
    estimated_rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """What one execution of a query will yield.

    :param schema: schema of every batch of every split, exactly.
    :param splits: at least one; together they hold each row of the result exactly once.
    :param lifetime: how long the splits can be read.
    :param handle: the handle that was given to `ctx.started`.
    :param connector_version: a plan is only read by the version that made it.
    :param warnings: what a person should know, e.g. that no parallel read was possible and why.
    """

    schema: pa.Schema
    splits: tuple[Split, ...]
    lifetime: Lifetime
    handle: bytes
    connector_version: str
    estimated_rows: int | None = None
    warnings: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The plan as bytes that `from_bytes` turns back, in any process; as secret as its splits."""
        until = self.lifetime.until.isoformat() if isinstance(self.lifetime, Durable) else None
        document = {
            "schema": _text(self.schema.serialize().to_pybytes()),
            "splits": [[split.index, _text(split.token), split.estimated_rows] for split in self.splits],
            "until": until,
            "handle": _text(self.handle),
            "connector_version": self.connector_version,
            "estimated_rows": self.estimated_rows,
            "warnings": list(self.warnings),
        }
        return json.dumps(document).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ReadPlan:
        """The plan that `to_bytes` wrote."""
        document = json.loads(data)
        until = document["until"]
        return cls(
            schema=pa.ipc.read_schema(pa.py_buffer(_bytes(document["schema"]))),
            splits=tuple(Split(index=index, token=_bytes(token), estimated_rows=rows) for index, token, rows in document["splits"]),
            lifetime=Held() if until is None else Durable(until=datetime.fromisoformat(until)),
            handle=_bytes(document["handle"]),
            connector_version=document["connector_version"],
            estimated_rows=document["estimated_rows"],
            warnings=tuple(document["warnings"]),
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing `check` looked at.

    :param name: stable word: `reachable`, `login`, `read_only`, `permission`, `version` …
    :param ok: False: runs would fail or be unsafe. True with a `next_step`: works, but a person should know.
    :param message: what was found, without secrets.
    :param next_step: what to do; empty where nothing is to be done.
    """

    name: str
    ok: bool
    message: str
    next_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What `check` found, most important first."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True when every finding is."""
        return all(finding.ok for finding in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the warehouse says a query would cost, without running it; None where it does not say.

    :param cost: the warehouse's own unit, named by `cost_unit` (Postgres planner cost, slot seconds …).
    """

    rows: int | None = None
    scanned_bytes: int | None = None
    cost_usd_micros: int | None = None
    cost: float | None = None
    cost_unit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Schema and first rows of a query. `billed` says in words what the preview itself cost, if anything."""

    schema: pa.Schema
    rows: pa.RecordBatch
    estimate: Estimate
    billed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCapabilities:
    """What a source can do beyond the least; the conformance kit tests what is declared, and that what is absent is refused clearly.

    :param parallel: `Query.split_by` can give more than one split.
    :param resumable: `read(split, offset)` with offset > 0 works: the order of a split's rows is the same each time.
    :param cancels: `cancel` makes the warehouse stop working.
    :param estimates: `estimate` gives at least rows.
    :param read_only: the connector itself sees to it that a query can't write.
    """

    parallel: bool = False
    resumable: bool = False
    cancels: bool = False
    estimates: bool = False
    read_only: bool = False


class Source(ABC):
    """One configured warehouse. See the module's docstring for order, threads and refused values."""

    @abstractmethod
    def check(self) -> CheckReport:
        """Is the warehouse reachable, the login right, and does it see what it needs? Never raises for what a person can fix: that is a finding."""

    @abstractmethod
    def estimate(self, query: Query) -> Estimate:
        """What the query would read, as far as the warehouse says; never executes it.

        :raises ConfigError: the SQL is wrong; the message has the warehouse's words and position.
        """

    @abstractmethod
    def preview(self, query: Query, rows: int) -> Preview:
        """Schema and at most `rows` first rows; the schema is the one `plan` will have, whatever the parameters' values.

        The engine binds None to a cursor whose type it does not know yet, to learn that from the schema; there may be no rows then.

        :raises ConfigError: the SQL is wrong, or a parameter is missing or unknown.
        """

    @abstractmethod
    def plan(self, query: Query, limits: ReadLimits, ctx: PlanContext) -> ReadPlan:
        """Execute the query, once, and say how its result is read.

        `ctx.started(handle)` returns before the query runs. A query that would write is refused.

        :raises ConfigError: SQL, parameter, login or permission is wrong.
        :raises RetryableError: not reachable now, throttled, connection lost.
        :raises FatalError: out of time, or ended by an administrator or by `cancel`.
        """

    def renew(self, plan: ReadPlan) -> ReadPlan:
        """The same splits with fresh links or sessions.

        :raises PlanExpired: the result is gone; this is also the answer of sources whose splits never need it.
        """
        raise PlanExpired("this source can't renew a plan", next_step="nothing to do: the query is planned again")

    @abstractmethod
    def read(self, split: Split, offset: int = 0) -> Iterator[pa.RecordBatch]:
        """The split's rows as batches of the plan's schema, in flat memory. Closing the iterator frees what it holds.

        :param offset: rows to skip; > 0 only where `resumable` is declared, else ConfigError.
        :raises PlanExpired: the plan's result, session or snapshot is gone.
        :raises RetryableError: connection lost; the split may be read again from its start.
        :raises FatalError: out of time, or cancelled.
        """

    @abstractmethod
    def release(self, plan: ReadPlan) -> None:
        """Drop what the plan holds in the warehouse; once per plan, also after cancel or failure; a second call does nothing."""

    @abstractmethod
    def cancel(self, handle: bytes) -> None:
        """Make the warehouse stop working on the plan and its reads, from any process; a handle that is over or unknown does nothing.

        :raises RetryableError: not reachable now.
        """

    def close(self) -> None:  # noqa: B027 - sources without connections need none
        """Free connections; a held plan ends with it. The instance is not used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
