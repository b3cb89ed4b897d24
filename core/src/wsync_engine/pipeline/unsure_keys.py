"""A resync of some keys only: their entries are read as `unsure`, whatever was acknowledged.

A sync counts how often that was asked for, and keeps the keys, encrypted, until a snapshot says that they were offered again; its manifest says up to which
request that is so. The log of a run that does it names the keys, encrypted, so that whoever folds it reads the snapshot in the same way. As with a resync of
everything, a request survives a run that is under way, dies or sends only half.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from wsync_engine.pipeline.manifest import Manifest
from wsync_engine.pipeline.snapshot import is_resync_wanted
from wsync_engine.pipeline.subscriber_keys import KeyText
from wsync_engine.state.records import Cipher, SnapshotRow

__all__ = ["KeyRequest", "is_more_wanted", "open_requests", "sealed_requests", "unsure_keys_of", "with_unsure_keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """One request. `number`: of the sync's; `columns`: the key's names, in order."""

    number: int
    columns: tuple[str, ...]
    keys: tuple[KeyText, ...]


def sealed_requests(requests: Sequence[KeyRequest], cipher: Cipher) -> bytes | None:
    """As the sync keeps them; None where there are none."""
    return cipher.encrypt(json.dumps([asdict(one) for one in requests]).encode()) if requests else None


def open_requests(sealed: bytes | None, cipher: Cipher, *, done: int) -> list[KeyRequest]:
    """What the sync keeps, but for requests up to `done`."""
    stored = [] if sealed is None else json.loads(cipher.decrypt(bytes(sealed)))
    requests = [
        KeyRequest(number=one["number"], columns=tuple(one["columns"]), keys=tuple(tuple(key) for key in one["keys"])) for one in stored
    ]
    return [one for one in requests if one.number > done]


def is_more_wanted(row: SnapshotRow) -> bool:
    """Whether a resync was asked for, of everything or of some keys, that no run has folded yet."""
    return is_resync_wanted(row) or row.key_resync > (row.manifest or {}).get("key_resync", 0)


def with_unsure_keys(manifest: Manifest, row: SnapshotRow, cipher: Cipher) -> Manifest:
    """The manifest that a run starts from, with what was asked for since its snapshot was written."""
    if row.key_resync <= manifest.key_resync:
        return manifest
    names = tuple(column.name for column in manifest.key)
    requests = [] if manifest.is_unsure else open_requests(row.unsure_keys, cipher, done=manifest.key_resync)
    keys = list(dict.fromkeys(key for one in requests if one.columns == names for key in one.keys))
    sealed = cipher.encrypt(json.dumps(keys).encode()).decode("ascii") if keys else None
    return replace(manifest, key_resync=row.key_resync, unsure_keys=sealed)


def unsure_keys_of(manifest: Manifest, cipher: Cipher) -> tuple[KeyText, ...]:
    """Whose entries are read as `unsure`."""
    if manifest.unsure_keys is None:
        return ()
    return tuple(tuple(key) for key in json.loads(cipher.decrypt(manifest.unsure_keys.encode("ascii"))))
