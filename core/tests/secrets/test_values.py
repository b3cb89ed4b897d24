"""Small values of rows: sealed in batches, opened with any key of the ring."""

from __future__ import annotations

import base64
import secrets
from uuid import uuid4

import pytest

from wsync_engine.secrets.keyring import Keyring
from wsync_sdk.errors import ConfigError

TENANT = uuid4()
VALUES = [b"a@example.com", b"", None, "Zoë".encode(), b"a@example.com"]


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def test_sealed_values_are_opened_by_another_process_and_are_all_different() -> None:
    ring = Keyring.from_text(new_key())

    sealed = ring.tenant(TENANT).sealer().seal(VALUES) + ring.tenant(TENANT).sealer().seal(VALUES)

    assert ring.tenant(TENANT).sealer().open(sealed) == VALUES * 2
    assert [value is None for value in sealed] == [value is None for value in VALUES * 2]
    present = [value for value in sealed if value is not None]
    assert len(set(present)) == len(present)
    assert not any(b"example" in value for value in present)


def test_after_a_rotation_both_old_and_new_values_are_opened() -> None:
    old, new = new_key(), new_key()
    before = Keyring.from_text(old).tenant(TENANT).sealer().seal([b"x"])

    both = Keyring.from_text(f"{new},{old}").tenant(TENANT).sealer()
    after = both.seal([b"y"])

    assert both.open(before + after) == [b"x", b"y"]
    assert Keyring.from_text(new).tenant(TENANT).sealer().open(after) == [b"y"]


def test_another_tenant_another_key_and_a_damaged_value_are_refused() -> None:
    ring = Keyring.from_text(new_key())
    (sealed,) = ring.tenant(TENANT).sealer().seal([b"x"])
    assert sealed is not None
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])

    for cipher, value in (
        (ring.tenant(uuid4()), sealed),
        (Keyring.from_text(new_key()).tenant(TENANT), sealed),
        (ring.tenant(TENANT), damaged),
        (ring.tenant(TENANT), b""),
    ):
        with pytest.raises(ConfigError, match="can't be decrypted"):
            cipher.sealer().open([value])
