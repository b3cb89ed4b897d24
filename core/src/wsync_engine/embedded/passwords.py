"""The embedded servers' passwords: made once, kept in a file that its owner alone may read."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

from wsync_sdk.errors import ConfigError

__all__ = ["Passwords"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passwords:
    """One per login; never printed."""

    superuser: str = field(repr=False)
    owner: str = field(repr=False)
    engine: str = field(repr=False)
    api: str = field(repr=False)
    redis: str = field(repr=False)

    @classmethod
    def read_or_make(cls, path: Path) -> Self:
        """Read the file, or make it. The caller holds the data folder's lock.

        :raises ConfigError: the file is damaged.
        """
        if not path.exists():
            made = cls(**{each.name: secrets.token_urlsafe(24) for each in fields(cls)})
            _replace(path, json.dumps(asdict(made)))
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ConfigError(f"the file {path} is damaged", next_step="restore it, or start with another data folder") from None


def _replace(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
