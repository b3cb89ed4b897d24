"""The addresses in a channel's column, one by one: a text, a list of texts, or objects. Columnar."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wsync_sdk.records import SEPARATOR_BYTES, JsonStyle, is_json, is_marked, joined, json_records, sliced
from wsync_suprsend.fields import PHONES, Field
from wsync_suprsend.refusals import Refusals, lone_surrogates

__all__ = ["Values", "channel_values", "former_values", "texts_by_row"]

_E164 = r"^\+[1-9][0-9]{6,14}$"
_STYLE = JsonStyle(separator=b",", nulls_sent=False, non_finite_rejected=True, decimals_as_text=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Values of several rows, one after the other in the rows' order.

    :param counts: how many each row has. :param texts: each as JSON.
    """

    counts: npt.NDArray[np.int64]
    texts: pa.LargeStringArray

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row of each value."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def where(self, is_wanted: npt.NDArray[np.bool_]) -> Values:
        """The same without the values of other rows."""
        return Values(counts=np.where(is_wanted, self.counts, 0), texts=self.texts.filter(pa.array(is_wanted[self.rows])))


def channel_values(column: pa.Array, field: Field, refusals: Refusals) -> Values:
    """The addresses; NULL and an empty list are none.

    A row with a blank one, or one that is no phone number where it should be, is refused: SuprSend accepts first and looks later, so the row would be
    counted as delivered and the address be lost.
    """
    if pa.types.is_null(column.type) or column.type == pa.string_view():
        column = column.cast(pa.string())
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        rows, values = np.repeat(np.arange(len(column)), lengths), column.flatten()
        refusals.add_rows(rows[values.is_null().to_numpy(zero_copy_only=False)], "empty_address", field.name)
        item = column.type.value_field.with_metadata(column.type.value_field.metadata or {})
    else:
        rows, values, item = np.arange(len(column)), column, field.schema
    is_there = _is_there(values)
    rows, values = rows[is_there], values.filter(pa.array(is_there))
    _refuse(values, rows, item, field, refusals)
    written = json_records(
        pa.RecordBatch.from_arrays([values], schema=pa.schema([pa.field("v", values.type, metadata=item.metadata)])), _STYLE
    )
    marked = is_marked(written)
    if marked.any():
        refusals.add_rows(rows[marked], "invalid_json" if is_json(item) else "not_finite", field.name)
        written = pc.if_else(pa.array(marked), '{"v":null},', written)
    texts = sliced(written, head=len('{"v":'), tail=len("}") + SEPARATOR_BYTES)
    return Values(counts=np.bincount(rows, minlength=len(column)).astype(np.int64), texts=texts)


def _is_there(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Which values are one: a mapping makes an object of every row, also where it has nothing to put into it."""
    found: npt.NDArray[np.bool_] = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_struct(values.type):
        found = found & np.any([_is_there(child) for child in values.flatten()], axis=0)
    return found


def _refuse(values: pa.Array, rows: npt.NDArray[np.int64], item: pa.Field, field: Field, refusals: Refusals) -> None:
    if pa.types.is_struct(values.type) or len(values) == 0:
        return
    blank = pc.equal(pc.utf8_trim_whitespace(values), "")
    refusals.add_rows(rows[blank.to_numpy(zero_copy_only=False)], "empty_address", field.name)
    if is_json(item):
        lone_surrogates(values, field.name, refusals, rows=rows)
        listed = pc.match_substring_regex(values, r"^\s*\[")
        refusals.add_rows(rows[listed.to_numpy(zero_copy_only=False)], "address_list", field.name)
        nothing = pc.equal(pc.utf8_trim_whitespace(values), "null")
        refusals.add_rows(rows[nothing.to_numpy(zero_copy_only=False)], "empty_address", field.name)
    elif field.name in PHONES:
        is_phone = pc.match_substring_regex(values, _E164).to_numpy(zero_copy_only=False)
        refusals.add_rows(rows[~is_phone], "not_e164", field.name)


def former_values(known: pa.Array, now: Values) -> Values:
    """The addresses that a row may still have at SuprSend and should no longer: those known from before, without those that it has now.

    Addresses that differ in upper and lower case only are taken for one: whether SuprSend does so is not documented, nor whether in one record it takes
    one away before it adds the other. Costs some microseconds for each row whose address was replaced, and nothing for others.

    :param known: per row a list with JSON texts of the field's values, see `wsync_sdk.BEFORE`.
    """
    lengths = pc.fill_null(pc.list_value_length(known), 0).to_numpy(zero_copy_only=False)
    rows, texts = np.repeat(np.arange(len(known)), lengths), known.flatten().cast(pa.large_string())
    if not len(texts):
        return Values(counts=np.zeros(len(known), dtype=np.int64), texts=texts)
    pairs = [joined(pa.array(rows_of).cast(pa.large_string()), ":", of) for rows_of, of in ((rows, texts), (now.rows, now.texts))]
    is_changed = ~pc.is_in(pairs[0], value_set=pairs[1]).to_numpy(zero_copy_only=False)
    ends = np.cumsum(now.counts)
    found: list[str] = []
    counts = np.zeros(len(known), dtype=np.int64)
    for place in np.flatnonzero(is_changed):
        row = int(rows[place])
        kept = {_sameness(json.loads(str(text))) for text in now.texts[int(ends[row] - now.counts[row]) : int(ends[row])]}
        gone = [value for value in _addresses(str(texts[int(place)])) if _sameness(value) not in kept]
        found += [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in gone]
        counts[row] += len(gone)
    return Values(counts=counts, texts=pa.array(found, pa.large_string()))


def _addresses(text: str) -> list[Any]:
    """Those in a field's JSON text: it is an address, or a list of them."""
    value = json.loads(text)
    return [one for one in (value if isinstance(value, list) else [value]) if one is not None]


def _sameness(value: Any) -> str:
    """The same text for what may be the same address."""
    return json.dumps(value, sort_keys=True).casefold()


def texts_by_row(texts: pa.LargeStringArray, counts: npt.NDArray[np.int64]) -> pa.LargeStringArray:
    """Each row's texts, one behind the other; empty where it has none."""
    if len(texts) == len(counts) and (counts == 1).all():
        return texts
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), texts)
    return pc.binary_join(lists, pa.scalar("", pa.large_string()))
