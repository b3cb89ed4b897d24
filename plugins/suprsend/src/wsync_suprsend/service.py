"""One SuprSend workspace over HTTP: a request is signed, sent once, and its reply is given as it came. What it means: `answers.py`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from wsync_sdk import AddressPolicy, ConfigError
from wsync_sdk.http import Client, Reply, Request
from wsync_sdk.records import SEPARATOR_BYTES, Text, bytes_of
from wsync_suprsend.config import SuprSendConfig
from wsync_suprsend.records import SENDER
from wsync_suprsend.signing import Credential, authorized

__all__ = ["BYTES_AROUND_IDS", "MOST_BODY_BYTES", "Service", "ids_body", "user_path"]

MOST_BODY_BYTES = 819_200
"""Of a request's body: the official Python SDK 0.20.0 and SuprSend's docs (read 2026-11-20)."""
REPLY_MAX_BYTES = 1_000_000
"""A verdict per record needs some 200 bytes; more than this is no answer of SuprSend's."""
_IDS_HEAD, _IDS_TAIL = b'{"distinct_ids":[', b"]}"
BYTES_AROUND_IDS = len(_IDS_HEAD) + len(_IDS_TAIL)


class Service:
    """Makes requests, from several threads at once.

    :param policy: which addresses may be connected to.
    :raises ConfigError: `ca_file` can't be read.
    """

    def __init__(self, config: SuprSendConfig, *, policy: Callable[[], AddressPolicy]) -> None:
        self._config = config
        self._client = Client(policy=policy, connections=config.limits.concurrency, ca_file=config.ca_file, reply_max_bytes=REPLY_MAX_BYTES)

    @property
    def host(self) -> str:
        """For messages."""
        return str(urlsplit(self._config.base_url).hostname)

    def doing(self, method: str) -> str:
        """Method and host, for messages: a path may hold a user's id."""
        return f"{method} {self.host}"

    def deadline_s(self, timeout_s: float) -> float:
        """The instant (`time.monotonic`) at which a call that may take so long is over."""
        return time.monotonic() + min(timeout_s, self._config.timeout_s)

    def send(self, method: str, path: str, body: bytes = b"", *, until_s: float) -> Reply:
        """One attempt.

        :param path: percent-encoded, with a slash at its beginning and its end.
        :raises RetryableError: no whole reply came: whether the request was seen is not known.
        :raises ConfigError: address, certificate or credential can't be used.
        """
        url = f"{self._config.base_url}{path}"
        headers = [("User-Agent", SENDER), ("Accept", "application/json"), ("Accept-Encoding", "identity")]
        headers += authorized(self.credential(), method, url, body, now=datetime.now(UTC))
        return self._client.send(Request(method=method, url=url, headers=headers, body=body), until_s=until_s)

    def connect(self, *, until_s: float) -> str:
        """Connect and do TLS, then hang up; says how it went.

        :raises WsyncError: as `send`.
        """
        return self._client.connect(self._config.base_url, until_s=until_s)

    def credential(self) -> Credential:
        """As it is now.

        :raises ConfigError: a reference leads nowhere, or the secret can't stand in a header.
        """
        name = "api_key" if self._config.api_key is not None else "workspace_secret"
        secret = self._config.api_key or self._config.workspace_secret
        assert secret is not None
        text = secret.reveal().strip()
        if not text or not text.isascii() or re.search(r"[\x00-\x20\x7f]", text):
            raise ConfigError(f"`{name}` is empty, or holds a character that no key has", next_step="correct the secret's value")
        return Credential(secret=text, workspace_key=self._config.workspace_key)

    def hidden(self, values: Sequence[str]) -> list[str]:
        """What no message may hold: a row's values, and the credential."""
        return [*values, self.credential().secret]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def user_path(distinct_id: str) -> str:
    """Where one user is."""
    # A dot would be taken for this folder or the one above, by whoever tidies up paths on the way.
    return f"/v1/user/{quote(distinct_id, safe='').replace('.', '%2E')}/"


def ids_body(ids: Text) -> bytes:
    """The body that names users.

    :param ids: each as JSON text and the separator.
    """
    return b"".join((_IDS_HEAD, bytes_of(ids)[:-SEPARATOR_BYTES], _IDS_TAIL))
