"""Values of a cursor column: which types can be one, the highest of a read, what lies an overlap before it, and how it is stored.

The highest value is computed by Arrow, batch by batch. It is only ever a value that was read, or a lower one: with `>=` a lower one reads more again,
which the snapshot takes out, and loses nothing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal, InvalidOperation
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from wsync_engine.model.sync import Cursor
from wsync_engine.state.records import Cipher
from wsync_sdk import REFUSED_COLUMNS, ConfigError, ParameterValue

__all__ = ["CursorColumn", "CursorValue", "HighestSeen", "Kind", "read_from"]

TIME_OVERLAP = timedelta(minutes=10)
"""Longer than a transaction should be open in a database that people write to."""
EAST = timedelta(hours=14)
"""How far a wall clock is ahead of UTC, at most."""
_EXACT = Context(prec=200, rounding=ROUND_FLOOR)
"""Of Arrow's decimals, and floats taken from them, no digit is lost. Python's own context rounds to 28 digits, also up."""
_RESYNC = "`wsync-engine sync resync NAME` lets the next run read everything and take the new type"


class Kind(StrEnum):
    """What a cursor's values are."""

    INSTANT = "instant"
    TIMESTAMP = "timestamp"
    DATE = "date"
    INTEGER = "integer"
    DECIMAL = "decimal"
    FLOAT = "float"
    TEXT = "text"


_WORDS = {
    Kind.INSTANT: "a timestamp with time zone",
    Kind.TIMESTAMP: "a timestamp without time zone",
    Kind.DATE: "a date",
    Kind.INTEGER: "an integer",
    Kind.DECIMAL: "a decimal",
    Kind.FLOAT: "a floating-point number",
    Kind.TEXT: "a text",
}
_FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)
_LOWEST: Mapping[Kind, ParameterValue] = {
    Kind.INSTANT: _FIRST_INSTANT,
    Kind.TIMESTAMP: _FIRST_INSTANT.replace(tzinfo=None),
    Kind.DATE: date.min,
    Kind.INTEGER: -(2**63),
    Kind.FLOAT: -math.inf,
    Kind.TEXT: "",
}
_EXAMPLES = {Kind.INSTANT: ": 2027-01-31T08:00:00+01:00", Kind.TIMESTAMP: ": 2027-01-31T08:00:00", Kind.DATE: ": 2027-01-31"}
_Time = TypeVar("_Time", date, datetime)
_TIMES = (Kind.INSTANT, Kind.TIMESTAMP, Kind.DATE)
_NUMBERS = (Kind.INTEGER, Kind.DECIMAL, Kind.FLOAT)


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorValue:
    """One value: int, Decimal, float, str, date, or a datetime that is aware for instants only."""

    kind: Kind
    value: Any

    def to_json(self, cipher: Cipher) -> dict[str, Any]:
        """As it is stored. A text may be anything of a row, an address too: it is encrypted."""
        if self.kind is Kind.TEXT:
            return {"kind": self.kind.value, "sealed": base64.b64encode(cipher.encrypt(self.value.encode())).decode("ascii")}
        return {"kind": self.kind.value, "value": self.value.isoformat() if self.kind in _TIMES else str(self.value)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], cipher: Cipher) -> CursorValue:
        """What `to_json` wrote."""
        kind = Kind(document["kind"])
        if kind is Kind.TEXT:
            return cls(kind=kind, value=cipher.decrypt(base64.b64decode(document["sealed"])).decode())
        return cls(kind=kind, value=_parsed(kind, document["value"]))

    def no_later_than(self, now: datetime) -> CursorValue:
        """Itself, or the present where it lies in the future: a row with a wrong date must not keep the ones to come from being read."""
        match self.kind:
            case Kind.INSTANT:
                return CursorValue(kind=self.kind, value=min(self.value, now))
            case Kind.TIMESTAMP:
                return CursorValue(kind=self.kind, value=min(self.value, now.astimezone(UTC).replace(tzinfo=None) + EAST))
            case Kind.DATE:
                return CursorValue(kind=self.kind, value=min(self.value, (now.astimezone(UTC) + EAST).date()))
        return self


def _parsed(kind: Kind, text: str) -> Any:
    match kind:
        case Kind.INSTANT | Kind.TIMESTAMP:
            return datetime.fromisoformat(text)
        case Kind.DATE:
            return date.fromisoformat(text)
        case Kind.INTEGER:
            return int(text)
        case Kind.DECIMAL:
            return Decimal(text)
        case Kind.FLOAT:
            return float(text)
        case Kind.TEXT:
            return text


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorColumn:
    """The cursor of a sync, as its column is in the result."""

    cursor: Cursor
    kind: Kind
    type: pa.DataType

    @classmethod
    def of(cls, cursor: Cursor, schema: pa.Schema) -> CursorColumn:
        """Find the column.

        :raises ConfigError: there is none, its type has no order to go by, or the overlap can't be taken from it.
        """
        names = [name for name in schema.names if name != REFUSED_COLUMNS]
        if cursor.column not in names:
            near = get_close_matches(cursor.column, names, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"the query's columns are: {', '.join(names)}"
            raise ConfigError(f"the query has no column `{cursor.column}` to be the cursor", next_step=hint)
        field = schema.field(cursor.column)
        kind = _kind_of(field)
        if kind is None:
            raise ConfigError(
                f"the cursor column `{cursor.column}` is of a type that can't be a cursor ({field.type})",
                next_step="name a column with times, dates, numbers or texts; one that is unique and rises with each change",
            )
        found = cls(cursor=cursor, kind=kind, type=field.type)
        found._check_overlap()
        return found

    def _check_overlap(self) -> None:
        cursor = self.cursor
        what = f"the overlap can't be taken from the cursor column `{cursor.column}`, which is {_WORDS[self.kind]}"
        if cursor.overlap_ms and self.kind not in _TIMES:
            raise ConfigError(what, next_step="write a number" if self.kind in _NUMBERS else "remove `overlap`")
        if cursor.overlap_by and self.kind not in _NUMBERS:
            raise ConfigError(what, next_step="write a duration: 10m, 1d" if self.kind in _TIMES else "remove `overlap`")

    def check_stored(self, stored: CursorValue) -> None:
        """See that what is stored can be compared with what is read.

        :raises ConfigError: the column's type is another one now.
        """
        if stored.kind is not self.kind:
            raise ConfigError(
                f"the cursor column `{self.cursor.column}` was {_WORDS[stored.kind]}, and is {_WORDS[self.kind]} now", next_step=_RESYNC
            )

    def first(self) -> ParameterValue:
        """What `:cursor` is where nothing was read before: `initial`, or the lowest value of the type, so that all is read.

        :raises ConfigError: `initial` is not of the column's type.
        """
        return self._lowest() if self.cursor.initial is None else self._initial(self.cursor.initial)

    def _lowest(self) -> ParameterValue:
        if pa.types.is_decimal(self.type):
            return _EXACT.scaleb(Decimal(1 - 10**self.type.precision), -self.type.scale)
        return _LOWEST[self.kind]

    def _initial(self, initial: int | float | str) -> ParameterValue:
        try:
            value: ParameterValue = _parsed(self.kind, str(initial))
        except (ValueError, InvalidOperation):
            value = None
        if self.kind is Kind.TEXT and not isinstance(initial, str):
            value = None
        if not self._is_ours(value):
            raise ConfigError(
                f"`initial` is not of the type of the cursor column `{self.cursor.column}`",
                next_step=f"give {_WORDS[self.kind]}{_EXAMPLES.get(self.kind, '')}",
            )
        return value

    def _is_ours(self, value: ParameterValue) -> bool:
        """Whether a parsed value is one that a row can have: numbers are finite, instants have a zone, and only these."""
        match value:
            case None:
                return False
            case datetime():
                return (value.tzinfo is not None) is (self.kind is Kind.INSTANT)
            case int() | float() | Decimal():
                return math.isfinite(value)
        return True


def read_from(cursor: Cursor, stored: CursorValue) -> ParameterValue:
    """What `:cursor` is after `stored` was the highest value: the overlap before it."""
    by = cursor.overlap_by or 0
    match stored.kind:
        case Kind.INSTANT | Kind.TIMESTAMP:
            at: datetime = stored.value
            return _earlier(at, _overlap(cursor, TIME_OVERLAP), _FIRST_INSTANT.replace(tzinfo=at.tzinfo))
        case Kind.DATE:
            days = -(-_overlap(cursor, timedelta(days=1)) // timedelta(days=1))
            day: date = stored.value
            return _earlier(day, timedelta(days=days), date.min)
        case Kind.INTEGER:
            return int(max(stored.value - math.ceil(by), -(2**63)))
        case Kind.DECIMAL:
            return _EXACT.subtract(stored.value, Decimal(str(by)))
        case Kind.FLOAT:
            return float(stored.value - by)
        case Kind.TEXT:
            # A CHAR(n) is read with blanks at its end, and compared with a text it has none: it would lie before itself.
            return str(stored.value).rstrip(" ")


def _overlap(cursor: Cursor, usual: timedelta) -> timedelta:
    return usual if cursor.overlap_ms is None else timedelta(milliseconds=cursor.overlap_ms)


def _earlier(value: _Time, overlap: timedelta, lowest: _Time) -> _Time:
    try:
        return value - overlap
    except OverflowError:
        return lowest


def _kind_of(field: pa.Field) -> Kind | None:
    if (field.metadata or {}).get(b"wsync.logical") is not None:
        return None
    kind = field.type
    if pa.types.is_timestamp(kind):
        return Kind.TIMESTAMP if kind.tz is None else Kind.INSTANT
    tests = {
        Kind.DATE: pa.types.is_date,
        Kind.INTEGER: pa.types.is_integer,
        Kind.DECIMAL: pa.types.is_decimal,
        Kind.FLOAT: lambda kind: pa.types.is_float32(kind) or pa.types.is_float64(kind),  # of half ones Arrow finds no highest
    }
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Kind.TEXT
    return next((found for found, is_it in tests.items() if is_it(kind)), None)


class HighestSeen:
    """The highest value of one column in a stream of batches, and how many rows have none."""

    def __init__(self, column: CursorColumn) -> None:
        self.nulls = 0
        self._column = column
        self._highest: pa.Scalar | None = None

    def take(self, batch: pa.RecordBatch) -> None:
        """Look at one more batch."""
        values = batch.column(self._column.cursor.column)
        self.nulls += values.null_count
        if self._column.kind is Kind.FLOAT:
            values = values.filter(pc.is_finite(values))
        highest = pc.max(values)
        if highest.is_valid and (self._highest is None or pc.greater(highest, self._highest).as_py()):
            self._highest = highest

    @property
    def value(self) -> CursorValue | None:
        """None where no row had one."""
        if self._highest is None:
            return None
        highest = self._highest
        if self._column.kind in (Kind.INSTANT, Kind.TIMESTAMP):  # Python counts microseconds, some warehouses nanoseconds
            # In UTC first: Arrow rounds what the clock on the wall shows, and refuses the hour that comes twice in autumn.
            zone = None if highest.type.tz is None else "UTC"
            highest = highest.cast(pa.timestamp(highest.type.unit, tz=zone))
            highest = pc.floor_temporal(highest, unit="microsecond").cast(pa.timestamp("us", tz=zone))
        found = highest.as_py()
        return CursorValue(kind=self._column.kind, value=found)
