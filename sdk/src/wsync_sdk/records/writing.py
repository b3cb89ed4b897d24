"""From a batch of fields to one JSON object per row: columnar, by arro3's writer and Arrow's kernels.

A record is its JSON and one separator byte, so that the records of a chunk, which lie one after the other in memory, are nearly a body already. A row that
JSON can't say is never altered in silence: its record is a mark, `!code field`, which a sink turns into a rejection and does not send.

What the writer would do wrong is taken from it before: NaN and infinity (it writes null), JSON text (it quotes it), binary, UUIDs and the like (see
`values`), dates outside the years 1 to 9999.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from arro3.io import write_ndjson
from pyarrow import json as arrow_json

from wsync_sdk.nulls import Nulls, nulls_of
from wsync_sdk.records.text import NARROW_LIMIT, Bools, Text, joined, large, narrowed, sliced
from wsync_sdk.records.values import is_json, writable

__all__ = ["MARK", "SEPARATOR_BYTES", "JsonStyle", "is_marked", "json_name", "json_records", "mark_of"]

MARK = b"!"
SEPARATOR_BYTES = 1
_STRING = r'"(?:[^"\\\n\r]|\\.)*"'
_DAYS = (-719_162, 2_932_896)
"""0001-01-01 and 9999-12-31, in days since 1970."""
_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonStyle:
    """How records are written.

    :param separator: one byte after each record. :param nulls_sent: NULL is written as null, else the field is left out, at every depth; of fields with
        `nulls_of`, what that says.
    :param non_finite_rejected: NaN and infinity refuse their row, else null is written. :param decimals_as_text: else they are numbers.
    """

    separator: bytes
    nulls_sent: bool
    non_finite_rejected: bool
    decimals_as_text: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """Rows that can't be written, and why."""

    rows: Bools
    mark: str


def is_marked(records: Text) -> Bools:
    """Which rows have no record but a mark."""
    result: Bools = pc.starts_with(records, MARK.decode()).to_numpy(zero_copy_only=False)
    return result


def mark_of(record: str) -> tuple[str, str]:
    """(code, field) of a mark."""
    code, _, field = record[len(MARK) : -SEPARATOR_BYTES].partition(" ")
    return code, field


def json_records(fields: pa.RecordBatch, style: JsonStyle) -> Text:
    """One JSON object and the separator per row, with the fields in their order; those that are or hold JSON text last.

    A row that JSON can't say has a mark instead, see `mark_of`.
    """
    refusals = list(_refusals(fields, style))
    columns = list(zip(fields.schema, fields.columns, strict=True))
    texts = _objects(columns, fields.num_rows, style, refusals)
    if not refusals:
        return texts
    for refusal in reversed(refusals):  # the first reason is the one that stays
        texts = pc.if_else(pa.array(refusal.rows), f"{MARK.decode()}{refusal.mark}{style.separator.decode()}", texts)
    return texts


def _objects(columns: Sequence[tuple[pa.Field, pa.Array]], rows: int, style: JsonStyle, refusals: list[_Refusal], path: str = "") -> Text:
    """A JSON object and the separator per row. What holds JSON text is written apart and joined on: those fields come last."""
    special = [(field, array) for field, array in columns if _is_special(field)]
    plain = [(field, array) for field, array in columns if not _is_special(field)]
    other = [(field, array) for field, array in plain if _are_nulls_sent(field, style) != style.nulls_sent]
    written = _written([pair for pair in plain if pair not in other] if other else plain, rows, style)
    if not special and not other:
        return written
    parts = [sliced(written, head=1, tail=1 + SEPARATOR_BYTES)]
    if other:
        parts.append(_appended(_written(other, rows, replace(style, nulls_sent=not style.nulls_sent))))
    for field, array in special:
        text = _nested(field, array, style, refusals, f"{path}{field.name}")
        if _are_nulls_sent(field, style):
            text = pc.fill_null(text, large("null"))
        # Not joined by "," with NULLs skipped: Arrow 26 then leaves out rows that have nothing else.
        parts.append(pc.fill_null(joined(f",{json_name(field.name)}:", text), large("")))
    inside = joined(*parts)
    is_headless = pc.starts_with(inside, ",").to_numpy(zero_copy_only=False)
    if is_headless.any():
        inside = sliced(inside, head=1, tail=0, rows=is_headless)
    return narrowed(joined("{", inside, "}" + style.separator.decode()))


def _appended(written: Text) -> pa.LargeStringArray:
    """Objects as what comes behind other fields: a comma and the fields; nothing where there are none."""
    fields = sliced(written, head=1, tail=1 + SEPARATOR_BYTES)
    return pc.if_else(pc.equal(fields, ""), large(""), joined(",", fields))


def _nested(field: pa.Field, array: pa.Array, style: JsonStyle, refusals: list[_Refusal], path: str) -> pa.LargeStringArray:
    """JSON text of a field that is JSON text, or of a structure that holds some; NULL stays."""
    if is_json(field):
        return _json_text(array, refusals, path)
    inner = _objects(list(zip(field.type, array.flatten(), strict=True)), len(array), style, refusals, f"{path}.")
    text = sliced(inner, head=0, tail=SEPARATOR_BYTES)
    return pc.if_else(array.is_valid(), text, large(None))


def _is_special(field: pa.Field) -> bool:
    """Whether the writer can't write it: JSON text, or a structure that holds some, or that holds fields with NULLs of their own kind."""
    if not pa.types.is_struct(field.type):
        return is_json(field)
    return any(nulls_of(child) is not None or _is_special(child) for child in field.type)


def _are_nulls_sent(field: pa.Field, style: JsonStyle) -> bool:
    nulls = nulls_of(field)
    return style.nulls_sent if nulls is None else nulls is Nulls.SEND


def _written(columns: Sequence[tuple[pa.Field, pa.Array]], rows: int, style: JsonStyle) -> Text:
    """The writer's lines; the line break of each becomes the separator, in place."""
    if not columns:
        return pa.repeat(pa.scalar("{}" + style.separator.decode()), rows)
    if rows == 0:
        return pa.array([], pa.string())
    arrays = [writable(array, decimals_as_text=style.decimals_as_text) for _, array in columns]
    batch = pa.RecordBatch.from_arrays(arrays, names=[field.name for field, _ in columns])
    out = io.BytesIO()
    write_ndjson(batch, out, explicit_nulls=style.nulls_sent)
    data = np.frombuffer(out.getbuffer(), dtype=np.uint8)
    breaks = np.flatnonzero(data == ord("\n"))  # in JSON text a line break is always escaped
    if len(breaks) != rows:
        raise ValueError("the JSON writer gave another number of lines than there are rows")
    data[breaks] = ord(style.separator)
    wide = len(data) > NARROW_LIMIT
    offsets = np.concatenate([[0], breaks + 1]).astype(np.int64 if wide else np.int32)
    kind = pa.LargeStringArray if wide else pa.StringArray
    return kind.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(data))


def json_name(name: str) -> str:
    """A field's name as JSON text, with its quotes, as the writer writes it."""
    out = io.BytesIO()
    write_ndjson(pa.RecordBatch.from_arrays([pa.array([name])], names=["n"]), out)
    return out.getvalue()[len(b'{"n":') : -len(b"}\n")].decode()


# -- JSON text


def _json_text(array: pa.Array, refusals: list[_Refusal], path: str) -> pa.LargeStringArray:
    """JSON text on one line. Text that is no JSON would end the record early, or add fields to it: refused."""
    text = array.cast(pa.large_string())
    bad = _broken_strings(text)
    for character in "\n\r":  # of what is not refused, they stand between tokens only
        text = pc.replace_substring(text, character, " ")
    bad |= _foreign_numbers(text)
    checked = np.flatnonzero(text.is_valid().to_numpy(zero_copy_only=False) & ~bad)
    present = text.take(pa.array(checked)) if len(checked) < len(text) else text
    if not _all_json(present):
        bad[checked[_not_json(present)]] = True
    if bad.any():
        refusals.append(_Refusal(rows=bad, mark=f"invalid_json {path}"))
    return text


def _broken_strings(text: pa.LargeStringArray) -> Bools:
    """Texts with a raw line break inside a JSON string: without whole strings, one of its quotes is left."""
    return _left_in(text, ("\n", "\r"), '"')


def _foreign_numbers(text: pa.LargeStringArray) -> Bools:
    """Texts with NaN or Infinity outside a string: Arrow's reader takes them, JSON has not."""
    return _left_in(text, ("NaN", "Inf"), "NaN|Inf")


def _left_in(text: pa.LargeStringArray, words: Sequence[str], pattern: str) -> Bools:
    """Which texts with one of `words` match `pattern` once their strings are cut out."""
    found = np.zeros(len(text), dtype=bool)
    data = text.buffers()[2]
    everything = data.to_pybytes() if data is not None else b""
    if not any(word.encode() in everything for word in words):  # one look over all bytes, which nearly always ends it
        return found
    suspects = pc.match_substring_regex(text, "|".join(words))
    places = np.flatnonzero(pc.fill_null(suspects, False).to_numpy(zero_copy_only=False))
    bare = pc.replace_substring_regex(text.take(pa.array(places)), _STRING, "")
    found[places] = pc.match_substring_regex(bare, pattern).to_numpy(zero_copy_only=False)
    return found


def _all_json(texts: pa.LargeStringArray) -> bool:
    """Is each text one JSON value? It is read inside a list and as a member: what closes the one, or goes on after a comma, is an error in the other."""
    if len(texts) == 0:
        return True
    lines = joined('{"wsync_a":[', texts, '],"wsync_b":', texts, "}\n")
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)
    source = pa.BufferReader(data.slice(0, int(ends[lines.offset + len(lines)])))
    parsing = arrow_json.ParseOptions(explicit_schema=pa.schema([]), unexpected_field_behavior="ignore")
    reading = arrow_json.ReadOptions(use_threads=False, block_size=max(source.size() + 1, 1024))
    try:
        return bool(arrow_json.read_json(source, read_options=reading, parse_options=parsing).num_rows == len(texts))
    except pa.ArrowInvalid:
        return False


def _not_json(texts: pa.LargeStringArray) -> list[int]:
    """Places of texts that are no JSON, found by halving."""
    todo, found = [(0, len(texts))], []
    while todo:
        start, stop = todo.pop()
        if _all_json(texts.slice(start, stop - start)):
            continue
        if stop - start == 1:
            found.append(start)
            continue
        middle = (start + stop) // 2
        todo += [(start, middle), (middle, stop)]
    return found


# -- values without a JSON form


def _refusals(fields: pa.RecordBatch, style: JsonStyle) -> Iterator[_Refusal]:
    for field, array in zip(fields.schema, fields.columns, strict=True):
        for path, code, values, rows in _leaves(array, field.name, np.arange(len(array))):
            bad = _out_of_range(values) if code == "date_out_of_range" else _non_finite(values)
            if (code == "date_out_of_range" or style.non_finite_rejected) and bad is not None:
                mask = np.zeros(fields.num_rows, dtype=bool)
                mask[rows[bad]] = True
                yield _Refusal(rows=mask, mark=f"{code} {path}")


def _leaves(array: pa.Array, path: str, rows: npt.NDArray[np.int64]) -> Iterator[tuple[str, str, pa.Array, npt.NDArray[np.int64]]]:
    """Floats and dates, however deep, each value with the row it belongs to."""
    type_ = array.type
    if pa.types.is_floating(type_):
        yield path, "not_finite", array, rows
    elif pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        yield path, "date_out_of_range", array, rows
    elif pa.types.is_dictionary(type_):
        yield from _leaves(array.dictionary_decode(), path, rows)
    elif pa.types.is_struct(type_):
        for child, values in zip(type_, array.flatten(), strict=True):
            yield from _leaves(values, f"{path}.{child.name}", rows)
    elif pa.types.is_map(type_):
        items = array.cast(pa.list_(pa.struct([("key", type_.key_type), ("value", type_.item_type)])))
        yield from _leaves(items, path, rows)
    elif hasattr(type_, "value_type"):
        # Not by `list_parent_indices`, which also counts what NULL lists cover and `flatten` leaves out.
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        yield from _leaves(array.flatten(), path, np.repeat(rows, lengths))


def _non_finite(values: pa.Array) -> Bools | None:
    finite = pc.is_finite(values)
    if pc.all(finite, min_count=0).as_py():
        return None
    result: Bools = ~pc.fill_null(finite, True).to_numpy(zero_copy_only=False)
    return result


def _out_of_range(values: pa.Array) -> Bools | None:
    """Before the year 1 or after 9999: ISO 8601 has four digits."""
    type_ = values.type
    per_day = 1 if type_ == pa.date32() else _PER_DAY["ms" if type_ == pa.date64() else type_.unit]
    low, high = _DAYS[0] * per_day, (_DAYS[1] + 1) * per_day - 1
    integers = values.view(pa.int32() if type_ == pa.date32() else pa.int64())
    if per_day == _PER_DAY["ns"]:
        return None  # 64 bits of nanoseconds stay within 1677 to 2262
    inside = pc.and_(pc.greater_equal(integers, low), pc.less_equal(integers, high))
    if pc.all(inside, min_count=0).as_py():
        return None
    result: Bools = ~pc.fill_null(inside, True).to_numpy(zero_copy_only=False)
    return result
