"""What a stream can't take of a sync is shown where it was typed, without connecting to anything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsync_engine.config.loader import parse_declaration
from wsync_engine.model.declaration import Declaration
from wsync_engine.plugins import PluginHost
from wsync_engine.services.apply import plan_changes
from wsync_sdk.errors import ConfigError

TEXT = """\
version: 1
tenant: acme
connections:
  warehouse: {plugin: postgres, config: {url: env:WAREHOUSE_URL}}
  suprsend: {plugin: suprsend, config: {workspace_key: acme, workspace_secret: env:SUPRSEND_SECRET}}
  web: {plugin: http, config: {url: "https://example.com/people", streams: [people]}}
syncs:
  customers:
    source: warehouse
    table: customers
    key: id
    sink: suprsend
    stream: profiles
    mode: upsert
    mapping:
      distinct_id: id
      channels.email: email
      $timezone: zone
      plan: {column: plan, nulls: omit}
"""


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load(allow=("wsync-postgres", "wsync-suprsend", "wsync-http"))


def parsed(host: PluginHost, old: str = "", new: str = "") -> Declaration:
    assert old in TEXT
    return parse_declaration(TEXT.replace(old, new), host)


def test_what_the_stream_takes_is_taken(host: PluginHost) -> None:
    assert [sync.spec.stream for sync in parsed(host).syncs] == ["profiles"]
    assert [sync.spec.stream for sync in parsed(host, "suprsend\n    stream: profiles", "web\n    stream: people").syncs] == ["people"]


@pytest.mark.parametrize(
    ("old", "new", "message", "next_step"),
    [
        ("channels.email", "channels.emial", "wsync.yaml:17: syncs.customers.mapping.channels.emial: the stream `profiles` has no field", "did you mean `channels.email`?"),
        ("$timezone", "$timezon", "wsync.yaml:18: syncs.customers.mapping.$timezon: the stream `profiles` has no field", "did you mean `$timezone`?"),
        ("stream: profiles", "stream: profile", "wsync.yaml:13: syncs.customers.stream: there is no stream `profile`", "write `profiles`"),
        ("stream: profiles", "stream: list:VIP!", "wsync.yaml:13: syncs.customers.stream: `VIP!` is no list id", "a-z"),
        ("stream: profiles", "stream: list:vip", "wsync.yaml:17: syncs.customers.mapping.channels.email: the stream `list:vip` has no field", "correct these 4 mistakes"),
        ("mode: upsert", "mode: mirror", "wsync.yaml:14: syncs.customers.mode: mode `mirror` deletes", "tell the sink how to delete"),
        ("suprsend\n    stream: profiles", "web\n    stream: peopel", "wsync.yaml:13: syncs.customers.stream: there is no stream `peopel`", "did you mean `people`?"),
    ],
)  # fmt: skip
def test_what_it_can_not_take_is_shown_where_it_was_typed(host: PluginHost, old: str, new: str, message: str, next_step: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(host, old, new)

    assert refused.value.message.startswith(message)
    assert next_step in refused.value.next_step


def test_a_declaration_that_comes_from_no_file_is_held_against_it_too(host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAREHOUSE_URL", "SUPRSEND_SECRET"):
        monkeypatch.setenv(name, "x")
    declared = parse_declaration(TEXT.replace("suprsend\n    stream: profiles", "web\n    stream: people"), host)
    (sync,) = declared.syncs
    wrong = replace(sync, spec=replace(sync.spec, stream="peopel"))

    with pytest.raises(ConfigError, match=r"syncs\.customers\.stream: there is no stream `peopel`"):
        plan_changes(None, replace(declared, syncs=(wrong,)), host=host, keyring=None)  # type: ignore[arg-type]
