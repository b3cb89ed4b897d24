"""References to secrets in configurations: `env:NAME` and `file:PATH`. Messages name the reference, never its value.

A tenant writes references, and processes with more rights than the tenant follow them: so a file has to lie in a folder that is the tenant's
(`<secret folder>/<tenant>/…`, links followed), and the installation's own variables are nobody's secrets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsync_sdk.errors import ConfigError

__all__ = ["check_reference", "is_reference", "resolve", "tenant_folders"]

_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_FILE = re.compile(r"file:(.+)")
_OURS = "WSYNC_"


def is_reference(text: str) -> bool:
    """Whether the text is a reference that `resolve` can follow."""
    return bool(_ENV.fullmatch(text) or _FILE.fullmatch(text))


def tenant_folders(folders: Sequence[Path], tenant: str) -> tuple[Path, ...]:
    """Where a tenant's files may lie, of an installation's secret folders."""
    return tuple(folder / tenant for folder in folders)


def check_reference(reference: str, folders: Sequence[Path]) -> None:
    """Hold a reference to what its tenant may refer to; whether it leads anywhere is not looked at.

    :param folders: the tenant's.
    :raises ConfigError: it may not, or is no reference; what was typed is then not repeated, as it may be the secret itself.
    """
    if match := _ENV.fullmatch(reference):
        if match[1].upper().startswith(_OURS):
            raise ConfigError(f"`{reference}`: the installation's own settings are nobody's secrets", next_step="use another variable")
        return
    match = _FILE.fullmatch(reference)
    if not match:
        raise ConfigError("a secret must be a reference", next_step="write env:NAME or file:PATH instead of the value")
    path = Path(match[1]).resolve()
    if not any(path.is_relative_to(folder.resolve()) for folder in folders):
        where = " or ".join(str(folder) for folder in folders) or "a folder that WSYNC_SECRET_FOLDERS names, below the tenant's name"
        raise ConfigError(f"`{reference}`: not in the tenant's folder of secrets", next_step=f"put the file into {where}")


def resolve(reference: str, *, folders: Sequence[Path] = (), environ: Mapping[str, str] | None = None) -> str:
    """The value behind a reference, as it is now; of a file, without the line's end.

    :param folders: where the tenant's files lie. :param environ: variables for `env:`; None: this process's.
    :raises ConfigError: it leads nowhere, the tenant may not refer to it, or it is no reference.
    """
    check_reference(reference, folders)
    if match := _ENV.fullmatch(reference):
        value = (os.environ if environ is None else environ).get(match[1])
        if not value:
            raise ConfigError(
                f"`{reference}`: the variable is not set, or empty", next_step=f"set {match[1]} in the environment of this process"
            )
        return value
    return _read(Path(reference.removeprefix("file:")), reference)


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
