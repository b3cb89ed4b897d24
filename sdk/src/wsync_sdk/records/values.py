"""Arrow values that JSON has no form for, made into ones it has: base64, text of decimals, UTC. Columnar: no Python object per value.

The JSON writer would write binary as hexadecimal, UUIDs as their bytes and JSON text as a quoted string, without a word.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["JSON_METADATA", "base64_text", "is_json", "unsupported", "writable"]

JSON_METADATA = {b"wsync.logical": b"json"}
_LARGE_BYTES = 65_536
"""From this average on, a loop over values costs nothing beside their bytes."""


def is_json(field: pa.Field) -> bool:
    """True where the field holds JSON text, which goes into the record as it is."""
    return (field.metadata or {}).items() >= JSON_METADATA.items()


def unsupported(type_: pa.DataType) -> pa.DataType | None:
    """The type inside `type_` that can't be written; None if all can."""
    if isinstance(type_, pa.BaseExtensionType):
        return None if isinstance(type_, pa.UuidType) else type_
    if pa.types.is_dictionary(type_):
        return unsupported(type_.value_type)
    if pa.types.is_struct(type_):
        return next((found for child in type_ if (found := unsupported(child.type)) is not None), None)
    if _is_list(type_):
        return unsupported(type_.value_type)
    if pa.types.is_map(type_):
        return unsupported(type_.item_type) if _is_text(type_.key_type) else type_
    known = (
        pa.types.is_null(type_)
        or pa.types.is_boolean(type_)
        or pa.types.is_integer(type_)
        or pa.types.is_floating(type_)
        or pa.types.is_decimal(type_)
        or _is_text(type_)
        or _is_binary(type_)
        or pa.types.is_date(type_)
        or pa.types.is_time(type_)
        or pa.types.is_timestamp(type_)
        or pa.types.is_duration(type_)
    )
    return None if known else type_


def writable(array: pa.Array, *, decimals_as_text: bool) -> pa.Array:  # noqa: PLR0911 - a branch per type
    """The array with every type replaced that the JSON writer gets wrong; the same array where there is none."""
    type_ = array.type
    if isinstance(type_, pa.UuidType):
        return _uuid_text(array.storage)
    if pa.types.is_dictionary(type_):
        return writable(array.dictionary_decode(), decimals_as_text=decimals_as_text)
    if pa.types.is_struct(type_):
        children = [writable(child, decimals_as_text=decimals_as_text) for child in array.flatten()]
        fields = [field.with_type(child.type) for field, child in zip(type_, children, strict=True)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null()) if children else array
    if _is_list(type_):
        return _list_of(array, writable(array.flatten(), decimals_as_text=decimals_as_text))
    if pa.types.is_map(type_):
        return _map_of(array, decimals_as_text=decimals_as_text)
    if _is_binary(type_):
        return base64_text(array)
    if pa.types.is_decimal(type_) and decimals_as_text:
        return array.cast(pa.string())
    if pa.types.is_timestamp(type_) and type_.tz not in (None, "UTC"):
        return array.cast(pa.timestamp(type_.unit, "UTC"))  # the same instant: Arrow keeps UTC whatever the zone's name
    if type_ == pa.float16():
        return array.cast(pa.float32())
    return array


def base64_text(array: pa.Array) -> pa.StringArray:
    """Standard base64 with padding, of each value; NULL stays.

    Each value is laid out at a multiple of three bytes, so that one call encodes all of them, each to its own quadruples.
    """
    values = array.cast(pa.large_binary())
    if len(values) and values.nbytes // len(values) > _LARGE_BYTES:
        return _base64_each(values)
    _, offsets_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[values.offset : values.offset + len(values) + 1]
    lengths = np.diff(offsets)
    starts = np.concatenate([[0], np.cumsum((lengths + 2) // 3 * 3)])
    laid_out = np.zeros(int(starts[-1]), dtype=np.uint8)
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else laid_out
    source = data[int(offsets[0]) : int(offsets[-1])]
    laid_out[np.arange(len(source)) + np.repeat(starts[:-1] - (offsets[:-1] - offsets[0]), lengths)] = source
    text = np.frombuffer(bytearray(binascii.b2a_base64(laid_out.data, newline=False)), dtype=np.uint8)
    ends = starts[1:] // 3 * 4
    text[ends[lengths % 3 > 0] - 1] = ord("=")
    text[ends[lengths % 3 == 1] - 2] = ord("=")
    encoded = pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(starts // 3 * 4), pa.py_buffer(text))
    return pc.if_else(array.is_valid(), encoded, pa.scalar(None, pa.large_string()))


def _base64_each(values: pa.LargeBinaryArray) -> pa.LargeStringArray:
    """The same for few large values, whose bytes' places would take a multiple of their own memory."""
    encoded = (None if value is None else binascii.b2a_base64(value.as_buffer(), newline=False) for value in _scalars(values))
    return pa.array(encoded, pa.large_binary()).cast(pa.large_string())


def _scalars(values: pa.LargeBinaryArray) -> Iterator[pa.LargeBinaryScalar | None]:
    for value in values:
        yield value if value.is_valid else None


def _uuid_text(storage: pa.Array) -> pa.StringArray:
    """Hexadecimal in the usual five groups."""
    data = np.frombuffer(storage.buffers()[1] or b"", dtype=np.uint8)
    data = data[storage.offset * 16 : (storage.offset + len(storage)) * 16].reshape(-1, 16)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = np.full((len(storage), 36), ord("-"), dtype=np.uint8)
    places = [place for place in range(36) if place not in (8, 13, 18, 23)]
    text[:, places[0::2]] = digits[data >> 4]
    text[:, places[1::2]] = digits[data & 15]
    offsets = np.arange(0, (len(storage) + 1) * 36, 36, dtype=np.int64)
    encoded = pa.LargeStringArray.from_buffers(len(storage), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))
    return pc.if_else(storage.is_valid(), encoded, pa.scalar(None, pa.large_string()))


def _list_of(array: pa.Array, values: pa.Array) -> pa.Array:
    """A list array with other values; `values` are those that `flatten` gives, which leaves out what NULL lists cover."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    lists = pa.LargeListArray.from_arrays(offsets, values)
    return pc.if_else(array.is_valid(), lists, pa.scalar(None, lists.type))


def _map_of(array: pa.MapArray, *, decimals_as_text: bool) -> pa.Array:
    items = writable(array.items, decimals_as_text=decimals_as_text)
    return array if items.type == array.type.item_type else pa.MapArray.from_arrays(array.offsets, array.keys, items)


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or type_ == pa.string_view())


def _is_binary(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_) or type_ == pa.binary_view()
    )
