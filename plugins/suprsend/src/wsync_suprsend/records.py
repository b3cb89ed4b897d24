"""From a batch of changes to one user record per change: columnar, no Python object per value.

A record is complete but for its `$insert_id` and `$time`, which belong to the call and not to the change: both are of fixed width, stand at a fixed place,
and are written over when the call is made (`stamped`). So the engine, which cuts chunks by the records' bytes, counts every byte that is sent.

Only target values are stated (`$set`, `$unset`, `$remove`, and `$append` for channels, where a value that is there stays single): a record that comes twice
changes nothing the second time. `$add` and `$append` of properties are never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wsync_sdk import BEFORE, Nulls, Operation, nulls_of, with_nulls
from wsync_sdk.records import (
    MARK,
    SEPARATOR_BYTES,
    JsonStyle,
    Text,
    bytes_of,
    interleaved,
    is_json,
    is_marked,
    joined,
    json_name,
    json_records,
    large,
    narrowed,
    sliced,
)
from wsync_suprsend import __version__
from wsync_suprsend.channels import Values, channel_values, former_values, texts_by_row
from wsync_suprsend.config import NullChannels, OnDelete
from wsync_suprsend.fields import Field, Layout
from wsync_suprsend.refusals import Refusals, id_texts, lone_surrogates

__all__ = ["NOTHING", "SENDER", "SEPARATOR", "Template", "ids_rendered", "rendered", "stamped"]

SENDER = f"wsync/{__version__}"
SEPARATOR = b","
NOTHING = "nothing_to_say"
"""Code of the mark of a change that asks for nothing: it is accepted and not sent."""
_NO_ID = "00000000-0000-4000-8000-000000000000"
_NO_TIME = "1000000000000"
_IDS = JsonStyle(separator=SEPARATOR, nulls_sent=False, non_finite_rejected=True, decimals_as_text=True)
_EMPTY = "{},"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What every record of a connection has in common, and what its settings ask for."""

    environment: str
    tenant_id: str | None
    on_delete: OnDelete
    null_channels: NullChannels
    decimals_as_text: bool = False

    @property
    def style(self) -> JsonStyle:
        """How properties are written."""
        return JsonStyle(separator=SEPARATOR, nulls_sent=False, non_finite_rejected=True, decimals_as_text=self.decimals_as_text)

    @property
    def head(self) -> str:
        """All that stands before `"distinct_id"`."""
        tenant = f'"tenant_id":{json.dumps(self.tenant_id)},' if self.tenant_id is not None else ""
        fixed = f'"$schema":"2","env":{json.dumps(self.environment)},{tenant}"properties":{{"$ss_sdk_version":"{SENDER}"}},'
        return f'{{"$insert_id":"{_NO_ID}","$time":{_NO_TIME},{fixed}'


_ID_PLACE = len('{"$insert_id":"')
_TIME_PLACE = _ID_PLACE + len(_NO_ID) + len('","$time":')


def rendered(changes: pa.RecordBatch, layout: Layout, template: Template) -> Text:
    """One record and the separator per change, in order; a mark where a change can't be sent, see `wsync_sdk.records.mark_of`."""
    is_delete = pc.equal(changes.column(0), str(Operation.DELETE))
    if not pc.any(is_delete).as_py():
        return _upserts(changes, layout, template)
    if pc.all(is_delete).as_py():
        return _deletes(changes, layout, template)
    return interleaved(
        is_delete,
        _upserts(changes.filter(pc.invert(is_delete)), layout, template),
        _deletes(changes.filter(is_delete), layout, template),
    )


def ids_rendered(changes: pa.RecordBatch, key: str) -> Text:
    """The user's id as JSON text and the separator per change; or a mark."""
    refusals = Refusals(changes.num_rows)
    ids = _quoted_ids(changes, key, refusals)
    return narrowed(refusals.marking(joined(ids, SEPARATOR.decode()), SEPARATOR))


def _upserts(changes: pa.RecordBatch, layout: Layout, template: Template) -> Text:
    refusals = Refusals(changes.num_rows)
    ids = _quoted_ids(changes, layout.key, refusals)
    return _record(ids, joined(*_operations(changes, layout, template, refusals)), template, refusals)


def _record(ids: pa.LargeStringArray, operations: pa.LargeStringArray, template: Template, refusals: Refusals) -> Text:
    """Whole records of operations that each have a comma behind them; marks where there are none."""
    is_silent = pc.equal(operations, "")
    inside = sliced(operations, head=0, tail=1, rows=~is_silent.to_numpy(zero_copy_only=False))
    records = joined(template.head, '"distinct_id":', ids, ',"$user_operations":[', inside, "]}" + SEPARATOR.decode())
    if pc.any(is_silent).as_py():
        records = pc.if_else(is_silent, large(f"{MARK.decode()}{NOTHING} {SEPARATOR.decode()}"), records)
    return narrowed(refusals.marking(records, SEPARATOR))


def _deletes(changes: pa.RecordBatch, layout: Layout, template: Template) -> Text:
    """A record where the user stays, else the id alone: it goes into the body of another request, or into none."""
    if not template.on_delete.is_edit:
        return ids_rendered(changes, layout.key)
    refusals = Refusals(changes.num_rows)
    ids = _quoted_ids(changes, layout.key, refusals)
    return _record(ids, joined(*_farewell(changes, layout, template)), template, refusals)


def _farewell(changes: pa.RecordBatch, layout: Layout, template: Template) -> Iterator[pa.LargeStringArray]:
    rows = changes.num_rows
    if template.on_delete is OnDelete.UNSET_CHANNELS:
        yield _unset([(field, pa.repeat(True, rows)) for field in layout.channels], rows)
        return
    nothing = Values(counts=np.zeros(rows, dtype=np.int64), texts=pa.array([], pa.large_string()))
    for field in layout.channels:
        known = _before(changes, field)
        yield _each("$remove", field, nothing if known is None else former_values(known, nothing))


def _quoted_ids(changes: pa.RecordBatch, key: str, refusals: Refusals) -> pa.LargeStringArray:
    texts = id_texts(changes.column(changes.schema.get_field_index(key)), key, refusals)
    written = json_records(pa.RecordBatch.from_arrays([texts], names=["v"]), _IDS)
    return sliced(written, head=len('{"v":'), tail=len("}") + SEPARATOR_BYTES)


# -- operations


def _operations(changes: pa.RecordBatch, layout: Layout, template: Template, refusals: Refusals) -> Iterator[pa.LargeStringArray]:
    """Texts of operations, each with a comma behind it, to be joined row by row."""
    rows = changes.num_rows
    properties = [(field, _property(_column(changes, field), field, refusals)) for field in layout.properties]
    if properties:
        yield _set(properties, template.style, refusals)
    channels = [(field, channel_values(_column(changes, field), field, refusals)) for field in layout.channels]
    yield _unset([*_missing(properties), *_emptied(channels, template)], rows)
    for field, values in channels:
        if (known := _before(changes, field)) is not None:
            yield _each("$remove", field, _taken_away(field, former_values(known, values), values, template))
        yield _each("$append", field, values)


def _column(batch: pa.RecordBatch, field: Field) -> pa.Array:
    """The field's values; NULL where its group is."""
    column = batch.column(batch.schema.get_field_index(field.path[0]))
    for name in field.path[1:]:
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _property(values: pa.Array, field: Field, refusals: Refusals) -> pa.Array:
    """The values, with JSON's null as NULL: what `$set` does with a null nobody documents."""
    for path, texts in _json_leaves(values, field.schema, field.name):
        lone_surrogates(texts, path, refusals)
    if not is_json(field.schema):
        return values
    values = values.cast(pa.string()) if values.type == pa.string_view() else values
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), "null"), pa.scalar(None, values.type), values)


def _json_leaves(values: pa.Array, field: pa.Field, path: str) -> Iterator[tuple[str, pa.Array]]:
    """The JSON texts in a field, however deep, one per row."""
    if is_json(field):
        yield path, values.cast(pa.string()) if values.type == pa.string_view() else values
    elif pa.types.is_struct(field.type):
        for child, inner in zip(field.type, values.flatten(), strict=True):
            yield from _json_leaves(inner, child, f"{path}.{child.name}")


def _set(properties: Sequence[tuple[Field, pa.Array]], style: JsonStyle, refusals: Refusals) -> pa.LargeStringArray:
    # A NULL is never in `$set`: `_missing` says what becomes of it.
    schema = pa.schema([with_nulls(field.schema.with_name(field.name).with_type(array.type), None) for field, array in properties])
    written = json_records(pa.RecordBatch.from_arrays([array for _, array in properties], schema=schema), style)
    is_refused = is_marked(written)
    if is_refused.any():
        refusals.add_marks(written, is_refused)
        written = pc.if_else(pa.array(is_refused), _EMPTY, written)
    is_empty = pc.equal(written, _EMPTY)
    texts = joined('{"$set":', sliced(written, head=0, tail=SEPARATOR_BYTES), "},")
    return pc.if_else(is_empty, large(""), texts)


def _missing(properties: Sequence[tuple[Field, pa.Array]]) -> list[tuple[Field, pa.BooleanArray]]:
    """Properties that are NULL, and in which rows."""
    return [(field, array.is_null()) for field, array in properties if array.null_count and nulls_of(field.schema) is not Nulls.OMIT]


def _unset(gone: Sequence[tuple[Field, pa.BooleanArray]], rows: int) -> pa.LargeStringArray:
    names = [pc.if_else(is_gone, large(f",{json_name(field.name)}"), large("")) for field, is_gone in gone if pc.any(is_gone).as_py()]
    if not names:
        return pa.repeat(large(""), rows)
    listed = joined(*names)
    is_none = pc.equal(listed, "")
    cut = sliced(listed, head=1, tail=0, rows=~is_none.to_numpy(zero_copy_only=False))
    return pc.if_else(is_none, large(""), joined('{"$unset":[', cut, "]},"))


def _emptied(channels: Sequence[tuple[Field, Values]], template: Template) -> list[tuple[Field, pa.BooleanArray]]:
    """Channels that lose all their addresses, whoever gave them, and in which rows."""
    return [(field, pa.array(values.counts == 0)) for field, values in channels if _when_null(field, template) is NullChannels.UNSET]


def _taken_away(field: Field, former: Values, now: Values, template: Template) -> Values:
    """The former addresses that are removed by name: all of them, but where a row has none now, as mapping or settings say."""
    return former if _when_null(field, template) is NullChannels.REMOVE else former.where(now.counts > 0)


def _when_null(field: Field, template: Template) -> NullChannels:
    """What becomes of a channel without addresses: `omit` keeps it, and `send` never does."""
    match nulls_of(field.schema):
        case Nulls.OMIT:
            return NullChannels.KEEP
        case Nulls.SEND if template.null_channels is NullChannels.KEEP:
            return NullChannels.REMOVE
    return template.null_channels


def _before(changes: pa.RecordBatch, field: Field) -> pa.Array | None:
    """What SuprSend may still hold of the field; None where the engine does not say."""
    place = changes.schema.get_field_index(BEFORE)
    known = changes.column(place) if place >= 0 else None
    inner = -1 if known is None else known.type.get_field_index(".".join(field.path))
    return known.flatten()[inner] if known is not None and inner >= 0 else None


def _each(operation: str, field: Field, values: Values) -> pa.LargeStringArray:
    """One operation per value: what several values in one would mean nobody documents."""
    texts = joined(f'{{"{operation}":{{{json_name(field.name)}:', values.texts, "}},")
    return texts_by_row(texts, values.counts)


# -- stamps


def stamped(records: Text, places: npt.NDArray[np.int64], *, chunk_key: str, now_ms: int) -> bytes:
    """The body of a call: an array of the records, each with its `$insert_id` and the time.

    :param records: as rendered, none of them a mark. :param places: each row's place in its chunk: with the chunk's key it makes the same id each time.
    :param now_ms: since 1970; thirteen digits, which it has until the year 2286.
    """
    data = np.frombuffer(bytes_of(records), dtype=np.uint8).copy()
    starts = np.concatenate([[0], np.cumsum(pc.binary_length(records).to_numpy(zero_copy_only=False))])[:-1].astype(np.int64)
    _write_over(data, starts + _ID_PLACE, insert_ids(chunk_key, places))
    time = np.frombuffer(f"{now_ms:013d}".encode(), dtype=np.uint8)
    _write_over(data, starts + _TIME_PLACE, np.broadcast_to(time, (len(starts), len(time))))
    return b"".join((b"[", data[:-SEPARATOR_BYTES].tobytes(), b"]"))


def _write_over(data: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], texts: npt.NDArray[np.uint8]) -> None:
    data[at[:, None] + np.arange(texts.shape[1])] = texts


def insert_ids(chunk_key: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """UUIDs as ASCII, one per place: twelve bytes of the key's SHA-256, and the place; with the version that SuprSend's own client writes."""
    digest = np.frombuffer(hashlib.sha256(chunk_key.encode()).digest(), dtype=np.uint8)
    numbers = np.empty((len(places), 16), dtype=np.uint8)
    numbers[:, :12] = digest[:12]
    numbers[:, 12:] = places.astype(">u4").view(np.uint8).reshape(-1, 4)
    numbers[:, 6] = (numbers[:, 6] & 0x0F) | 0x40
    numbers[:, 8] = (numbers[:, 8] & 0x3F) | 0x80
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = np.full((len(places), 36), ord("-"), dtype=np.uint8)
    free = [place for place in range(36) if place not in (8, 13, 18, 23)]
    text[:, free[0::2]] = digits[numbers >> 4]
    text[:, free[1::2]] = digits[numbers & 15]
    return text
