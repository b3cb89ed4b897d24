"""How a request proves who sends it: an API key as bearer token, or a signature with the workspace's secret. Pure.

The signature as the official Python SDK 0.20.0 makes it (`signature.py`, read 2026-11-25): base64 of an HMAC-SHA256 over method, MD5 of the body,
content type, date and target, each on a line of its own. The date is part of it, so every attempt is signed anew.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from urllib.parse import urlsplit

__all__ = ["CONTENT_TYPE", "Credential", "authorized"]

CONTENT_TYPE = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A revealed credential, for one attempt.

    :param workspace_key: None: `secret` is an API key.
    """

    secret: str = field(repr=False)
    workspace_key: str | None = None


def authorized(credential: Credential, method: str, url: str, body: bytes, *, now: datetime) -> list[tuple[str, str]]:
    """The headers of one attempt that depend on the credential.

    :param url: as it is sent, percent-encoded. :param now: in UTC.
    """
    if credential.workspace_key is None:
        return [("Authorization", f"Bearer {credential.secret}"), ("Content-Type", CONTENT_TYPE)]
    date = format_datetime(now, usegmt=True)
    signature = _signature(credential.secret, method, url, body, date)
    return [("Authorization", f"{credential.workspace_key}:{signature}"), ("Date", date), ("Content-Type", CONTENT_TYPE)]


def _signature(secret: str, method: str, url: str, body: bytes, date: str) -> str:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest() if body else ""
    words = "\n".join((method, digest, CONTENT_TYPE, date, target))
    return base64.b64encode(hmac.new(secret.encode(), words.encode(), hashlib.sha256).digest()).decode()
