"""What docs/reference/data-rules.md says of odd values, keys and names, from a real Postgres to a real endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.model.sync import Duplicates, MappingEntry

from .record_store import RecordStore, RecordWorld, serving

OUT_OF_RANGE = "infinite, or outside the years 1 to 9999"
CELL_BYTES = 10_000_000


@pytest.fixture
def world(database: Any, servers: Any, tmp_path: Path) -> Iterator[RecordWorld]:
    with serving() as store:
        made = RecordWorld(database, servers.endpoints.admin_url, tmp_path, store)
        yield made
        made.close()


@pytest.fixture
def store(world: RecordWorld) -> RecordStore:
    return world.store


def fields(**columns: str | MappingEntry) -> tuple[MappingEntry, ...]:
    """A mapping with the key `id`."""
    given = {"id": "id", **columns}
    return tuple(MappingEntry(target=name, column=x) if isinstance(x, str) else x for name, x in given.items())


# -- text


@pytest.fixture
def any_bytes(world: RecordWorld) -> Iterator[RecordWorld]:
    """The warehouse is a database that does not look at what bytes its texts are."""
    kept, name = world.url, world.url.rsplit("/", 1)[1] + "_ascii"
    world.admin.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    world.url = kept.rsplit("/", 1)[0] + "/" + name
    yield world
    world.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_text_that_is_not_utf8_refuses_its_row_and_the_others_arrive(any_bytes: RecordWorld) -> None:
    outcome = any_bytes.read("SELECT 1 AS id, chr(200) AS x, '{\"a\":1}'::json AS j, DATE 'infinity' AS d WHERE false UNION ALL"
                             " SELECT 2, 'é', '{\"é\":1}', '2026-01-01' UNION ALL SELECT 3, chr(200), NULL, NULL UNION ALL SELECT 4, NULL, NULL, 'infinity'")  # fmt: skip

    assert outcome.state == "partial"
    assert any_bytes.store.taken() == [{"id": "2", "x": "é", "j": {"é": "1"}, "d": "2026-01-01"}]
    assert any_bytes.rejections() == [
        ("unrepresentable", "`x`: the value is not UTF-8", 3),
        ("unrepresentable", f"`d`: the value is {OUT_OF_RANGE}", 4),
    ]


def test_a_text_in_an_array_that_is_not_utf8_ends_the_run_and_says_what_to_do(any_bytes: RecordWorld) -> None:
    any_bytes.query("SELECT 1 AS id, ARRAY[chr(200)] AS x")

    refused = any_bytes.refusal()

    assert "has no form in UTF-8" in refused.message
    assert "convert_from" in refused.next_step


def test_json_with_half_a_surrogate_pair_refuses_its_row(world: RecordWorld, store: RecordStore) -> None:
    outcome = world.read("""SELECT 1 AS id, '"\\ud83d"'::json AS x UNION ALL SELECT 2, '"\\ud83d\\ude00 \\u0000"'""")

    assert outcome.state == "partial"
    assert world.rejections() == [("invalid_json", "`x` is not valid JSON", 1)]
    assert store.taken() == [{"id": "2", "x": "😀 \0"}], "NUL stands in JSON as an escape"


# -- numbers


def test_digits_are_sent_as_they_are(world: RecordWorld, store: RecordStore) -> None:
    world.read(
        "SELECT 1 AS id, 9007199254740993::bigint AS big, 12345678901234567890123456789012345.678::numeric(38, 3) AS exact,"
        " 1234567890123456789012345678901234567890123.678::numeric(50, 3) AS wide, 1e40::numeric AS free,"
        ' \'{"n": 9007199254740993, "x": 1.00000000000000000001}\'::jsonb AS j'
    )

    (sent,) = store.taken()
    assert sent == {
        "id": "1",
        "big": "9007199254740993",
        "exact": "12345678901234567890123456789012345.678",
        "wide": "1234567890123456789012345678901234567890123.678",
        "free": "1" + "0" * 40,
        "j": {"n": "9007199254740993", "x": "1.00000000000000000001"},
    }


@pytest.mark.parametrize(
    ("cast", "value", "sent"),
    [
        ("number", "9007199254740993::bigint", None),
        ("number", "9007199254740992::bigint", "9007199254740992.0"),
        ("number", "'9007199254740993'::text", None),
        ("number", "9007199254740993::numeric(20, 0)", None),
        ("number", "0.1::numeric(5, 2)", "0.1"),
        ("number", "'1.5'::text", "1.5"),
        ("integer", "'1.5'::text", None),
        ("integer", "1.5::float8", None),
        ("integer", "1.5::numeric(5, 2)", None),
        ("integer", "'9007199254740993'::text", "9007199254740993"),
        ("integer", "2.00::numeric(5, 2)", "2"),
        ("integer", "'9223372036854775808'::text", None),
        ("text", "9007199254740993::bigint", "9007199254740993"),
    ],
)
def test_a_cast_that_would_alter_digits_refuses_its_row(
    world: RecordWorld, store: RecordStore, cast: str, value: str, sent: str | None
) -> None:
    entry = MappingEntry(target="amount", column="x", cast=cast)

    world.read(f"SELECT 7 AS id, {value} AS x", mapping=fields(amount=entry))

    what = {"number": "a number", "integer": "an integer"}.get(cast, cast)
    refused = [("cast", f"`amount` (column `x`): the value can't become {what} unchanged", 7)]
    assert world.rejections() == ([] if sent else refused)
    assert [(record["id"], float(record["amount"]) if cast == "number" else record["amount"]) for record in store.taken()] == (
        [("7", float(sent) if cast == "number" else sent)] if sent else []
    )


def test_nan_and_infinity_refuse_their_row_where_json_has_no_form(world: RecordWorld, store: RecordStore) -> None:
    world.read(
        "SELECT 1 AS id, 'NaN'::float8 AS f, 'NaN'::numeric AS n UNION ALL SELECT 2, '-Infinity', NULL UNION ALL SELECT 3, 1.5, 'Infinity'"
    )

    words = "`f` is NaN or infinite, which JSON has not"
    assert world.rejections() == [("not_finite", words, 1), ("not_finite", words, 2)]
    assert store.taken() == [{"id": "3", "f": "1.5", "n": "Infinity"}], "a numeric without precision is a text"


def test_nan_in_a_decimal_refuses_its_row(world: RecordWorld, store: RecordStore) -> None:
    world.admin.execute("CREATE TABLE price AS SELECT 1 AS id, 'NaN'::numeric(10, 2) AS x")
    world.admin.execute("ALTER TABLE price ALTER x TYPE numeric(10, 2); INSERT INTO price VALUES (2, 0.50)")

    world.read("SELECT id, x FROM price", mapping=fields(price="x"))

    assert world.rejections() == [("unrepresentable", "`price` (column `x`): the value is NaN or infinite", 1)]
    assert store.taken() == [{"id": "2", "price": "0.50"}]


# -- dates and intervals


@pytest.mark.parametrize("kind", ["date", "timestamp", "timestamptz"])
def test_an_instant_out_of_range_refuses_its_row(world: RecordWorld, store: RecordStore, kind: str) -> None:
    odd = ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"]
    rows = " UNION ALL ".join(f"SELECT {place}, {kind} '{value}'" for place, value in enumerate([*odd, "0001-01-01", "9999-12-31"]))

    outcome = world.read(f"SELECT * FROM ({rows}) AS q(id, x)")

    assert outcome.state == "partial"
    assert world.rejections() == [("unrepresentable", f"`x`: the value is {OUT_OF_RANGE}", place) for place in range(4)]
    assert [record["x"][:10] for record in store.taken()] == ["0001-01-01", "9999-12-31"]


def test_an_interval_with_months_is_the_text_that_postgres_writes(world: RecordWorld, store: RecordStore) -> None:
    world.read("SELECT 1 AS id, interval '1 year 2 mons 3 days 04:05:06' AS x")

    assert store.taken() == [{"id": "1", "x": "1 year 2 mons 3 days 04:05:06"}]


# -- large cells


@pytest.mark.parametrize(
    "expression", ["repeat(chr(97 + n % 26), {0})", "to_jsonb(repeat('x', {0}))", "decode(repeat('00', {0}), 'hex')"], ids=["text", "json", "bytea"]
)  # fmt: skip
def test_large_cells_arrive_without_a_limit_and_are_rejections_with_one(world: RecordWorld, store: RecordStore, expression: str) -> None:
    store.keeps = False
    sql = f"SELECT n AS id, {expression.format(CELL_BYTES)} AS x, NULL AS y FROM generate_series(1, 12) n"

    arrived = world.read(sql)
    again = world.run()
    world.config["limits"] = {"max_record_bytes": 1_000_000}
    limited = world.read(sql.replace("NULL AS y", "'changed' AS y"))

    assert (arrived.state, arrived.counts["accepted"], store.requests) == ("succeeded", 12, 12)
    assert again.counts["unchanged"] == 12
    words = "`x`: the record is larger than 1000000 bytes, and this is its largest field"
    assert (limited.state, store.requests) == ("partial", 12)
    assert {(code, message) for code, message, _ in world.rejections()} == {("record_too_large", words)}
    assert sorted(key for _, _, key in world.rejections()) == list(range(1, 13)), "the key is kept, the cell is not"


def peak_bytes_of(run: Callable[[], Any]) -> int:
    """The most memory that this process had while it ran."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_memory_does_not_rise_with_the_number_of_large_cells(world: RecordWorld, store: RecordStore) -> None:
    store.keeps = False
    sql = "SELECT n AS id, repeat(chr(97 + n % 26), {0}) AS x FROM generate_series(1, {1}) n"

    few = peak_bytes_of(lambda: world.read(sql.format(CELL_BYTES, 8)))
    many = peak_bytes_of(lambda: world.read(sql.format(CELL_BYTES, 48)))

    assert store.requests == 48
    assert many - few < 20 * CELL_BYTES, "40 cells more were read"


# -- keys


def test_repeated_keys_are_refused_also_where_their_rows_are_equal(world: RecordWorld, store: RecordStore) -> None:
    outcome = world.read("SELECT * FROM (VALUES (1, 'a'), (1, 'b'), (2, 'c'), (2, 'c'), (3, 'd')) AS q(id, x)")

    assert (outcome.state, outcome.counts["duplicates"]) == ("partial", 4)
    assert world.rejections() == [("duplicate_key", "`id`: the key is in the result more than once", key) for key in (1, 2)]
    assert store.taken() == [{"id": "3", "x": "d"}]


def test_of_repeated_keys_the_last_by_a_column_is_sent_and_a_tie_is_refused(world: RecordWorld, store: RecordStore) -> None:
    world.read(
        "SELECT * FROM (VALUES (1, 'a', 1), (1, 'b', 2), (2, 'c', 1), (2, 'd', 1)) AS q(id, x, n)",
        duplicates=Duplicates(rule="last", by="n"),
    )

    assert [(record["id"], record["x"]) for record in store.taken()] == [("1", "b")]
    assert [(code, key) for code, _, key in world.rejections()] == [("duplicate_key", 2)]


def test_keys_are_told_apart_by_their_bytes(world: RecordWorld, store: RecordStore) -> None:
    keys = ["a", "A", "a ", "\u00e9", "e\u0301", ""]
    world.admin.execute("CREATE TABLE person (id text)")
    for key in keys:
        world.admin.execute("INSERT INTO person VALUES (%s)", (key,))

    outcome = world.read("SELECT id FROM person")

    assert (outcome.state, sorted(record["id"] for record in store.taken())) == ("succeeded", sorted(keys))


def test_a_key_of_char_n_has_its_blanks(world: RecordWorld, store: RecordStore) -> None:
    world.read("SELECT 'a'::char(5) AS id")

    assert store.taken() == [{"id": "a    "}]


def test_a_row_without_a_key_is_a_rejection(world: RecordWorld, store: RecordStore) -> None:
    outcome = world.read("SELECT NULL AS id, 1 AS x UNION ALL SELECT 'k', 2", mapping=fields(x="x"))

    assert outcome.state == "partial"
    assert world.rejections() == [("key_null", "`id`: the key is NULL", None)]
    assert store.taken() == [{"id": "k", "x": "2"}]


# -- names, and how many


def test_names_are_kept_as_they_are_and_dots_nest(world: RecordWorld, store: RecordStore) -> None:
    world.read('SELECT 1 AS id, 2 AS "a.b", 3 AS "it\'s ""q""", 4 AS "  blank ", 5 AS "😀", 6 AS "x\ny", 7 AS source')

    assert store.taken() == [{"id": "1", "a": {"b": "2"}, 'it\'s "q"': "3", "  blank ": "4", "😀": "5", "x\ny": "6", "source": "7"}]


def test_columns_that_differ_in_case_are_two_columns(world: RecordWorld, store: RecordStore) -> None:
    world.read('SELECT 1 AS id, 2 AS "X", 3 AS x', mapping=fields(upper="X", lower="x"))

    assert store.taken() == [{"id": "1", "upper": "2", "lower": "3"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("2 AS id", "two columns named `id`"),
        ('2 AS "X", 3 AS x', "`X` and `x` differ in upper and lower case only"),
        ('2 AS "p.Name", 3 AS "p.name"', "`p.Name` and `p.name` differ in upper and lower case only"),
        ("2 AS wsync_op", "`wsync_op` begins with `wsync_`"),
        ('2 AS "WSYNC_HASH"', "`WSYNC_HASH` begins with `wsync_`"),
        ("2 AS wsync_refused_columns", "a column named `wsync_refused_columns`"),
        ('2 AS a, 3 AS "a.b"', "`a` is a field and also holds fields"),
        ('2 AS "a."', "`a.` has an empty name before or after a dot"),
    ],
)
def test_a_name_that_can_not_be_a_field_is_refused_by_name(world: RecordWorld, store: RecordStore, columns: str, message: str) -> None:
    world.query(f"SELECT 1 AS id, {columns}")

    refused = world.refusal()

    assert message in refused.message
    assert "AS" in refused.next_step
    assert store.requests == 0


def test_the_engines_own_names_can_be_columns_that_are_mapped_to_others(world: RecordWorld, store: RecordStore) -> None:
    world.read("SELECT 1 AS id, 2 AS wsync_op, 3 AS wsync_hash", mapping=fields(op_code="wsync_op", digest="wsync_hash"))

    assert store.taken() == [{"id": "1", "op_code": "2", "digest": "3"}]


def test_sixteen_hundred_columns_are_sent_whole_or_in_part(world: RecordWorld, store: RecordStore) -> None:
    columns = ", ".join(f"{place} AS c{place}" for place in range(1_599))
    world.read(f"SELECT 1 AS id, {columns}")
    (whole,) = store.taken()

    world.read(f"SELECT 2 AS id, {columns}", mapping=fields(last="c1598"))

    assert (len(whole), whole["c1598"]) == (1_600, "1598")
    assert store.taken() == [{"id": "2", "last": "1598"}]


def test_an_empty_first_result_is_no_failure(world: RecordWorld, store: RecordStore) -> None:
    outcome = world.read("SELECT 1 AS id WHERE false")

    assert (outcome.state, store.requests) == ("succeeded", 0)
