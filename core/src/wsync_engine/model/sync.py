"""What a sync is: its query, mapping, stream, mode and guards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from wsync_sdk.nulls import Nulls

__all__ = ["Cursor", "Duplicates", "FromRun", "Guards", "MappingEntry", "Mode", "Read", "Scalar", "SyncSpec", "bound_parameters"]

Scalar = None | bool | int | float | str


class Mode(StrEnum):
    """What is kept in step: `upsert` new and changed rows, `mirror` also deletes what left the result, `append` sends each key once,
    `replace` has the result take the place of all that is there, at the end of the run and in one step.
    """

    UPSERT = "upsert"
    MIRROR = "mirror"
    APPEND = "append"
    REPLACE = "replace"


class Read(StrEnum):
    """How much is read: the `full` result each time, or `incremental`: what lies at the cursor or behind it."""

    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where an incremental read begins.

    :param column: of the result, mapped or not; a row that changes gets a value that is no lower than those that were read before.
    :param overlap_ms: how far before the highest value is read again, for rows that were committed late; of a column of dates or times.
    :param overlap_by: the same, of a column of numbers. Neither: a usual one for the column's type.
    :param initial: where the first run begins; None: at the lowest value of the column's type.
    """

    column: str
    overlap_ms: int | None = None
    overlap_by: int | float | None = None
    initial: int | float | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FromRun:
    """A parameter whose value is the run's own: the nominal time it stands for, which in a backfill lies in the past."""

    name: Literal["nominal_at"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingEntry:
    """One field of the stream.

    :param target: its name, dots nest. :param column: of the query. :param columns: several of them: a list of their values, without NULLs, is sent.
        Neither: `constant` is.
    :param cast: text, integer, number, boolean, date, timestamp or json. :param required: NULL, or a list without values, refuses the row.
    :param nulls: what is said of a NULL: `send`, or `omit` the field; None: what the sync says.
    """

    target: str
    column: str | None = None
    constant: Scalar = None
    cast: str | None = None
    required: bool = False
    columns: tuple[str, ...] = ()
    nulls: Nulls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """What happens to rows of one key: all `refuse`d, or the `first` or `last` by a mapped top-level field stands for it; a tie is refused."""

    rule: str = "refuse"
    by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What stops a run before it delivers; None: no such guard."""

    max_delete_percent: float | None = 20.0
    max_deletes: int | None = None
    allow_empty: bool = False
    max_shrink_percent: float | None = None
    max_rejection_percent: float | None = None
    allow_schema_change: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSpec:
    """A sync as declared.

    :param query: SQL, or None with `table` set. :param key: top-level fields of the mapping that identify a subscriber.
    :param mapping: empty: every column under its own name. :param cursor: there with `read` incremental.
    :param nulls: of fields that say nothing of NULLs themselves; None: the sink does as it always does.
    """

    name: str
    source: str
    sink: str
    query: str | None
    key: tuple[str, ...]
    stream: str
    mode: Mode
    table: str | None = None
    parameters: Mapping[str, Scalar | FromRun] = field(default_factory=dict)
    split_by: str | None = None
    mapping: tuple[MappingEntry, ...] = ()
    duplicates: Duplicates = Duplicates()
    guards: Guards = Guards()
    read: Read = Read.FULL
    cursor: Cursor | None = None
    nulls: Nulls | None = None


def bound_parameters(
    declared: Mapping[str, Scalar | FromRun], given: Mapping[str, Scalar], *, nominal_at: datetime
) -> dict[str, Scalar | datetime]:
    """The values of `:name` for one run: what the sync declares, what the schedule or the trigger gave over it, and what is the run's own."""
    values = {**declared, **{name: value for name, value in given.items() if name in declared}}
    return {name: nominal_at if isinstance(value, FromRun) else value for name, value in values.items()}
