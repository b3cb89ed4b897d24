"""Encryption of many small values, such as those that a snapshot keeps of its rows: some 2 µs each, where a Fernet token takes 30.

A sealed value is: the format's byte, 4 bytes that tell which of the tenant's keys it is for, the 16 random bytes of its batch, a number of 8 bytes
within the batch, and what AES-256-GCM makes of it under a key derived from the tenant's and the batch's bytes. No key and number is used twice, however
many values there are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wsync_sdk.errors import ConfigError

__all__ = ["ValueSealer"]

_FORMAT = b"\x01"
_NAME, _SALT, _NUMBER = 4, 16, 8
_HEAD = len(_FORMAT) + _NAME + _SALT + _NUMBER


class ValueSealer:
    """Seals and opens values for one tenant. One thread; a new one for each batch of values that is written at once.

    :param keys: the tenant's, newest first: the first seals, all open.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._key_by_name = {sha256(b"wsync value key" + key).digest()[:_NAME]: key for key in reversed(keys)}
        salt = os.urandom(_SALT)
        self._head = _FORMAT + sha256(b"wsync value key" + keys[0]).digest()[:_NAME] + salt
        self._own = _cipher(keys[0], salt)
        self._number = 0

    def seal(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        """Each value in a form that only this tenant's keys open; None stays None."""
        return [None if value is None else self._sealed(value) for value in values]

    def _sealed(self, value: bytes) -> bytes:
        number = self._number.to_bytes(_NUMBER, "big")
        self._number += 1
        return self._head + number + self._own.encrypt(b"\0\0\0\0" + number, value, None)

    def open(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        """What was sealed with any of the keys; None stays None.

        :raises ConfigError: it was sealed with another key or for another tenant, or it is damaged.
        """
        return [None if value is None else self._opened(value) for value in values]

    def _opened(self, value: bytes) -> bytes:
        key = self._key_by_name.get(value[1 : 1 + _NAME])
        if key is None or value[:1] != _FORMAT:
            raise _wrong_key()
        number = value[_HEAD - _NUMBER : _HEAD]
        try:
            return _cipher(key, value[1 + _NAME : 1 + _NAME + _SALT]).decrypt(b"\0\0\0\0" + number, value[_HEAD:], None)
        except InvalidTag:
            raise _wrong_key() from None


@lru_cache(maxsize=4_096)
def _cipher(key: bytes, salt: bytes) -> AESGCM:
    """A snapshot holds values of many batches, each for as long as its row does not change."""
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"wsync values 1").derive(key))


def _wrong_key() -> ConfigError:
    return ConfigError(
        "a value that the snapshot keeps can't be decrypted: WSYNC_SECRET_KEY is not the key it was encrypted with, or the file is damaged",
        next_step="put the former key back, behind the new one and separated by a comma",
    )
