"""Which connections call the same destination with the same credential, whoever they belong to: those share one rate budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from wsync_engine.secrets.keyring import Keyring
from wsync_engine.secrets.references import is_reference
from wsync_engine.worker.messages import ConnectionPart

__all__ = ["references_in", "shared_credential"]


def shared_credential(sink: ConnectionPart, keyring: Keyring) -> str:
    """A name made of plugin, hosts and secrets; empty where the connection has no secret, or one that leads nowhere.

    Hosts are part of it: who points the same secret at a server of his own must not hold up others by what that server says.
    """
    references = set(references_in(sink.config))
    if not references or references - sink.secret_by_reference.keys():
        return ""
    secrets = sorted(sink.secret_by_reference[reference] for reference in references)
    return keyring.fingerprint(json.dumps([sink.plugin, sorted(set(_hosts_in(sink.config))), secrets]).encode())


def references_in(value: Any) -> Iterator[str]:
    """The secret references in a config."""
    return (text for text in _texts_in(value) if is_reference(text))


def _hosts_in(value: Any) -> Iterator[str]:
    for text in _texts_in(value):
        if "://" in text and not is_reference(text):
            parts = urlsplit(text)
            yield f"{parts.scheme}://{parts.netloc}".lower()


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
