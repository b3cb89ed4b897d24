"""A sync held against its stream: each mistake, with its place in the file."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from wsync_engine.model.sync import MappingEntry, Mode, SyncSpec
from wsync_engine.pipeline.stream_check import cast_by_field, check_fields, stream_mistakes
from wsync_sdk import ConfigError, FieldSpec, Nulls, Operation, StreamLimits, StreamSpec

STREAM = StreamSpec(
    name="people",
    title="People",
    operations=frozenset(Operation),
    limits=StreamLimits(),
    fields=(FieldSpec(name="person", required=True), FieldSpec(name="address"), FieldSpec(name="$zone", type=pa.string())),
    open_fields=False,
    nulls=frozenset(Nulls),
)


def sync(*targets: str, **changes: object) -> SyncSpec:
    mapping = tuple(MappingEntry(target=target, column="c") for target in targets)
    spec = SyncSpec(name="s", source="w", sink="s", query="SELECT 1", key=("person",), stream="people", mode=Mode.UPSERT, mapping=mapping)
    return replace(spec, **changes)  # type: ignore[arg-type]


def test_a_sync_that_the_stream_can_take_has_no_mistakes() -> None:
    assert stream_mistakes(sync("person", "address.city", "$zone"), STREAM) == []


@pytest.mark.parametrize(
    ("spec", "stream", "path", "words", "next_step"),
    [
        (sync("person", "adress"), STREAM, "mapping.adress", "no field `adress`", "did you mean `address`?"),
        (sync("person", "zzz"), STREAM, "mapping.zzz", "no field `zzz`", "its fields are: the key, person, address, $zone"),
        (sync("address"), STREAM, "mapping", "needs the field `person`", "map a column to `person`"),
        (sync("person", "$zoen", "any"), replace(STREAM, open_fields=True, closed_prefixes=("$",)), "mapping.$zoen", "no field `$zoen`", "`$zone`"),
        (sync("person", key=("id",)), replace(STREAM, key=("person",)), "key", "tells rows apart by `person`", "name it as `key`"),
        (sync("person", mode=Mode.MIRROR), replace(STREAM, operations=frozenset({Operation.UPSERT})), "mode", "takes no deletes", "`mode: upsert`"),
        (sync("person", nulls=Nulls.OMIT), replace(STREAM, nulls=frozenset()), "nulls", "can't be asked to omit them", "remove `nulls`"),
        (
            sync(mapping=(MappingEntry(target="person", column="c"), MappingEntry(target="address", column="c", nulls=Nulls.SEND))),
            replace(STREAM, nulls=frozenset()), "mapping.address.nulls", "can't be asked to send them", "remove `nulls`",
        ),
    ],
)  # fmt: skip
def test_a_mistake_says_where_it_was_typed_and_what_to_do(
    spec: SyncSpec, stream: StreamSpec, path: str, words: str, next_step: str
) -> None:
    (mistake,) = stream_mistakes(spec, stream)

    assert ".".join(mistake.path) == path
    assert words in mistake.what
    assert next_step in mistake.next_step


def test_the_key_of_a_stream_that_takes_any_key_may_have_any_name() -> None:
    assert [mistake.path for mistake in stream_mistakes(sync("id", "person", key=("id",)), STREAM)] == []


def test_without_a_mapping_the_columns_are_the_fields() -> None:
    fields = pa.schema([("person", pa.string()), ("address", pa.struct([("city", pa.string())])), ("adress", pa.string())])

    with pytest.raises(ConfigError, match=r"mapping\.adress: the stream `people` has no field `adress`"):
        check_fields(sync(), STREAM, fields)
    check_fields(sync("adress"), STREAM, fields)  # said before


def test_a_field_of_a_type_is_cast_to_it() -> None:
    typed = [FieldSpec(name=str(type_), type=type_) for type_ in (pa.string(), pa.int32(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us", "UTC"), pa.binary())]  # fmt: skip

    assert list(cast_by_field(replace(STREAM, fields=tuple(typed))).values()) == [
        "text",
        "integer",
        "number",
        "boolean",
        "date",
        "timestamp",
    ]
