"""Encryption at rest: one key per tenant, derived from the installation's master key, which no child process ever sees.

Rotation: put the new key first in WSYNC_SECRET_KEY and keep the old ones behind it. The first encrypts, all decrypt.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wsync_engine.secrets.values import ValueSealer
from wsync_sdk.errors import ConfigError

__all__ = ["Keyring", "TenantCipher"]

KEY_BYTES = 32
HOW_TO_MAKE_ONE = "make one with `openssl rand -base64 32`; several, newest first, are separated by commas"


class TenantCipher:
    """Encrypts and decrypts for one tenant. Any thread."""

    __slots__ = ("_fernet", "_keys")

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(base64.urlsafe_b64encode(key) for key in keys)
        self._fernet = MultiFernet([Fernet(key) for key in self._keys])

    @classmethod
    def from_text(cls, text: str) -> TenantCipher:
        """The cipher that `to_text` was called on, in another process.

        :raises ConfigError: the text is no tenant key.
        """
        return cls(_parse_keys(text, what="the tenant's key"))

    def to_text(self) -> str:
        """The tenant's keys, for a child process of ours: hand it over a pipe, never on a command line."""
        return ",".join(key.decode() for key in self._keys)

    def encrypt(self, data: bytes) -> bytes:
        """Bytes that only this tenant's key can read; different at each call."""
        return self._fernet.encrypt(data)

    def decrypt(self, data: bytes) -> bytes:
        """What was encrypted with any key of the ring for this tenant.

        :raises ConfigError: it was encrypted with another key or for another tenant, or it is damaged.
        """
        try:
            return self._fernet.decrypt(data)
        except InvalidToken:
            raise _wrong_key() from None

    def rotate(self, data: bytes) -> bytes:
        """The same content, encrypted with the newest key.

        :raises ConfigError: as `decrypt`.
        """
        try:
            return self._fernet.rotate(data)
        except InvalidToken:
            raise _wrong_key() from None

    def sealer(self) -> ValueSealer:
        """For many small values; a new one for each batch."""
        return ValueSealer([base64.urlsafe_b64decode(key) for key in self._keys])

    def __repr__(self) -> str:
        return "TenantCipher(***)"


class Keyring:
    """The installation's master keys, newest first."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def from_text(cls, text: str) -> Keyring:
        """Read WSYNC_SECRET_KEY: base64 keys of 32 bytes, separated by commas, the newest first.

        :raises ConfigError: one of them is not such a key.
        """
        return cls(_parse_keys(text, what="WSYNC_SECRET_KEY"))

    @classmethod
    def from_file(cls, path: Path) -> Keyring:
        """Read the keys from a file; make one, readable by its owner only, if there is none. Many processes may come at once.

        :raises ConfigError: the file holds something else, or others may read it.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_once(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others may read the key file {path}", next_step=f"run `chmod 600 {path}`")
        return cls(_parse_keys(path.read_text(encoding="utf-8"), what=f"the key file {path}"))

    @classmethod
    def throwaway(cls) -> Keyring:
        """A key that is stored nowhere: for who only compares, where nothing was encrypted yet."""
        return cls([secrets.token_bytes(KEY_BYTES)])

    def tenant(self, tenant_id: UUID) -> TenantCipher:
        """The cipher of one tenant; the master key can't be computed from it."""
        return TenantCipher([_derive(key, tenant_id) for key in self._keys])

    def fingerprint(self, data: bytes) -> str:
        """A name for what may not be shown: the same for the same data in all processes of the installation, and useless without the master key.

        By the oldest key, which a process that knows of a newer one has too.
        """
        key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"wsync fingerprint 1").derive(self._keys[-1])
        return hmac.new(key, data, "sha256").hexdigest()[:32]

    def __repr__(self) -> str:
        return "Keyring(***)"


def _derive(key: bytes, tenant_id: UUID) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"wsync tenant 1 " + tenant_id.bytes).derive(key)


def _parse_keys(text: str, *, what: str) -> list[bytes]:
    keys = [_parse_key(part, what=what) for part in re.split(r"[,\n]", text) if part.strip()]
    if not keys:
        raise ConfigError(f"{what} is empty", next_step=HOW_TO_MAKE_ONE)
    return keys


def _parse_key(text: str, *, what: str) -> bytes:
    try:
        # Both alphabets are welcome: `openssl rand -base64` writes + and /, Fernet - and _.
        key = base64.b64decode(text.strip().translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{what} is not a key of {KEY_BYTES} bytes in base64", next_step=HOW_TO_MAKE_ONE)
    return key


def _write_once(path: Path, content: bytes) -> None:
    """Under a name of its own first, then linked: whoever links first wins, and nobody ever reads half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first; its key counts
    finally:
        draft.unlink()


def _wrong_key() -> ConfigError:
    return ConfigError(
        "a stored secret can't be decrypted: WSYNC_SECRET_KEY is not the key it was encrypted with",
        next_step="put the former key back, behind the new one and separated by a comma",
    )
