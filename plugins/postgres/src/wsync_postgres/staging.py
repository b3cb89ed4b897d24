"""How mapped columns become columns of a table: SQL types, and Arrow arrays that COPY takes. Pure, and columnar: no Python object per value.

Nested values become JSON text made by Arrow kernels, which the server casts to jsonb.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from wsync_postgres.columns import JSON_METADATA
from wsync_sdk import ConfigError

__all__ = ["has_nul", "sql_type", "staged"]

_SQL_TYPES = {
    pa.bool_(): "boolean",
    pa.int8(): "smallint",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.uint8(): "smallint",
    pa.uint16(): "integer",
    pa.uint32(): "bigint",
    pa.uint64(): "numeric(20, 0)",
    pa.float16(): "real",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.date32(): "date",
    pa.date64(): "date",
    pa.null(): "text",
}
# What COPY takes for a type that Postgres has not.
_STAGED_AS = {
    pa.int8(): pa.int16(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.string(),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
    pa.null(): pa.string(),
}
_CONTROL = [chr(code) for code in range(32)]


def sql_type(field: pa.Field) -> str:
    """The type of the column that is made for a field.

    :raises ConfigError: Postgres has nothing for it.
    """
    type_ = field.type
    if _is_json(field) or _is_nested(type_):
        _check_nested(field.name, type_)
        return "jsonb"
    if pa.types.is_dictionary(type_):
        return sql_type(field.with_type(type_.value_type))
    name = _SQL_TYPES.get(type_) or _sql_type_of_kind(type_)
    if not name:
        raise _no_type(field.name, type_)
    return name


def _sql_type_of_kind(type_: pa.DataType) -> str:
    """For types that have parameters or several widths; empty if there is none."""
    decimal = f"numeric({type_.precision}, {type_.scale})" if pa.types.is_decimal(type_) and type_.scale >= 0 else "numeric"
    kinds = {
        decimal: pa.types.is_decimal(type_),
        "timestamptz": pa.types.is_timestamp(type_) and type_.tz is not None,
        "timestamp": pa.types.is_timestamp(type_),
        "time": pa.types.is_time(type_),
        "text": _is_text(type_),
        "bytea": pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_),
    }
    return next((name for name, is_it in kinds.items() if is_it), "")


def staged(array: pa.Array, field: pa.Field, *, column_type: str) -> pa.Array:
    """The array as COPY takes it; `column_type` is the table's, so a list stays one where the column is an array."""
    type_ = field.type
    if _is_nested(type_):
        if column_type.endswith("[]") and not _is_nested(type_.value_type):
            return array
        return pc.if_else(array.is_null(), pa.scalar(None, pa.string()), _json(array, field))
    if pa.types.is_dictionary(type_):
        return staged(array.dictionary_decode(), field.with_type(type_.value_type), column_type=column_type)
    return array.cast(_staged_type(type_))


def has_nul(array: pa.Array) -> bool:
    """True if a text has a NUL character, which Postgres can't hold."""
    if not _is_text(array.type):
        return False
    return bool(pc.any(pc.match_substring(array, "\0")).as_py())


def _staged_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", tz="UTC" if type_.tz else None)
    if pa.types.is_time(type_):
        return pa.time64("us")
    if pa.types.is_decimal(type_) or _is_text(type_):
        return pa.string()  # the server reads a decimal's text exactly, whatever its width
    if pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return pa.binary()
    return _STAGED_AS.get(type_, type_)


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or type_ == pa.string_view())


def _is_nested(type_: pa.DataType) -> bool:
    return bool(pa.types.is_struct(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).items() >= JSON_METADATA.items()


def _no_type(name: str, type_: pa.DataType) -> ConfigError:
    return ConfigError(f"the field `{name}` is {type_}, for which Postgres has no type", next_step="cast it in the mapping or in the query")


def _check_nested(name: str, type_: pa.DataType) -> None:
    """:raises ConfigError: JSON has no form for a type inside."""
    if pa.types.is_struct(type_):
        for child in type_:
            _check_nested(f"{name}.{child.name}", child.type)
    elif _is_nested(type_):
        _check_nested(name, type_.value_type)
    elif pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_duration(type_) or pa.types.is_map(type_):
        raise _no_type(name, type_)


def _json(array: pa.Array, field: pa.Field) -> pa.StringArray:
    """Each value as JSON text; `null` for NULL."""
    if pa.types.is_struct(field.type):
        text = _json_object(array, field.type)
    elif _is_nested(field.type):
        text = _json_array(array, field.type)
    else:
        text = _json_scalar(array, field)
    return pc.if_else(array.is_null(), "null", text)


def _json_object(array: pa.StructArray, type_: pa.StructType) -> pa.StringArray:
    parts: list[pa.Array | pa.Scalar] = []
    for index, child in enumerate(type_):
        # flatten() and not field(): it knows the parent's offset and NULLs.
        values = _json(array.flatten()[index], child)
        name = _quoted(pa.array([child.name]))[0].as_py()
        parts.append(pc.binary_join_element_wise(f"{name}:", values, ""))
    inside = pc.binary_join_element_wise(*parts, ",") if parts else pa.array([""] * len(array))
    return pc.binary_join_element_wise("{", inside, "}", "")


def _json_array(array: pa.ListArray, type_: pa.ListType) -> pa.StringArray:
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    values = _json(array.flatten(), type_.value_field)  # flatten() leaves out what NULL lists cover
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, values), ",")
    return pc.binary_join_element_wise("[", joined, "]", "")


def _json_scalar(array: pa.Array, field: pa.Field) -> pa.StringArray:
    type_ = field.type
    if pa.types.is_dictionary(type_):
        return _json_scalar(array.dictionary_decode(), field.with_type(type_.value_type))
    if _is_json(field):
        return array.cast(pa.string())
    if pa.types.is_floating(type_):
        wide = array.cast(pa.float64())
        # JSON has no NaN and no infinity: their names, as Postgres writes them.
        return pc.if_else(pc.is_finite(wide), array.cast(pa.string()), _quoted(_float_names(wide)))
    if pa.types.is_boolean(type_) or pa.types.is_integer(type_) or pa.types.is_decimal(type_):
        return array.cast(pa.string())
    text = array.cast(pa.string())
    return _quoted(pc.replace_substring(text, " ", "T") if pa.types.is_timestamp(type_) else text)


def _float_names(array: pa.Array) -> pa.StringArray:
    return pc.if_else(pc.is_nan(array), "NaN", pc.if_else(pc.greater(array, 0.0), "Infinity", "-Infinity"))


def _quoted(text: pa.StringArray) -> pa.StringArray:
    escaped = pc.replace_substring(pc.replace_substring(text, "\\", "\\\\"), '"', '\\"')
    if pc.any(pc.match_substring_regex(escaped, "[\\x00-\\x1f]")).as_py():
        for character in _CONTROL:
            escaped = pc.replace_substring(escaped, character, f"\\u{ord(character):04x}")
    return pc.binary_join_element_wise('"', escaped, '"', "")
