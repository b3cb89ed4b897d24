"""References to secrets in configurations: `env:NAME` and `file:PATH`. Messages name the reference, never its value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from wsync_sdk.errors import ConfigError

__all__ = ["is_reference", "resolve"]

_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_FILE = re.compile(r"file:(.+)")


def is_reference(text: str) -> bool:
    """Whether the text is a reference that `resolve` can follow."""
    return bool(_ENV.fullmatch(text) or _FILE.fullmatch(text))


def resolve(reference: str, *, environ: Mapping[str, str] | None = None) -> str:
    """The value behind a reference, as it is now; of a file, without the line's end.

    :param environ: variables for `env:`; None: this process's.
    :raises ConfigError: it leads nowhere, or is no reference; what was typed is then not repeated, as it may be the secret itself.
    """
    if match := _ENV.fullmatch(reference):
        value = (os.environ if environ is None else environ).get(match[1])
        if not value:
            raise ConfigError(f"`{reference}`: the variable is not set", next_step=f"set {match[1]} in the environment of this process")
        return value
    if match := _FILE.fullmatch(reference):
        return _read(Path(match[1]).expanduser(), reference)
    raise ConfigError("a secret must be a reference", next_step="write env:NAME or file:PATH instead of the value")


def _read(path: Path, reference: str) -> str:
    try:
        value = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"`{reference}`: not a UTF-8 text", next_step="write the secret as plain text") from None
    except OSError as exc:
        raise ConfigError(f"`{reference}`: {exc.strerror or 'can not be read'}", next_step="correct the path, or its permissions") from None
    if not value:
        raise ConfigError(f"`{reference}`: the file is empty", next_step="write the secret into it")
    return value
