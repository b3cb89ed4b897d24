"""Keys: one per tenant, rotated without downtime, never printed."""

from __future__ import annotations

import base64
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from wsync_engine.secrets.keyring import Keyring, TenantCipher
from wsync_sdk.errors import ConfigError

TENANT = uuid4()


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def test_what_was_encrypted_for_a_tenant_is_read_with_the_same_key() -> None:
    key = new_key()

    encrypted = Keyring.from_text(key).tenant(TENANT).encrypt(b"hunter2")

    assert b"hunter2" not in encrypted
    assert Keyring.from_text(key).tenant(TENANT).decrypt(encrypted) == b"hunter2"


def test_both_alphabets_of_base64_are_the_same_key() -> None:
    key = base64.b64encode(b"\xff\xfe" * 16).decode()

    encrypted = Keyring.from_text(key).tenant(TENANT).encrypt(b"x")

    assert Keyring.from_text(key.replace("+", "-").replace("/", "_")).tenant(TENANT).decrypt(encrypted) == b"x"


def test_another_tenant_cannot_read_it() -> None:
    ring = Keyring.from_text(new_key())
    encrypted = ring.tenant(TENANT).encrypt(b"x")

    with pytest.raises(ConfigError):
        ring.tenant(uuid4()).decrypt(encrypted)


def test_a_wrong_key_says_what_to_do() -> None:
    encrypted = Keyring.from_text(new_key()).tenant(TENANT).encrypt(b"x")

    with pytest.raises(ConfigError, match="WSYNC_SECRET_KEY is not the key") as refused:
        Keyring.from_text(new_key()).tenant(TENANT).decrypt(encrypted)

    assert "former key" in refused.value.next_step


def test_after_a_rotation_the_old_is_readable_and_the_new_key_alone_reads_what_was_rotated() -> None:
    old, new = new_key(), new_key()
    encrypted = Keyring.from_text(old).tenant(TENANT).encrypt(b"x")
    both = Keyring.from_text(f"{new}, {old}").tenant(TENANT)

    rotated = both.rotate(encrypted)

    assert both.decrypt(encrypted) == b"x"
    assert Keyring.from_text(new).tenant(TENANT).decrypt(rotated) == b"x"
    assert Keyring.from_text(new).tenant(TENANT).decrypt(both.encrypt(b"y")) == b"y"


def test_a_child_with_the_tenants_key_reads_this_tenant_and_no_other() -> None:
    ring = Keyring.from_text(f"{new_key()},{new_key()}")
    child = TenantCipher.from_text(ring.tenant(TENANT).to_text())

    assert child.decrypt(ring.tenant(TENANT).encrypt(b"x")) == b"x"
    assert ring.tenant(TENANT).decrypt(child.encrypt(b"y")) == b"y"
    with pytest.raises(ConfigError):
        child.decrypt(ring.tenant(uuid4()).encrypt(b"x"))


@pytest.mark.parametrize("text", ["", " , ", "short", "not base64 at all!", base64.b64encode(b"31 bytes" * 4)[:-4].decode(), "ünïcode"])
def test_what_is_no_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Keyring.from_text(text)

    assert not text.strip(" ,") or text not in str(refused.value)
    assert "openssl rand -base64 32" in refused.value.next_step


def test_a_key_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with ThreadPoolExecutor(8) as pool:
        rings = list(pool.map(Keyring.from_file, [path] * 8))

    encrypted = rings[0].tenant(TENANT).encrypt(b"x")
    assert all(ring.tenant(TENANT).decrypt(encrypted) == b"x" for ring in rings)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    Keyring.from_file(path)
    path.chmod(0o644)

    with pytest.raises(ConfigError, match="others may read"):
        Keyring.from_file(path)


def test_keys_are_never_printed() -> None:
    key = new_key()
    ring = Keyring.from_text(key)

    assert repr(ring) == "Keyring(***)"
    assert repr(ring.tenant(TENANT)) == "TenantCipher(***)"
