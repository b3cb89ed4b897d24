"""What a sync is: its query, mapping, stream, mode and guards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

__all__ = ["Duplicates", "FromRun", "Guards", "MappingEntry", "Mode", "Scalar", "SyncSpec", "bound_parameters"]

Scalar = None | bool | int | float | str


class Mode(StrEnum):
    """What is kept in step: `upsert` new and changed rows, `mirror` also deletes what left the result."""

    UPSERT = "upsert"
    MIRROR = "mirror"


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
    """

    target: str
    column: str | None = None
    constant: Scalar = None
    cast: str | None = None
    required: bool = False
    columns: tuple[str, ...] = ()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSpec:
    """A sync as declared.

    :param query: SQL, or None with `table` set. :param key: top-level fields of the mapping that identify a subscriber.
    :param mapping: empty: every column under its own name.
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


def bound_parameters(
    declared: Mapping[str, Scalar | FromRun], given: Mapping[str, Scalar], *, nominal_at: datetime
) -> dict[str, Scalar | datetime]:
    """The values of `:name` for one run: what the sync declares, what the schedule or the trigger gave over it, and what is the run's own."""
    values = {**declared, **{name: value for name, value in given.items() if name in declared}}
    return {name: nominal_at if isinstance(value, FromRun) else value for name, value in values.items()}
