"""The installation's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsync_engine.settings import Settings
from wsync_sdk.errors import ConfigError

SERVERS = {
    "WSYNC_DATABASE_URL_OWNER": "postgresql://o",
    "WSYNC_DATABASE_URL_ENGINE": "postgresql://e",
    "WSYNC_DATABASE_URL_API": "postgresql://a",
    "WSYNC_REDIS_URL": "redis://r",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("WSYNC_"):
            monkeypatch.delenv(name)


def read(monkeypatch: pytest.MonkeyPatch, **environ: str) -> Settings:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Settings.read()


def test_nothing_needs_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch)

    assert settings.is_embedded
    assert settings.lease_ttl_s == 30
    assert settings.storage == (Path.cwd() / ".wsync" / "storage").as_uri()


def test_all_that_can_be_set_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(
        monkeypatch,
        **SERVERS,
        WSYNC_PLUGINS_ALLOW="wsync-postgres, wsync-http",
        WSYNC_ALLOW_PRIVATE_ADDRESSES="10.1.0.0/16,fd00::/8",
        WSYNC_STORAGE_URL="file:///srv/wsync",
        WSYNC_LEASE_TTL_S="3",
    )

    assert not settings.is_embedded
    assert settings.plugins_allow == ("wsync-postgres", "wsync-http")
    assert [str(network) for network in settings.allow_private_addresses] == ["10.1.0.0/16", "fd00::/8"]
    assert (settings.storage, settings.lease_ttl_s) == ("file:///srv/wsync", 3)


@pytest.mark.parametrize(("name", "hint"), [("WSYNC_REDIS_ULR", "WSYNC_REDIS_URL"), ("WSYNC_LEASE_TTL", "WSYNC_LEASE_TTL_S")])
def test_an_unknown_name_is_refused_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        read(monkeypatch, **{name: "x"})

    assert refused.value.next_step == f"did you mean {hint}?"


@pytest.mark.parametrize("missing", SERVERS)
def test_the_servers_are_all_given_or_all_embedded(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    with pytest.raises(ConfigError, match="some of WSYNC_DATABASE_URL_OWNER"):
        read(monkeypatch, **{name: url for name, url in SERVERS.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"), [("WSYNC_LEASE_TTL_S", "hunter2"), ("WSYNC_STORAGE_URL", "hunter2"), ("WSYNC_ALLOW_PRIVATE_ADDRESSES", "hunter2")]
)
def test_a_value_that_is_not_valid_is_named_and_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        read(monkeypatch, **{name: value})

    assert value not in str(refused.value)


def test_secrets_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, **{name: f"{url}:hunter2@host" for name, url in SERVERS.items()}, WSYNC_SECRET_KEY="hunter2")

    assert "hunter2" not in repr(settings) + settings.model_dump_json()


def test_each_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
