"""Records byte by byte, what refuses a row, and limits that are kept however rows are cut."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsync_sdk import OP, Chunk, ConfigError, Nulls, Target, before_type, with_nulls
from wsync_suprsend.config import NullChannels, OnDelete, SuprSendConfig
from wsync_suprsend.fields import CHANNELS, layout_of
from wsync_suprsend.records import Template, rendered, stamped
from wsync_suprsend.sink import SuprSendSink

from .conftest import batch_of, chunk_of

JSON = {b"wsync.logical": b"json"}
KEYS: dict[str, Any] = {"workspace_key": "acme", "workspace_secret": "s"}
MOST_BODY_BYTES, MOST_RECORD_BYTES = 819_200, 10_240
EMAIL = pa.schema([("$email", pa.string())])
PREFIX = (
    '{"$insert_id":"00000000-0000-4000-8000-000000000000","$time":1000000000000,"$schema":"2","env":"acme",'
    '"properties":{"$ss_sdk_version":"wsync/0.1.0"},"distinct_id":"u","$user_operations":'
)


def records(schema: pa.Schema, *rows: dict[str, Any], before: pa.DataType | None = None, **profiles: str) -> list[str]:
    """The records of rows whose key is `id`, which is `u` unless they say otherwise."""
    config = SuprSendConfig.model_validate({**KEYS, "profiles": profiles})
    schema = schema if "id" in schema.names else pa.schema([("id", pa.string()), *schema])
    template = Template(
        environment="acme", tenant_id=None, on_delete=config.profiles.on_delete, null_channels=config.profiles.null_channels
    )
    target = Target(stream="profiles", key=("id",), schema=schema)
    return [str(record) for record in rendered(batch_of([{"id": "u", **row} for row in rows], schema, before), layout_of(target), template)]


def operations(schema: pa.Schema, *rows: dict[str, Any], before: pa.DataType | None = None, **profiles: str) -> list[Any]:
    """What each row asks for."""
    written = records(schema, *rows, before=before, **profiles)
    return [json.loads(record[:-1])["$user_operations"] if record.startswith("{") else record[:-1] for record in written]


def test_a_record_is_fixed_byte_by_byte() -> None:
    schema = pa.schema([("name", pa.string()), ("channels", pa.struct([("email", pa.string())]))])

    (record,) = records(schema, {"name": 'Zoë "Z"', "channels": {"email": "z@example.com"}})

    assert record == PREFIX + '[{"$set":{"name":"Zoë \\"Z\\""}},{"$append":{"$email":"z@example.com"}}]},'


def test_a_null_property_is_unset_and_the_others_are_set_at_once() -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.bool_())])

    assert operations(schema, {"a": 1, "b": None, "c": None}, {"a": None}, {"a": 2, "b": "", "c": False}) == [
        [{"$set": {"a": 1}}, {"$unset": ["b", "c"]}],
        [{"$unset": ["a", "b", "c"]}],
        [{"$set": {"a": 2, "b": "", "c": False}}],
    ]


def test_groups_and_plain_names_mean_the_same() -> None:
    grouped = pa.schema([("channels", pa.struct([("email", pa.string())])), ("properties", pa.struct([("$timezone", pa.string())]))])
    plain = pa.schema([("$email", pa.string()), ("$timezone", pa.string())])

    one = operations(grouped, {"channels": {"email": "a@b.c"}, "properties": {"$timezone": "Asia/Kolkata"}})

    assert one == operations(plain, {"$email": "a@b.c", "$timezone": "Asia/Kolkata"})
    assert one == [[{"$set": {"$timezone": "Asia/Kolkata"}}, {"$append": {"$email": "a@b.c"}}]]


def test_each_address_of_a_list_is_an_operation_of_its_own() -> None:
    schema = pa.schema([("$email", pa.list_(pa.string())), ("$sms", pa.string())])

    rows = [{"$email": ["a@b.c", "d@e.f"], "$sms": "+4915112345678"}, {"$email": []}, {"$email": ["x@y.z"]}]

    assert operations(schema, *rows, null_channels="unset") == [
        [{"$append": {"$email": "a@b.c"}}, {"$append": {"$email": "d@e.f"}}, {"$append": {"$sms": "+4915112345678"}}],
        [{"$unset": ["$email", "$sms"]}],
        [{"$unset": ["$sms"]}, {"$append": {"$email": "x@y.z"}}],
    ]


def test_what_a_null_list_covers_belongs_to_nobody() -> None:
    addresses = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array(["a@x.y", "b@x.y", "c@x.y"]), mask=pa.array([False, True, False]))
    schema = pa.schema([("id", pa.string()), ("$email", addresses.type)])
    batch = pa.RecordBatch.from_arrays([pa.repeat("upsert", 3), pa.array(["1", "2", "3"]), addresses], names=[OP, *schema.names])
    template = Template(environment="acme", tenant_id=None, on_delete=OnDelete.REFUSE, null_channels=NullChannels.UNSET)

    for part in (batch, pa.concat_batches([batch, batch]).slice(3)):
        written = rendered(part, layout_of(Target(stream="profiles", key=("id",), schema=schema)), template)

        assert [json.loads(str(record)[:-1])["$user_operations"] for record in written] == [
            [{"$append": {"$email": "a@x.y"}}],
            [{"$unset": ["$email"]}],
            [{"$append": {"$email": "c@x.y"}}],
        ]


def test_a_channel_may_take_objects() -> None:
    slack = pa.struct([("email", pa.string()), ("access_token", pa.string())])
    schema = pa.schema([pa.field("$slack", slack), pa.field("$webpush", pa.string(), metadata=JSON)])

    (found,) = operations(schema, {"$slack": {"email": "a@b.c", "access_token": "t"}, "$webpush": '{"keys": {"auth": "x"}}'})

    assert found == [
        {"$append": {"$slack": {"email": "a@b.c", "access_token": "t"}}},
        {"$append": {"$webpush": {"keys": {"auth": "x"}}}},
    ]


def test_an_object_that_holds_nothing_is_no_address() -> None:
    slack = pa.struct([("email", pa.string()), ("deep", pa.struct([("token", pa.string())]))])
    schema = pa.schema([("$slack", slack)])

    rows = [{"$slack": {"email": None, "deep": {"token": None}}}, {"$slack": {"deep": {"token": "t"}}}]

    assert operations(schema, *rows, null_channels="unset") == [
        [{"$unset": ["$slack"]}],
        [{"$append": {"$slack": {"deep": {"token": "t"}}}}],
    ]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_texts_are_texts_however_arrow_keeps_them(kind: pa.DataType) -> None:
    schema = pa.schema([("id", kind), ("$sms", kind), ("name", kind), pa.field("extra", kind, metadata=JSON)])

    (found,) = operations(schema, {"$sms": "+4915112345678", "name": "a", "extra": "[1]"})

    assert found == [{"$set": {"name": "a", "extra": [1]}}, {"$append": {"$sms": "+4915112345678"}}]


BEFORE_EMAIL = before_type(["$email"])
OLD = {"$email": ['"old@example.com"']}


def test_a_replaced_address_is_removed_by_name_and_one_that_stays_is_not() -> None:
    assert operations(
        EMAIL,
        {"$email": "new@example.com", "before": OLD},
        {"$email": "old@example.com", "before": OLD},
        {"$email": "Old@Example.com", "before": OLD},
        {"$email": "new@example.com", "before": {"$email": ['"one@example.com"', '"two@example.com"']}},
        {"$email": "new@example.com", "before": {"$email": []}},
        {"$email": "new@example.com", "before": None},
        before=BEFORE_EMAIL,
    ) == [
        [{"$remove": {"$email": "old@example.com"}}, {"$append": {"$email": "new@example.com"}}],
        [{"$append": {"$email": "old@example.com"}}],
        [{"$append": {"$email": "Old@Example.com"}}],
        [
            {"$remove": {"$email": "one@example.com"}},
            {"$remove": {"$email": "two@example.com"}},
            {"$append": {"$email": "new@example.com"}},
        ],
        [{"$append": {"$email": "new@example.com"}}],
        [{"$append": {"$email": "new@example.com"}}],
    ]


NULLS: list[tuple[str, dict[str, Any] | None, Any]] = [
    ("remove", OLD, [{"$set": {"name": "a"}}, {"$remove": {"$email": "old@example.com"}}]),
    ("remove", None, [{"$set": {"name": "a"}}]),
    ("keep", OLD, [{"$set": {"name": "a"}}]),
    ("unset", OLD, [{"$set": {"name": "a"}}, {"$unset": ["$email"]}]),
    ("unset", None, [{"$set": {"name": "a"}}, {"$unset": ["$email"]}]),
]


@pytest.mark.parametrize(("null_channels", "before", "expected"), NULLS)
def test_a_null_in_a_channel_does_what_was_chosen(null_channels: str, before: dict[str, Any] | None, expected: Any) -> None:
    schema = pa.schema([("$email", pa.string()), ("name", pa.string())])

    assert operations(schema, {"name": "a", "before": before}, before=BEFORE_EMAIL, null_channels=null_channels) == [expected]


def test_a_change_that_asks_for_nothing_is_marked() -> None:
    assert records(EMAIL, {}) == ["!nothing_to_say ,"]


def test_of_a_list_only_what_left_it_is_removed() -> None:
    schema = pa.schema([("$email", pa.list_(pa.string()))])

    (found,) = operations(schema, {"$email": ["b@x.y", "ü@x.y"], "before": {"$email": ['["a@x.y","b@x.y", null]']}}, before=BEFORE_EMAIL)

    assert found == [{"$remove": {"$email": "a@x.y"}}, {"$append": {"$email": "b@x.y"}}, {"$append": {"$email": "ü@x.y"}}]


def test_a_mapping_may_turn_from_a_text_to_a_list() -> None:
    schema = pa.schema([("$email", pa.list_(pa.string()))])

    (found,) = operations(schema, {"$email": ["old@example.com", "b@x.y"], "before": OLD}, before=BEFORE_EMAIL)

    assert found == [{"$append": {"$email": "old@example.com"}}, {"$append": {"$email": "b@x.y"}}]


def test_an_object_that_says_the_same_in_another_form_stays() -> None:
    before = before_type(["channels.webpush"])
    schema = pa.schema([("channels", pa.struct([pa.field("webpush", pa.string(), metadata=JSON)]))])
    known = {"channels.webpush": ['{"a": 1, "b": "x"}']}

    assert operations(
        schema,
        {"channels": {"webpush": '{"b":"x","a":1}'}, "before": known},
        {"channels": {"webpush": '{"b":"y"}'}, "before": known},
        before=before,
    ) == [
        [{"$append": {"$webpush": {"b": "x", "a": 1}}}],
        [{"$remove": {"$webpush": {"a": 1, "b": "x"}}}, {"$append": {"$webpush": {"b": "y"}}}],
    ]


@pytest.mark.parametrize(
    ("on_delete", "before", "expected"),
    [
        ("remove_addresses", OLD, [{"$remove": {"$email": "old@example.com"}}]),
        ("remove_addresses", None, "!nothing_to_say "),
        ("unset_channels", OLD, [{"$unset": ["$email"]}]),
        ("unset_channels", None, [{"$unset": ["$email"]}]),
    ],
)
def test_deletes_take_addresses_as_was_chosen(on_delete: str, before: dict[str, Any] | None, expected: Any) -> None:
    rows = [{"op": "delete", "before": before}, {"$email": "a@b.c"}]

    found = operations(EMAIL, *rows, before=BEFORE_EMAIL, on_delete=on_delete)

    assert found == [expected, [{"$append": {"$email": "a@b.c"}}]]


def test_json_is_nested_and_its_null_is_none() -> None:
    schema = pa.schema([pa.field("extra", pa.string(), metadata=JSON), pa.field("n", pa.int64())])

    assert operations(schema, {"extra": '{"a": [1, null]}', "n": 1}, {"extra": " null ", "n": 1}) == [
        [{"$set": {"n": 1, "extra": {"a": [1, None]}}}],
        [{"$set": {"n": 1}}, {"$unset": ["extra"]}],
    ]


def test_deletes_unset_the_mapped_channels_where_that_is_wanted() -> None:
    schema = pa.schema([("$email", pa.string()), ("$sms", pa.string()), ("name", pa.string())])

    found = operations(schema, {"op": "delete"}, {"name": "a", "$email": "a@b.c", "$sms": "+4915112345678"}, on_delete="unset_channels")

    assert found[0] == [{"$unset": ["$email", "$sms"]}]
    assert found[1][0] == {"$set": {"name": "a"}}


def test_deletes_of_users_are_their_ids() -> None:
    assert records(pa.schema([("name", pa.string())]), {"op": "delete", "id": 'a"b'}, on_delete="delete_user") == ['"a\\"b",']


# -- what refuses a row

TEXT = pa.schema([("name", pa.string())])
EMAILS = pa.schema([("$email", pa.list_(pa.string()))])
PHONE = pa.schema([("$sms", pa.string())])
EXTRA = pa.schema([pa.field("extra", pa.string(), metadata=JSON)])
WEBPUSH = pa.schema([pa.field("$webpush", pa.string(), metadata=JSON)])
DEEP = pa.schema([("properties", pa.struct([("a", pa.struct([pa.field("b", pa.string(), metadata=JSON)]))]))])
REFUSED = [
    (TEXT, {"id": ""}, "empty_id id"),
    (TEXT, {"id": " \t"}, "empty_id id"),
    (TEXT, {"id": " a"}, "untrimmed_id id"),
    (TEXT, {"id": "a\u00a0"}, "untrimmed_id id"),
    (TEXT, {"id": "a\x1f"}, "untrimmed_id id"),
    (EMAIL, {"$email": " "}, "empty_address $email"),
    (EMAILS, {"$email": ["a@b.c", ""]}, "empty_address $email"),
    (EMAILS, {"$email": ["a@b.c", None]}, "empty_address $email"),
    (PHONE, {"$sms": "0151 12345678"}, "not_e164 $sms"),
    (PHONE, {"$sms": "+0151123456"}, "not_e164 $sms"),
    (PHONE, {"$sms": "+4915112345678\n"}, "not_e164 $sms"),
    (EXTRA, {"extra": "{"}, "invalid_json extra"),
    (EXTRA, {"extra": '"\\ud800"'}, "lone_surrogate extra"),
    (EXTRA, {"extra": '"\\ud83d\\ude00\\uDE00"'}, "lone_surrogate extra"),
    (DEEP, {"properties": {"a": {"b": '"\\udc00"'}}}, "lone_surrogate a.b"),
    (WEBPUSH, {"$webpush": "[1]"}, "address_list $webpush"),
    (WEBPUSH, {"$webpush": "null"}, "empty_address $webpush"),
    (WEBPUSH, {"$webpush": "{"}, "invalid_json $webpush"),
    (pa.schema([("score", pa.float64())]), {"score": float("nan")}, "not_finite score"),
    (pa.schema([("score", pa.float64())]), {"score": float("-inf")}, "not_finite score"),
    (pa.schema([("properties", pa.struct([("score", pa.float64())]))]), {"properties": {"score": float("inf")}}, "not_finite score"),
]


@pytest.mark.parametrize(("schema", "row", "mark"), REFUSED)
def test_a_row_that_must_not_be_sent_is_marked_and_no_other(schema: pa.Schema, row: dict[str, Any], mark: str) -> None:
    before, refused, after = records(schema, {}, row, {}, null_channels="unset")

    assert refused == f"!{mark},"
    assert before.startswith("{")
    assert after.startswith("{")


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud800"', '"\\\\\\\\ud800"'])
def test_whole_pairs_and_escaped_backslashes_are_no_half_pairs(text: str) -> None:
    assert operations(EXTRA, {"extra": text}) == [[{"$set": {"extra": json.loads(text)}}]]


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        (pa.array([-5, 2**63 - 1]), ["-5", "9223372036854775807"]),
        (pa.array([b"\x00" * 15 + b"\x01", b"\xff" * 16], pa.binary(16)).cast(pa.uuid()), None),
        (pa.array(["a/b", "日本"], pa.large_string()), ["a/b", "日本"]),
    ],
)
def test_a_key_is_written_as_text_whatever_it_is(values: pa.Array, ids: list[str] | None) -> None:
    schema = pa.schema([("id", values.type), ("name", pa.string())])

    written = records(schema, *({"id": value.as_py()} for value in values))

    found = [json.loads(record[:-1])["distinct_id"] for record in written]
    assert found == (ids or [str(value.as_py()) for value in values])


# -- what a mapping can be

WRONG = [
    (pa.schema([("id", pa.string())]), ("id",), "nothing but the key"),
    (pa.schema([("id", pa.string()), ("b", pa.string())]), ("id", "b"), "one `distinct_id`"),
    (pa.schema([("id", pa.float64()), ("b", pa.string())]), ("id",), "makes no `distinct_id`"),
    (pa.schema([("id", pa.string()), ("distinct_id", pa.string())]), ("id",), "not the key"),
    (pa.schema([("id", pa.string()), ("$emial", pa.string())]), ("id",), "kept for those"),
    (pa.schema([("id", pa.string()), ("channels", pa.struct([("emial", pa.string())]))]), ("id",), "no channel `emial`"),
    (pa.schema([("id", pa.string()), ("channels", pa.string())]), ("id",), "is a group"),
    (pa.schema([("id", pa.string()), ("$email", pa.int64())]), ("id",), "addresses are texts"),
    (pa.schema([("id", pa.string()), ("$timezone", pa.int64())]), ("id",), "is a text"),
    (pa.schema([("id", pa.string()), ("a", pa.month_day_nano_interval())]), ("id",), "JSON has no form"),
    (pa.schema([("id", pa.string()), ("a", pa.string()), ("properties", pa.struct([("a", pa.string())]))]), ("id",), "two fields"),
    (pa.schema([("id", pa.string()), (" a", pa.string())]), ("id",), "blanks around"),
]


@pytest.mark.parametrize(("schema", "key", "words"), WRONG)
def test_a_mapping_that_can_not_be_sent_is_refused_in_words(schema: pa.Schema, key: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        layout_of(Target(stream="profiles", key=key, schema=schema))

    assert caught.value.next_step


def test_a_mistyped_channel_names_the_nearest() -> None:
    schema = pa.schema([("id", pa.string()), ("channels", pa.struct([("emial", pa.string())]))])

    with pytest.raises(ConfigError) as caught:
        layout_of(Target(stream="profiles", key=("id",), schema=schema))

    assert caught.value.next_step == "did you mean `$email`?"


def test_every_channel_is_a_field_that_is_known_by_name() -> None:
    names = {field.name for field in a_sink().stream("profiles").fields}

    assert names >= {f"channels.{name[1:]}" for name in CHANNELS} | {"$timezone", "$locale", "$preferred_language"}


# -- bytes


@cache
def a_sink() -> SuprSendSink:
    """One that never connects: making one reads all authorities that TLS trusts."""
    return SuprSendSink(SuprSendConfig.model_validate(KEYS))


def cut(chunk: Chunk, max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
    """Rows as the engine cuts them: as many as fit."""
    spans, first, size = [], 0, 0
    for place, length in enumerate(pc.binary_length(chunk.records).to_pylist()):
        if place > first and (place - first == max_rows or size + length > max_bytes):
            spans.append((first, place))
            first, size = place, 0
        size += length
    return [*spans, (first, chunk.rows)]


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 9_900) | st.just(9_900), min_size=1, max_size=30),
    times=st.integers(1, 16),
    letter=st.sampled_from("aé日😀"),
)
def test_bodies_and_records_keep_to_their_bytes_however_large_the_rows_are(sizes: list[int], times: int, letter: str) -> None:
    width = len(letter.encode())
    rows = [{"id": str(number), "name": letter * (size // width)} for number, size in enumerate(sizes * times)]
    chunk = chunk_of(a_sink(), rows)
    limits = a_sink().stream("profiles").limits

    bodies = []
    for first, last in cut(chunk, limits.max_rows, limits.max_bytes):
        assert chunk.records is not None
        bodies.append(stamped(chunk.records.slice(first, last - first), np.arange(last - first), chunk_key="k", now_ms=1_700_000_000_000))

    documents = [json.loads(body) for body in bodies]
    assert [record["distinct_id"] for document in documents for record in document] == [row["id"] for row in rows]
    assert max(map(len, bodies)) <= MOST_BODY_BYTES
    assert max(map(len, documents)) <= 400
    fits = [one for one in pc.binary_length(chunk.records).to_pylist() if one <= (limits.max_record_bytes or 0)]
    assert all(one - 1 <= MOST_RECORD_BYTES for one in fits)


@given(key=st.text(st.characters(codec="ascii"), min_size=1), places=st.lists(st.integers(0, 399), min_size=1, unique=True))
def test_an_insert_id_belongs_to_its_row_of_its_chunk(key: str, places: list[int]) -> None:
    written = records(TEXT, *({"name": "a"} for _ in places))

    def ids(chunk_key: str, now_ms: int) -> list[str]:
        body = stamped(pa.array(written), np.array(sorted(places)), chunk_key=chunk_key, now_ms=now_ms)
        return [record["$insert_id"] for record in json.loads(body)]

    once = ids(key, 1_700_000_000_000)
    assert once == ids(key, 1_700_000_000_001)
    assert len(set(once)) == len(places)
    assert not set(once) & set(ids(key + "x", 1_700_000_000_000))
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one) for one in once)


def test_a_null_that_is_left_out_changes_nothing_at_suprsend() -> None:
    schema = pa.schema(
        [
            with_nulls(pa.field("plan", pa.string()), Nulls.OMIT),
            with_nulls(pa.field("$email", pa.string()), Nulls.OMIT),
            ("name", pa.string()),
        ]
    )

    before = before_type(["$email"])
    row = {"plan": None, "$email": None, "name": "Ann", "before": {"$email": ['"old@b.c"']}}

    for null_channels in ("remove", "unset", "keep"):
        assert operations(schema, row, before=before, null_channels=null_channels) == [[{"$set": {"name": "Ann"}}]]


def test_a_null_that_is_sent_takes_the_value_away_also_where_the_connection_keeps_channels() -> None:
    schema = pa.schema([with_nulls(pa.field("plan", pa.string()), Nulls.SEND), with_nulls(pa.field("$email", pa.string()), Nulls.SEND)])
    row = {"plan": None, "$email": None, "before": {"$email": ['"old@b.c"']}}

    found = operations(schema, row, before=before_type(["$email"]), null_channels="keep")

    assert found == [[{"$unset": ["plan"]}, {"$remove": {"$email": "old@b.c"}}]]


def test_a_null_inside_a_property_can_not_be_sent() -> None:
    schema = pa.schema([("id", pa.string()), ("address", pa.struct([with_nulls(pa.field("city", pa.string()), Nulls.SEND)]))])

    with pytest.raises(ConfigError, match=r"`address\.city`: SuprSend does not say"):
        layout_of(Target(stream="profiles", key=("id",), schema=schema))
