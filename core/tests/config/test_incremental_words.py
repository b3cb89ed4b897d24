"""How `wsync.yaml` says that a sync reads what changed, and what can't be meant."""

from __future__ import annotations

import pytest

from wsync_engine.config.loader import parse_declaration
from wsync_engine.model.declaration import sync_spec_from_json, sync_spec_to_json
from wsync_engine.model.reading import engine_parameters, named_parameters, reading_fingerprint
from wsync_engine.model.sync import Cursor, Mode, Read
from wsync_engine.plugins import PluginHost
from wsync_sdk.errors import ConfigError

TEXT = """\
version: 1
tenant: acme
connections:
  here: {plugin: postgres, config: {url: env:HERE_URL}}
syncs:
  people:
    source: here
    query: SELECT id, seen FROM people WHERE seen >= :cursor
    key: id
    sink: here
    stream: people
    mode: upsert
    read: incremental
    cursor: {column: seen, overlap: 15m, initial: 2027-01-31T08:00:00+01:00}
"""


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load(allow=("wsync-postgres",))


def test_a_cursor_is_what_the_file_says_and_comes_back_from_json(host: PluginHost) -> None:
    spec = parse_declaration(TEXT, host).syncs[0].spec

    assert (spec.read, spec.cursor) == (
        Read.INCREMENTAL,
        Cursor(column="seen", overlap_ms=900_000, initial="2027-01-31T08:00:00+01:00"),
    )
    assert sync_spec_from_json(sync_spec_to_json(spec)) == spec
    assert engine_parameters(spec) == {"cursor"}


@pytest.mark.parametrize(
    ("overlap", "cursor"),
    [
        ("1_000", Cursor(column="seen", overlap_by=1_000)),
        ("0.5", Cursor(column="seen", overlap_by=0.5)),
        ("0s", Cursor(column="seen", overlap_ms=0)),
    ],
)
def test_an_overlap_is_a_duration_or_a_number(host: PluginHost, overlap: str, cursor: Cursor) -> None:
    text = TEXT.replace("overlap: 15m, initial: 2027-01-31T08:00:00+01:00", f"overlap: {overlap}")

    assert parse_declaration(text, host).syncs[0].spec.cursor == cursor


def test_a_full_read_is_stored_without_what_older_engines_do_not_know(host: PluginHost) -> None:
    full = TEXT.replace("read: incremental", "read: full").replace("    cursor: {", "    #").replace(" WHERE seen >= :cursor", "")

    stored = sync_spec_to_json(parse_declaration(full, host).syncs[0].spec)

    assert {"read", "cursor"} & stored.keys() == set()


MISTAKES = [
    ("mode: upsert", "mode: mirror", ":13: syncs.people.read: `mirror` deletes", "use `mode: upsert`"),
    (
        "    query: SELECT id, seen FROM people WHERE seen >= :cursor",
        "    table: people",
        ":8: syncs.people.table: a table is read whole",
        ":cursor",
    ),
    ("    cursor: {column: seen, overlap: 15m", "    # {", ":13: syncs.people.read: an incremental read needs a `cursor`", "add `cursor:"),
    ("seen >= :cursor", "seen > now()", ":8: syncs.people.query: the query does not say `:cursor`", "WHERE seen >= :cursor"),
    ("seen >= :cursor", "seen > ':cursor' -- :cursor", ":8: syncs.people.query: the query does not say `:cursor`", "WHERE"),
    ("    read: incremental\n", "", ":13: syncs.people.cursor: `cursor` goes with `read: incremental`", "write `read: incremental`"),
    ("    key: id", "    key: id\n    parameters: {cursor: 1}", ":10: syncs.people.parameters: `:cursor` is where", "another name"),
    ("overlap: 15m", "overlap: soon", ":14: syncs.people.cursor.overlap: a duration is", ""),
    ("overlap: 15m", "overlap: -1", ":14: syncs.people.cursor.overlap: an overlap is no less than 0", ""),
    ("overlap: 15m", "overlap: true", ":14: syncs.people.cursor.overlap: an overlap is a duration", ""),
    ("overlap: 15m", "overlap: 99999999999d", ":14: syncs.people.cursor.overlap: it must be at most", ""),
    ("initial: 2027-01-31T08:00:00+01:00", "initial: true", ":14: syncs.people.cursor.initial: a value to begin at is", ""),
    ("column: seen", "colum: seen", ":14: syncs.people.cursor.colum: `colum` is not known", "did you mean `column`?"),
    ("read: incremental", "read: incrementally", ":13: syncs.people.read: ", "correct `read`"),
]


@pytest.mark.parametrize(("old", "new", "message", "next_step"), MISTAKES)
def test_what_can_not_be_meant_is_shown_where_it_was_typed(host: PluginHost, old: str, new: str, message: str, next_step: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError) as refused:
        parse_declaration(TEXT.replace(old, new), host)

    assert f"wsync.yaml{message}" in refused.value.message
    assert next_step in refused.value.message + refused.value.next_step


def test_a_full_read_has_no_cursor(host: PluginHost) -> None:
    text = TEXT.replace("read: incremental", "read: full").replace("    cursor: {", "    # ")

    with pytest.raises(ConfigError, match="`:cursor` goes with `read: incremental`"):
        parse_declaration(text, host)


def test_a_parameter_that_the_sync_declares_is_its_own(host: PluginHost) -> None:
    text = TEXT.replace("read: incremental", "parameters: {cursor: 7}").replace("    cursor: {", "    # ")

    assert engine_parameters(parse_declaration(text, host).syncs[0].spec) == set()


def test_a_mirror_is_not_made_of_what_came_since_the_last_run(host: PluginHost) -> None:
    text = TEXT.replace("    read: incremental\n", "").replace("    cursor: {", "    # ").replace(":cursor", ":last_sync_time")

    assert engine_parameters(parse_declaration(text, host).syncs[0].spec) == {"last_sync_time"}
    with pytest.raises(ConfigError, match=r"syncs.people.mode: `mirror` deletes what is not in the result"):
        parse_declaration(text.replace("mode: upsert", "mode: mirror"), host)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT ':a', \":b\", x::int, y::a FROM t -- :c\n WHERE z = :cursor",
        "SELECT 1 /* :a\n:b */ WHERE x>=:cursor",
        "SELECT $$ :a $$, $q$ :b $$ $q$ WHERE x >= :cursor",
        "SELECT `a :b` WHERE 'it''s :a' = :cursor",
        "SELECT E'it\\'s :a' WHERE x >= :cursor AND y <> 'z'",
    ],
)
def test_a_colon_in_quotes_comments_and_casts_names_nothing(sql: str) -> None:
    assert named_parameters(sql) == {"cursor"}


def test_what_says_which_rows_there_are_makes_another_fingerprint(host: PluginHost) -> None:
    spec = parse_declaration(TEXT, host).syncs[0].spec
    others = [
        parse_declaration(TEXT.replace(old, new), host).syncs[0].spec
        for old, new in [("id, seen FROM", "id,  seen FROM"), ("initial: 2027", "initial: 2026"), ("key: id", "key: seen")]
    ]
    same = parse_declaration(TEXT.replace("overlap: 15m", "overlap: 1h"), host).syncs[0].spec

    assert len({reading_fingerprint(one, {}) for one in [spec, *others]}) == 4
    assert reading_fingerprint(same, {}) == reading_fingerprint(spec, {})
    assert reading_fingerprint(spec, {"a": 1}) != reading_fingerprint(spec, {"a": "1"})


def test_an_incremental_read_goes_with_append(host: PluginHost) -> None:
    spec = parse_declaration(TEXT.replace("mode: upsert", "mode: append"), host).syncs[0].spec

    assert (spec.mode, spec.read) == (Mode.APPEND, Read.INCREMENTAL)
