"""Whether a table tells keys apart as wsync does. Pure: maps a field and a column to SQL that finds the keys which it would not.

The rule: two different keys of wsync never meet in one row of the table. A type where they always may is refused before the first write; one where
only some values may (`07` and `7` in an integer) has a check that each chunk's staged rows must pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from wsync_postgres.columns import JSON_METADATA
from wsync_sdk import ConfigError

__all__ = ["TableColumn", "key_check"]

_INTEGERS = frozenset({"smallint", "integer", "bigint"})
_TEXTS = frozenset({"text", "character varying"})
_FLOATS = frozenset({"real", "double precision"})
_NUMBERS = _INTEGERS | {"numeric"}
# A text that reads back as itself is the only one for its value; `enum` stands for every enum type.
_READ_BACK = _NUMBERS | {"uuid", "enum"}
_NARROWED_BY_CAST = frozenset({"numeric", "time without time zone", "timestamp without time zone", "timestamp with time zone"})
_TRAILING_ZERO = r"'[.][0-9]*0$'"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """A column of the destination's table.

    :param cast: its type without length, as in CAST. :param declared: with length or scale. :param base: of a domain, the type under it.
    :param kind: `base`, or `enum` where the type under it is an enum. :param deterministic: false if its collation calls different texts equal.
    """

    cast: str
    declared: str
    base: str
    kind: str = "base"
    deterministic: bool = True


def key_check(name: str, field: pa.Field, column: TableColumn, *, quoted: str) -> str:
    """SQL over the staged row `s` that is true for a key which the table keeps as it is; empty if it keeps every one.

    :param name: of the table. :param quoted: the column's name in SQL.
    :raises ConfigError: the column does not tell keys of the field's type apart.
    """
    type_ = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    base = "enum" if column.kind == "enum" else column.base
    is_json = (field.metadata or {}).items() >= JSON_METADATA.items()
    if is_json or base not in _columns_for(type_) or not column.deterministic:
        why = "" if column.deterministic else ", whose collation calls different texts equal"
        raise ConfigError(
            f"the key's column `{field.name}` of `{name}` is {column.declared}{why}, and the field is {'json' if is_json else type_}: "
            "different keys could meet in one row",
            next_step=f"cast `{field.name}` to the column's type in the mapping, or change the column to {_advice(type_)}",
        )
    checks = []
    if _narrows(column, base):
        checks.append(f"CAST(s.{quoted} AS {column.declared}) = CAST(s.{quoted} AS {column.base})")
    if _is_text(type_) and base in _READ_BACK:
        checks.append(f"CAST(CAST(s.{quoted} AS {column.cast}) AS text) = s.{quoted}")
        if base == "numeric":
            checks.append(f"s.{quoted} !~ {_TRAILING_ZERO}")
    return " AND ".join(checks)


def _columns_for(type_: pa.DataType) -> frozenset[str]:
    """The columns that tell values of the type apart, all of them or those that pass the check."""
    kinds: list[tuple[bool, frozenset[str]]] = [
        (_is_text(type_) or pa.types.is_null(type_), _TEXTS | _READ_BACK),
        (pa.types.is_integer(type_), _NUMBERS | _TEXTS),
        (pa.types.is_decimal(type_) and type_.scale == 0, _NUMBERS | _TEXTS),
        (pa.types.is_decimal(type_), _TEXTS | {"numeric"}),
        (pa.types.is_float64(type_), frozenset({"double precision"})),
        (pa.types.is_floating(type_), _FLOATS),
        (pa.types.is_boolean(type_), _TEXTS | {"boolean"}),
        (pa.types.is_date(type_), _TEXTS | {"date"}),
        (pa.types.is_time(type_), _TEXTS | {"time without time zone"}),
        (pa.types.is_timestamp(type_) and type_.tz is not None, frozenset({"timestamp with time zone"})),
        (pa.types.is_timestamp(type_), frozenset({"timestamp without time zone"})),
        (pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_), frozenset({"bytea"})),
    ]
    return next((columns for is_it, columns in kinds if is_it), frozenset())


def _narrows(column: TableColumn, base: str) -> bool:
    """True if a value may be rounded on its way into the column: no error, another value. A plain varchar(n) refuses a longer text."""
    is_domain = column.cast != column.base
    return column.declared != column.base and (base in _NARROWED_BY_CAST or (is_domain and base in _TEXTS))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or type_ == pa.string_view())


def _advice(type_: pa.DataType) -> str:
    names = sorted(_columns_for(type_) - {"enum"})
    return "text with a deterministic collation" if "text" in names else " or ".join(names) or "another type, since this one can't be a key"
