"""A run's refused rows as a file, for who mends them: as JSON lines, or as CSV where the name says so."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import UUID, uuid4

import psycopg

from wsync_engine.model.ids import TenantId
from wsync_engine.model.json_text import json_text
from wsync_engine.scheduler.rows import Row
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.services.runs import each_rejection
from wsync_sdk.errors import ConfigError

__all__ = ["export_rejections"]

COLUMNS = ("phase", "code", "message", "retryable", "at", "key", "refused")


def export_rejections(conn: psycopg.Connection[Any], tenant_id: TenantId, run_id: UUID, file: Path, *, keyring: Keyring) -> int:
    """Write all refused rows that a run lists, as `list_rejections` gives them, and say how many. They are people's rows: only the file's owner
    may read it. It is there as a whole, or as it was before.

    :param file: `.csv`: a line each, `key` and `refused` as JSON in it; `.jsonl`, `.ndjson` or `.json`: one object a line.
    :raises ConfigError: another ending, the file can't be written, or the rows were encrypted with a key that this process does not have.
    """
    write = _writer(file)
    with _replaced(file) as draft:
        return write(draft, each_rejection(conn, tenant_id, run_id, keyring=keyring))


def _writer(file: Path) -> Callable[[IO[str], Iterable[Row]], int]:
    match file.suffix.lower():
        case ".csv":
            return _write_csv
        case ".jsonl" | ".ndjson" | ".json":
            return _write_lines
        case other:
            raise ConfigError(f"`{other or file.name}` is no ending of an export", next_step="name a file that ends in .jsonl or .csv")


def _write_lines(draft: IO[str], rows: Iterable[Row]) -> int:
    count = 0
    for row in rows:
        draft.write(json_text(row) + "\n")
        count += 1
    return count


def _write_csv(draft: IO[str], rows: Iterable[Row]) -> int:
    writer = csv.writer(draft)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        writer.writerow([_csv_cell(row[name]) for name in COLUMNS])
        count += 1
    return count


def _csv_cell(value: Any) -> str:
    if not isinstance(value, str):
        return json_text(value).strip('"')
    # A spreadsheet would calculate it: a destination's words are anybody's.
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


@contextmanager
def _replaced(file: Path) -> Iterator[IO[str]]:
    """The file's next content, under a name of its own until it is whole."""
    draft = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline="") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)
    except OSError as exc:
        raise ConfigError(f"{file} can't be written: {exc.strerror}", next_step="name a file in a folder that you may write to") from exc
    finally:
        draft.unlink(missing_ok=True)
