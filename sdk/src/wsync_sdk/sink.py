"""What a sink connector is: a place that takes chunks of changes and gives a verdict for every row.

The engine's order of calls for one run:

    begin ──► render(changes) ──► write(chunk, token) … ──► commit | abort

The engine cuts chunks by the stream's limits, keeps rate budgets, retries, bisects refused chunks and stores acks; a sink does one attempt
of one call and says truthfully what became of each row. A `Sink` must not connect before its first call. `write` may be called from
several threads at once, up to `StreamLimits.concurrency`; every other method by one.

A changes batch has the column `OP` (string: `upsert` or `delete`) first, then one column per mapped field, named as in the stream (nested fields are
structs), the key's columns among them. In a delete only the key is set.

A NULL in an upsert is for the sink to write in its own way, unless `nulls_of(field)` says that of this field: `send` has the destination hold NULL,
or no value, from now on; `omit` leaves the field out, so that the destination keeps what it has. Only a stream that declares `nulls` is asked for either.

If the stream declares `needs_before`, the column `BEFORE` is last, of the type `before_type`: of each such field that is mapped, a list with the JSON text of
every value that the destination may still hold from this sync's earlier changes of the key. It is one value as a rule, two or more after changes
whose outcome was never known. NULL: nothing is known, because the key is new, or was last sent before the stream declared the field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from wsync_sdk.errors import ConfigError, storable
from wsync_sdk.network import AddressPolicy
from wsync_sdk.nulls import Nulls
from wsync_sdk.source import CheckReport

__all__ = [
    "BEFORE",
    "OP",
    "Chunk",
    "Fence",
    "FieldSpec",
    "Inspection",
    "Operation",
    "Rejection",
    "RowRange",
    "RunRef",
    "Sink",
    "SinkCapabilities",
    "StreamLimits",
    "StreamSpec",
    "Target",
    "TransactionalSink",
    "WriteMode",
    "WriteResult",
    "before_type",
]

OP = "wsync_op"
BEFORE = "wsync_before"


def before_type(fields: Sequence[str]) -> pa.DataType:
    """The type of the column `BEFORE` for these fields, named with their dots: a struct with a list of JSON texts for each."""
    return pa.struct([pa.field(name, pa.list_(pa.string())) for name in fields])


class Operation(StrEnum):
    """What a change does to its key."""

    UPSERT = "upsert"
    DELETE = "delete"


class WriteMode(StrEnum):
    """How a run's rows come to a stream, `RunRef.write_mode`.

    MERGE: upserts and deletes by key. APPEND: each row is a new one, and its key comes once; `OP` is `upsert`, there are no deletes. The same chunk may
    come twice, under the same key, also in a later run: a destination that does not know the key again has its rows twice then.
    REPLACE: the run's rows, upserts only, are all that the stream holds from `commit` on. `begin` opens an empty version, `write` fills it, nobody sees
    it before `commit` puts it in the place of the former one, in one step.
    """

    MERGE = "merge"
    APPEND = "append"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """A field that a stream knows by name.

    :param name: as in the mapping; dots nest.
    :param type: what the mapped value is cast to, where the mapping has no `cast` of its own; None: whatever comes.
    :param required: there is no upsert without it; a field inside it will do.
    """

    name: str
    type: pa.DataType | None = None
    required: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """What the destination bears, as data; the engine keeps to it.

    :param max_rows: most rows in a call. :param max_bytes: most rendered bytes in a call.
    :param max_record_bytes: most rendered bytes of one row; a larger one is a rejection. None: no limit.
    :param calls_per_s: most calls in a second, by all runs that call this destination with this credential. None: no limit.
    :param concurrency: most calls at once, by one run; it begins with few, and keeps to as many as the destination answers quicker for.
    :param idempotent: the destination recognises a chunk key, or the write is an upsert by key: the same chunk twice is harmless.
    """

    max_rows: int = 1_000
    max_bytes: int = 1_000_000
    max_record_bytes: int | None = None
    calls_per_s: float | None = None
    concurrency: int = 4
    idempotent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """A table, list or endpoint that takes changes.

    :param fields: those known by name. :param open_fields: fields beyond these are taken as they come, but for
    :param closed_prefixes: beginnings of names of which only `fields` has all there are. The engine refuses a mapping of any other, and one without a
        field that is required, at `apply` where `SinkSpec.stream` tells of the stream, else before a run reads.
    :param key: names of the key's fields; empty: the sync's own key is used.
    :param operations: what can be done; a `mirror` sync needs DELETE.
    :param write_modes: how rows can come; an `append` sync needs APPEND, a `replace` sync REPLACE.
    :param needs_before: fields, dots nest, whose former values a change needs, to take them away: they come in the column `BEFORE`, and the engine keeps
        them encrypted. Fields that a mapping does not have are passed over.
    :param nulls: what a mapping may ask, field by field, of NULLs, see `nulls_of`; empty: the stream has its one way, and the engine refuses to ask.
    """

    name: str
    title: str
    operations: frozenset[Operation]
    limits: StreamLimits
    fields: tuple[FieldSpec, ...] = ()
    open_fields: bool = True
    closed_prefixes: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    needs_before: frozenset[str] = frozenset()
    nulls: frozenset[Nulls] = frozenset()
    write_modes: frozenset[WriteMode] = frozenset({WriteMode.MERGE})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """Whose run this is. Ids are opaque text without blanks.

    :param delivery: rises with each run of the sync that may write. :param continues: the delivery whose rows this one only brings up to date: a
        destination that can tell that it never had it (another database, a table that was dropped) says so in `begin`. 0: everything is offered.
    :param write_mode: how its rows come, one of the stream's. :param stream: where they go, for `find_open`.
    """

    tenant_id: str
    sync_id: str
    run_id: str
    delivery: int
    continues: int = 0
    write_mode: WriteMode = WriteMode.MERGE
    stream: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one sync's changes go: the stream, the key's fields in order, and the schema of the fields (without OP and BEFORE)."""

    stream: str
    key: tuple[str, ...]
    schema: pa.Schema


@dataclass(frozen=True, slots=True, order=True)
class RowRange:
    """Rows `first`..`last`, both inclusive, of one partition of one change log; numbered from 0."""

    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Who may write now; a transactional sink checks it in the data's own transaction.

    Refused with StateError: a `delivery` lower than one seen for this sync, or within it an `epoch` lower than one seen for this partition.
    """

    sync_id: str
    delivery: int
    partition: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one sink call carries.

    :param key: stable name of exactly these rows of this change log, the same whenever they are sent; ASCII, at most 128 characters.
    :param run: whose. :param partition: of the change log. :param range: its rows.
    :param target: where to. :param changes: the rows, in key order, `OP` first.
    :param records: what `render` gave for these rows, or None where the sink renders nothing.
    :param fence: see Fence.
    :param timeout_s: the call must have ended by then, with whatever outcome: after it another worker may send.
    """

    key: str
    run: RunRef
    partition: int
    range: RowRange
    target: Target
    changes: pa.RecordBatch
    records: pa.StringArray | pa.LargeStringArray | None
    fence: Fence
    timeout_s: float = 9.0

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.changes.num_rows)

    def body(self) -> memoryview:
        """The records' bytes, one after the other without a separator, not copied.

        :raises ValueError: the sink renders nothing.
        """
        if self.records is None:
            raise ValueError("this sink's render gives no records")
        if len(self.records) == 0:
            return memoryview(b"")
        _, offsets, values = self.records.buffers()
        offset_type = np.int32 if isinstance(self.records, pa.StringArray) else np.int64
        bounds = np.frombuffer(offsets, dtype=offset_type)
        start, end = int(bounds[self.records.offset]), int(bounds[self.records.offset + len(self.records)])
        return memoryview(values)[start:end]

    def to_rows(self) -> list[dict[str, Any]]:
        """The changes as dicts, for sinks that can only take rows; costs some microseconds each, so not for hot paths."""
        rows: list[dict[str, Any]] = self.changes.to_pylist()
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One refused row.

    :param row: its place in the chunk, from 0.
    :param code: short stable word for the kind of refusal. :param message: the destination's words, without the row's values if it can be helped.
    :param retryable: the destination says that the same row may be taken later (quota). It is told to people, and no promise of the engine's hangs on it:
        a refused row is offered again when it changes, and unchanged after an hour, then two, four …, a week at most, whether this is set or not.
    """

    row: int
    code: str
    message: str
    retryable: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", storable(self.code))
        object.__setattr__(self, "message", storable(self.message))


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What became of a chunk's rows: `accepted_rows + len(rejections) + len(unknown) == chunk.rows`, no row twice.

    :param unknown: rows of which the destination said nothing: they may or may not be there.
    """

    accepted_rows: int
    rejections: tuple[Rejection, ...] = ()
    unknown: tuple[int, ...] = ()


class Inspection(StrEnum):
    """What the destination knows of a token."""

    OPEN = "open"
    COMMITTED = "committed"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkCapabilities:
    """What a sink can do beyond the least.

    :param transactional: it is a TransactionalSink: exactly once.
    :param renders: `render` gives wire records, whose bytes the limits count; else they count Arrow bytes.
    """

    transactional: bool = False
    renders: bool = False


class Sink(ABC):
    """One configured destination. See the module's docstring for order and threads.

    `network` says which addresses may be called. The engine sets it after the factory and before the first call; a sink that connects to hosts which its
    config names asks it at every new connection, and connects to nothing but what `network.resolve` gave. Until it is set: public addresses only.
    """

    network: AddressPolicy = AddressPolicy()

    @abstractmethod
    def check(self) -> CheckReport:
        """Is the destination reachable, the credential right? Writes nothing. Never raises for what a person can fix: that is a finding."""

    @abstractmethod
    def streams(self) -> Sequence[StreamSpec]:
        """The streams that are there now."""

    def stream(self, name: str) -> StreamSpec:
        """The stream of that name, also one that would be created by the first write.

        :raises ConfigError: there is none, and none can be made; names the nearest.
        """
        specs = {spec.name: spec for spec in self.streams()}
        if name in specs:
            return specs[name]
        near = get_close_matches(name, specs, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"choose one of: {', '.join(sorted(specs)) or 'none'}"
        raise ConfigError(f"there is no stream `{name}`", next_step=hint)

    def begin(self, run: RunRef, target: Target) -> bytes:
        """Prepare for a run's writes and give a token that every write carries; stored before the first write, not repeated after that.

        :raises ConfigError: the target can't take this schema, would tell keys apart otherwise than by `target.key`'s values, or never had what
            `run.continues` names.
        """
        return b""

    def render(self, changes: pa.RecordBatch, target: Target) -> pa.StringArray | pa.LargeStringArray | None:
        """One wire record per change, columnar, the same for the same change each time; a separator that belongs to a record is part of it.

        None: this sink takes Arrow and renders nothing.
        """
        return None

    @abstractmethod
    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """Deliver one chunk, in one attempt, within `chunk.timeout_s`.

        :raises RowError: refused as a whole because of what rows hold; nothing was applied.
        :raises RetryableError: may be sent again under the same key; rows may or may not be there. With `retry_after_s` no run on the credential calls
            until then.
        :raises FatalError: destination, list or credential is gone.
        :raises ConfigError: credential or address is wrong; nothing was applied.
        :raises StateError: fenced off (transactional sinks).
        """

    def commit(self, token: bytes, totals: Mapping[str, int]) -> None:  # noqa: B027
        """Make the run's writes visible where that is a step of its own; a second call does nothing.

        :param totals: counts of the run, by name. Of a version `accepted`: as many rows as were taken, which are all that it is to hold.
        :raises RetryableError: nobody knows whether it was done. `inspect` is asked before it is called again.
        :raises FatalError: the version is gone, or does not hold what it should; what was visible before still is.
        """

    def abort(self, token: bytes) -> None:  # noqa: B027
        """Drop what can be dropped of the run; a second call does nothing."""

    def inspect(self, token: bytes) -> Inspection:
        """What became of a token, asked after a crash between `begin` and `commit`.

        Of a replaced stream COMMITTED and OPEN are believed; after UNKNOWN a run that is executed calls `commit` once more, and one that has ended is taken
        as not committed: the next run sends everything.
        """
        return Inspection.UNKNOWN

    def find_open(self, run: RunRef) -> Sequence[bytes]:
        """Tokens of this run that the destination still holds open, for a crash inside `begin`: they are aborted. Of a stream that is replaced also
        those of runs before: one run of a sync delivers at a time.
        """
        return ()

    def close(self) -> None:  # noqa: B027
        """Free connections. The instance is not used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class TransactionalSink(Sink):
    """A database: the ack is kept in the destination, in the data's own transaction, so every row is applied exactly once.

    `write` does in one transaction: check the fence, stop if `chunk.range` is already recorded for this run and partition (and answer as accepted),
    apply the rows, record the range.
    """

    @abstractmethod
    def recorded(self, run: RunRef, target: Target, partition: int) -> Sequence[RowRange]:
        """The ranges of this run and partition that were applied, in order."""
