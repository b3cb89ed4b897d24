"""References to secrets: followed, or named in the error, and a value typed by mistake is not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsync_engine.secrets.references import is_reference, resolve, tenant_folders
from wsync_sdk.errors import ConfigError


def test_a_variable_and_a_file_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("from file\n")
    monkeypatch.setenv("PASSWORD", "of this process")

    assert resolve("env:PASSWORD", environ={"PASSWORD": "given"}) == "given"
    assert resolve("env:PASSWORD") == "of this process"
    assert resolve(f"file:{tmp_path / 'password'}", folders=[tmp_path]) == "from file"


@pytest.mark.parametrize("reference", ["env:MISSING", "env:EMPTY", "file:/does/not/exist", "file:/"])
def test_a_reference_that_leads_nowhere_is_named(reference: str) -> None:
    with pytest.raises(ConfigError, match=reference):
        resolve(reference, folders=[Path("/")], environ={"EMPTY": ""})


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_a_file_without_a_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "password").write_bytes(content)

    with pytest.raises(ConfigError, match=r"file:.*password"):
        resolve(f"file:{tmp_path / 'password'}", folders=[tmp_path])


@pytest.mark.parametrize("path", ["other/password", "acme/../other/password", "acme/link", "acmes/password", "password"])
def test_a_file_that_is_not_in_the_tenants_folder_is_refused_unread(tmp_path: Path, path: str) -> None:
    for folder in ("acme", "acmes", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "password").write_text("hunter2")
    (tmp_path / "password").write_text("hunter2")
    (tmp_path / "acme" / "link").symlink_to(tmp_path / "other" / "password")
    folders = tenant_folders([tmp_path], "acme")

    with pytest.raises(ConfigError, match="not in the tenant's folder"):
        resolve(f"file:{tmp_path / path}", folders=folders)
    assert resolve(f"file:{tmp_path}/acme/password", folders=folders) == "hunter2"


@pytest.mark.parametrize("reference", ["env:WSYNC_SECRET_KEY", "env:wsync_database_url_owner"])
def test_the_installations_own_settings_are_nobodys_secrets(reference: str) -> None:
    with pytest.raises(ConfigError, match="nobody's secrets"):
        resolve(reference, environ={reference.removeprefix("env:"): "hunter2"})


@pytest.mark.parametrize("text", ["hunter2", "postgresql://user:hunter2@host/x", "env:not a name hunter2", "vault:hunter2"])
def test_a_secret_typed_in_place_of_a_reference_is_not_repeated(text: str) -> None:
    assert not is_reference(text)

    with pytest.raises(ConfigError) as refused:
        resolve(text)

    assert "hunter2" not in str(refused.value) + refused.value.next_step
