"""Which Arrow type a Postgres column becomes, and which of its values are refused. Pure: makes SQL text and Arrow fields, runs nothing.

In a database whose encoding is SQL_ASCII a text may be any bytes: those are read as bytes, and what is not UTF-8 is refused here (`is_raw`).

ADBC hands on infinity and BC dates as numbers that mean something else, without an error: the wrapping SELECT names them, and `conform` takes them out.
The table in README.md is this module in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsync_sdk import REFUSED_COLUMNS, ConfigError

__all__ = ["JSON_METADATA", "Column", "PgType", "arrow_schema", "column", "conform", "select_list"]

JSON_METADATA = {b"wsync.logical": b"json"}

# Type numbers of pg_type.dat: fixed in every release, unlike those of extensions.
NUMERIC = 1700
_DIRECT = {
    16: pa.bool_(),
    21: pa.int16(),
    23: pa.int32(),
    20: pa.int64(),
    700: pa.float32(),
    701: pa.float64(),
    25: pa.string(),
    1043: pa.string(),
    1042: pa.string(),
    19: pa.string(),
    17: pa.binary(),
    1082: pa.date32(),
    1083: pa.time64("us"),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
}
_JSON = frozenset({114, 3802})
# What has no Arrow (or no Python) value: infinity, BC, beyond year 9999; 24:00, which is no time of day.
_REFUSED = {
    1082: "({0} < DATE '0001-01-01' OR {0} > DATE '9999-12-31')",
    1083: "({0} = TIME '24:00')",
    1114: "({0} < TIMESTAMP '0001-01-01' OR {0} >= TIMESTAMP '10000-01-01')",
    1184: "({0} < TIMESTAMPTZ '0001-01-01 00:00:00+00' OR {0} >= TIMESTAMPTZ '10000-01-01 00:00:00+00')",
}
_REFUSED_DECIMAL = "({0} = 'NaN'::numeric)"  # a numeric with a declared precision holds no infinity (Postgres 18, 8.1.2, read 2026-11-24)
# 1.0 and 1.00 are one value, so one text. Not trim_scale(), which release 12 has not; scale() of NaN and infinity is NULL.
_SHORTEST_NUMERIC = "CASE WHEN scale({0}) > 0 THEN rtrim(rtrim({0}::text, '0'), '.') ELSE {0}::text END"


@dataclass(frozen=True, slots=True, kw_only=True)
class PgType:
    """A column's type as the server describes it.

    :param element: type number of the elements of a true array, else 0. :param typmod: -1 where there is none.
    """

    oid: int
    element: int = 0
    typmod: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the wrapped query.

    :param alias: its name inside the wrapping SELECT. :param expression: what is selected for it.
    :param refused: SQL that is true for a value without an Arrow form; None where there can't be one. :param is_raw: a text that is read as its bytes.
    """

    field: pa.Field
    alias: str
    pg_type: PgType
    expression: str
    refused: str | None = None
    is_raw: bool = False


def column(index: int, name: str, pg_type: PgType, *, is_any_bytes: bool = False) -> Column:
    """How the column at `index` is read.

    :param is_any_bytes: the database does not look at what bytes its texts are.
    """
    found = _checked_column(index, name, pg_type)
    if not is_any_bytes or not pa.types.is_string(found.field.type):
        return found
    return replace(found, expression=f"convert_to(CAST({found.expression} AS text), 'SQL_ASCII')", is_raw=True)


def _checked_column(index: int, name: str, pg_type: PgType) -> Column:
    alias = f"c{index}"
    if pg_type.element:
        return _array(alias, name, pg_type)
    if decimal := _decimal(pg_type):
        refused = _REFUSED_DECIMAL.format(alias)
        # As text: the driver makes text of a numeric too, and takes four times as long for it as the server.
        return _column(alias, pa.field(name, decimal), pg_type, f"{alias}::text", refused)
    if direct := _DIRECT.get(pg_type.oid):
        template = _REFUSED.get(pg_type.oid)
        # Left in on the server: a test of every value there costs more than to take a few out here.
        return Column(
            field=pa.field(name, direct),
            alias=alias,
            pg_type=pg_type,
            expression=alias,
            refused=template.format(alias) if template else None,
        )
    if pg_type.oid == NUMERIC and pg_type.typmod < 4:
        return _column(alias, pa.field(name, pa.string()), pg_type, _SHORTEST_NUMERIC.format(alias), None)
    metadata = JSON_METADATA if pg_type.oid in _JSON else None
    return _column(alias, pa.field(name, pa.string(), metadata=metadata), pg_type, f"{alias}::text", None)


def _array(alias: str, name: str, pg_type: PgType) -> Column:
    if pg_type.element in _JSON:
        field = pa.field(name, pa.string(), metadata=JSON_METADATA)
        return _column(alias, field, pg_type, f"to_jsonb({alias})::text", None)
    refused = f"array_ndims({alias}) > 1"  # a list of lists has another type: one column can't be both
    if template := _REFUSED.get(pg_type.element):
        refused = f"({refused} OR EXISTS (SELECT FROM unnest({alias}) AS u(e) WHERE {template.format('e')}))"
    direct = _DIRECT.get(pg_type.element)
    expression = alias if direct is not None else f"{alias}::text[]"
    return _column(alias, pa.field(name, pa.list_(direct if direct is not None else pa.string())), pg_type, expression, refused)


def _column(alias: str, field: pa.Field, pg_type: PgType, expression: str, refused: str | None) -> Column:
    if refused is not None:
        expression = f"CASE WHEN {refused} THEN NULL ELSE {expression} END"
    return Column(field=field, alias=alias, pg_type=pg_type, expression=expression, refused=refused)


def _decimal(pg_type: PgType) -> pa.DataType | None:
    """decimal128 for a declared numeric(p, s) that fits; a scale is 11 bits with sign since release 15."""
    if pg_type.oid != NUMERIC or pg_type.typmod < 4:
        return None
    packed = pg_type.typmod - 4
    precision, scale = (packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024
    return pa.decimal128(precision, scale) if 0 <= scale <= precision <= 38 else None


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The schema of every batch.

    :raises ConfigError: no column, or two of one name.
    """
    if not columns:
        raise ConfigError("the query returns no column", next_step="select at least one")
    names = [item.field.name for item in columns]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"the query returns two columns named `{min(repeated)}`", next_step="give one another name with AS")
    if REFUSED_COLUMNS in names:
        raise ConfigError(f"the query returns a column named `{REFUSED_COLUMNS}`", next_step="give it another name with AS")
    fields = [item.field for item in columns]
    if any(item.refused or item.is_raw for item in columns):
        fields.append(pa.field(REFUSED_COLUMNS, pa.list_(pa.string())))
    return pa.schema(fields)


def select_list(columns: Sequence[Column], texts: Sequence[str]) -> str:
    """What stands after SELECT; `texts` are the columns' names as quoted literals. Output columns are known by place, so they need no name."""
    expressions = [item.expression for item in columns]
    refusals = [(item.refused, text) for item, text in zip(columns, texts, strict=True) if item.refused]
    if refusals:
        any_refused = " OR ".join(refused for refused, _ in refusals)
        names = ", ".join(f"CASE WHEN {refused} THEN {text} END" for refused, text in refusals)
        expressions.append(f"CASE WHEN {any_refused} THEN array_remove(ARRAY[{names}]::text[], NULL) END")
    elif any(item.is_raw for item in columns):
        expressions.append("CAST(NULL AS text[])")
    return ", ".join(expressions)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with exactly this schema: the driver's metadata gone, decimals made of their text, refused values NULL."""
    decoded = [_decoded(array, field.type) for array, field in zip(batch.columns, schema, strict=True)]
    arrays = [_conform(array, field.type) for (array, _), field in zip(decoded, schema, strict=True)]
    if any(bad for _, bad in decoded):
        arrays[-1] = _with_names(arrays[-1], {name: bad for name, (_, bad) in zip(schema.names, decoded, strict=True)})
    if schema.names[-1:] == [REFUSED_COLUMNS] and arrays[-1].null_count < len(batch):
        arrays = [*_without_refused(arrays, schema), arrays[-1]]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _decoded(array: pa.Array, type_: pa.DataType) -> tuple[pa.Array, frozenset[int]]:
    """(the texts that these bytes are, the places of those that are none); any other array as it is."""
    if not (pa.types.is_binary(array.type) and pa.types.is_string(type_)):
        return array, frozenset()
    try:
        return array.cast(pa.string()), frozenset()
    except pa.ArrowInvalid:
        texts = [_text(value) for value in array.to_pylist()]
        bad = frozenset(place for place, text in enumerate(texts) if text is None and array[place].is_valid)
        return pa.array(texts, pa.string()), bad


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _with_names(refused: pa.Array, bad: Mapping[str, frozenset[int]]) -> pa.Array:
    """The refused columns of each row, with those whose text is no text."""
    listed: list[list[str]] = [names or [] for names in refused.to_pylist()]
    named = ([*names, *(name for name, places in bad.items() if place in places)] for place, names in enumerate(listed))
    return pa.array([names or None for names in named], refused.type)


def _without_refused(arrays: Sequence[pa.Array], schema: pa.Schema) -> Iterator[pa.Array]:
    names, rows = arrays[-1].flatten(), pc.list_parent_indices(arrays[-1])
    refused = set(names.unique().to_pylist())
    for array, name in zip(arrays[:-1], schema.names[:-1], strict=True):
        if name not in refused:
            yield array
            continue
        mask = np.zeros(len(array), dtype=bool)
        mask[rows.filter(pc.equal(names, name)).to_numpy()] = True
        yield pc.if_else(pa.array(mask), pa.scalar(None, array.type), array)


def _conform(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if pa.types.is_list(type_):
        # Rebuilt from the same buffers: a cast between equal types would keep the metadata of the driver's item field.
        values = _conform(array.values, type_.value_type)
        return pa.Array.from_buffers(type_, len(array), array.buffers()[:2], array.null_count, array.offset, children=[values])
    return array if array.type == type_ else array.cast(type_)
