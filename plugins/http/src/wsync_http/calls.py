"""Which requests a chunk needs: one, or one for its upserts and one for its deletes, or one per row. Pure: builds requests, sends none.

A request's idempotency key is the chunk's; where a chunk needs several, each has a suffix of its own, which the same rows always get.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wsync_http.config import STREAM, Format, HttpConfig, Results, placeholders
from wsync_sdk import Chunk, Operation, RowError
from wsync_sdk.http import Request
from wsync_sdk.records import SEPARATOR_BYTES, bytes_of

__all__ = ["Call", "Endpoint", "calls", "endpoint_of", "filled", "separator"]

_TYPES = {Format.ARRAY: "application/json", Format.OBJECT: "application/json", Format.NDJSON: "application/x-ndjson"}
_ROW_STEP = "correct the row where it comes from, or the `url`"
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How the rows of one operation are sent."""

    url: str
    method: str
    format: Format
    wrap: str | None
    success: tuple[int | str, ...]
    results: Results | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request and the rows of the chunk it carries, in order."""

    rows: Rows
    endpoint: Endpoint
    request: Request = field(repr=False)


def endpoint_of(config: HttpConfig, operation: Operation) -> Endpoint:
    """Where and how rows of that operation go."""
    own = config.delete if operation is Operation.DELETE and config.delete is not None else config
    return Endpoint(url=own.url, method=own.method, format=own.format, wrap=own.wrap, success=own.success, results=own.results)


def separator(form: Format) -> bytes:
    """The byte after each record."""
    return b"," if form is Format.ARRAY else b"\n"


def calls(chunk: Chunk, rows: Rows, config: HttpConfig, headers: Sequence[tuple[str, str]]) -> Iterator[Call]:
    """The requests for some rows of a chunk, upserts first.

    :param rows: those that can be sent, ascending. :param headers: those of every request, secret ones included.
    :raises RowError: a row's value can't stand in a URL.
    """
    groups = list(_groups(chunk, rows, config))
    for suffix, operation, members in groups:
        endpoint = endpoint_of(config, operation)
        key = chunk.key if len(groups) == 1 else f"{chunk.key}{suffix}"
        yield Call(rows=members, endpoint=endpoint, request=_request(chunk, members, endpoint, config, [*headers, *_key(config, key)]))


def _groups(chunk: Chunk, rows: Rows, config: HttpConfig) -> Iterator[tuple[str, Operation, Rows]]:
    """(suffix of the key, operation, rows) of each request."""
    is_delete = pc.equal(chunk.changes.column(0), str(Operation.DELETE)).to_numpy(zero_copy_only=False)[rows]
    if config.delete is None and not config.format.is_single:
        yield "", Operation.UPSERT, rows
        return
    for operation, members in ((Operation.UPSERT, rows[~is_delete]), (Operation.DELETE, rows[is_delete])):
        if endpoint_of(config, operation).format.is_single:
            # Named by the chunk's rows, not by those that can be sent: the same whatever stands beside them.
            yield from ((f":{row}" if chunk.rows > 1 else "", operation, members[place : place + 1]) for place, row in enumerate(members))
        elif len(members):
            yield ":delete" if operation is Operation.DELETE else "", operation, members


def _key(config: HttpConfig, key: str) -> list[tuple[str, str]]:
    return [(config.idempotency_header, key)] if config.idempotency_header is not None else []


def _request(chunk: Chunk, rows: Rows, endpoint: Endpoint, config: HttpConfig, headers: list[tuple[str, str]]) -> Request:
    url = filled(endpoint.url, chunk, int(rows[0]))
    if endpoint.format is Format.NONE:
        return Request(method=endpoint.method, url=url, headers=headers)
    body = _body(chunk, rows, endpoint)
    headers.append(("Content-Type", _TYPES[endpoint.format]))
    if config.gzip:
        headers.append(("Content-Encoding", "gzip"))
        body = gzip.compress(body, compresslevel=5, mtime=0)  # without a time the same rows are the same bytes
    return Request(method=endpoint.method, url=url, headers=headers, body=body)


def _body(chunk: Chunk, rows: Rows, endpoint: Endpoint) -> bytes:
    text = _joined(chunk, rows)
    match endpoint.format:
        case Format.NDJSON:
            return bytes(text)
        case Format.ARRAY:
            head, tail = (b"[", b"]") if endpoint.wrap is None else (_object_head(endpoint.wrap), b"]}")
            return b"".join((head, text[:-SEPARATOR_BYTES], tail))
        case _:
            return bytes(text[:-SEPARATOR_BYTES])


def _joined(chunk: Chunk, rows: Rows) -> memoryview:
    """The records of those rows, one after the other; not copied where they are the whole chunk."""
    if len(rows) == chunk.rows or chunk.records is None:
        return chunk.body()
    return bytes_of(chunk.records.take(pa.array(rows)))


def _object_head(wrap: str) -> bytes:
    return f"{{{json.dumps(wrap, ensure_ascii=False)}:[".encode()


def filled(url: str, chunk: Chunk, row: int) -> str:
    """The URL with the stream, and the row's values where it names fields, percent-encoded.

    :raises RowError: a value is NULL, empty or a dot: the URL would be another one, maybe that of all rows.
    """
    values = {STREAM: chunk.target.stream}
    for name in placeholders(url) - {STREAM}:
        values[name] = _text(chunk, name, row)
    return re.sub(r"\{([^{}]*)\}", lambda match: quote(values[match[1]], safe=""), url)


def _text(chunk: Chunk, name: str, row: int) -> str:
    value = chunk.changes.column(chunk.changes.schema.get_field_index(name)).slice(row, 1).cast(pa.string())[0].as_py()
    if value is None or value in ("", ".", ".."):
        said = "NULL" if value is None else "empty or dots"
        raise RowError(f"`{name}` is {said}, and stands in the URL", code="url_value", next_step=_ROW_STEP)
    return str(value)
