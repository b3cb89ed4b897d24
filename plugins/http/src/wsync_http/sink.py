"""The HTTP sink: sends a chunk's records to an endpoint and says, from its reply, what became of each row.

At least once: a chunk whose reply was lost is sent again, under the same idempotency key. Nothing is kept between calls but open connections.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from wsync_http import __version__
from wsync_http.calls import Call, Endpoint, calls, endpoint_of, separator
from wsync_http.config import STREAM, HttpConfig, header_problem, placeholders
from wsync_http.records import Style, rendered
from wsync_http.replies import error_of_status, is_among
from wsync_http.verdicts import Refusal, Unreadable, Verdicts, verdicts
from wsync_sdk import (
    CheckReport,
    Chunk,
    ConfigError,
    FatalError,
    Finding,
    Nulls,
    Operation,
    Rejection,
    RetryableError,
    RowError,
    RunRef,
    Sink,
    StreamLimits,
    StreamSpec,
    Target,
    WriteMode,
    WriteResult,
    WsyncError,
)
from wsync_sdk.http import Body, Client, Reply, Request
from wsync_sdk.records import SEPARATOR_BYTES, JsonStyle, is_marked, mark_of, unsupported, values_in, without

__all__ = ["HttpSink"]

CHECK_TIMEOUT_S = 10.0
_REASONS = {
    "not_finite": "is NaN or infinite, which JSON has not",
    "invalid_json": "is not valid JSON",
    "date_out_of_range": "is not between the years 1 and 9999",
}


class HttpSink(Sink):
    """One endpoint. `write` may be called by several threads at once."""

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._client = Client(
            policy=lambda: self.network,
            connections=config.limits.concurrency,
            ca_file=config.ca_file,
            reply_max_bytes=config.reply_max_bytes,
        )

    # -- what it is

    def streams(self) -> Sequence[StreamSpec]:
        """Those that the config lists; where it lists none, any name is a stream."""
        return [self._stream(name) for name in self._config.streams]

    def stream(self, name: str) -> StreamSpec:
        """The stream of that name.

        :raises ConfigError: the config lists streams, and not this one.
        """
        return super().stream(name) if self._config.streams else self._stream(name)

    def _stream(self, name: str) -> StreamSpec:
        limits = self._config.limits
        return StreamSpec(
            name=name,
            title=f"{self._config.method} {urlsplit(self._config.url).hostname}: {name}",
            operations=self._config.operations,
            limits=StreamLimits(
                max_rows=1 if self._config.is_single else limits.max_rows,
                max_bytes=limits.max_bytes - _bytes_around(self._config),
                max_record_bytes=limits.max_record_bytes,
                calls_per_s=limits.calls_per_s,
                concurrency=limits.concurrency,
                idempotent=self._config.idempotent,
            ),
            nulls=frozenset(Nulls),
            write_modes=frozenset({WriteMode.MERGE, WriteMode.APPEND}),
        )

    # -- a run

    def begin(self, run: RunRef, target: Target) -> bytes:
        """Nothing to prepare; looks whether every field can be written and the URLs name fields that are there.

        :raises ConfigError: one can't, or is not.
        """
        for field in target.schema:
            if (type_ := unsupported(field.type)) is not None:
                raise ConfigError(f"the field `{field.name}` holds {type_}, for which JSON has no form", next_step="cast it in the mapping")
        if self._config.op_field in target.schema.names:
            raise ConfigError(f"`op_field` and a mapped field are both `{self._config.op_field}`", next_step="rename one of them")
        self._check_url_fields(target)
        return b""

    def _check_url_fields(self, target: Target) -> None:
        for operation in self._config.operations:
            known = target.key if operation is Operation.DELETE else target.schema.names
            for name in sorted(placeholders(endpoint_of(self._config, operation).url) - {STREAM}):
                if name not in known:
                    raise ConfigError(
                        f"the URL for {operation}s names `{name}`, which is no field of {'the key' if known is target.key else 'the mapping'}",
                        next_step=f"map `{name}`, or name another field",
                    )
                if not _has_text(target.schema.field(name).type):
                    raise ConfigError(f"`{name}` can't stand in a URL: it is {target.schema.field(name).type}", next_step="cast it to text")

    def render(self, changes: pa.RecordBatch, target: Target) -> pa.StringArray | pa.LargeStringArray:
        """A JSON object per change and one separator byte; a row that JSON can't say has a mark instead, and `write` rejects it."""
        return rendered(changes, target.key, self._style(Operation.UPSERT), self._style(Operation.DELETE))

    def _style(self, operation: Operation) -> Style:
        config = self._config
        style = JsonStyle(
            separator=separator(endpoint_of(config, operation).format),
            nulls_sent=config.nulls == "send",
            non_finite_rejected=config.non_finite == "reject",
            decimals_as_text=config.decimals == "text",
        )
        return Style(json=style, op_field=config.op_field)

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """Send the chunk: one request, or one for upserts and one for deletes, or one per row; all within `chunk.timeout_s`.

        :raises RowError: refused as a whole. Where upserts went in a request of their own before, these were applied, and come again with the halves.
        :raises RetryableError: no whole reply, or one that asks for another try.
        :raises FatalError: the endpoint is not there, or its replies can't be used.
        :raises ConfigError: address, credential or certificate is wrong.
        """
        until_s = time.monotonic() + chunk.timeout_s
        self._refuse_deletes(chunk)
        assert chunk.records is not None
        marked = is_marked(chunk.records)
        rejections = [_marked_row(int(row), str(chunk.records[int(row)])) for row in np.flatnonzero(marked)]
        unknown: list[int] = []
        sendable = np.flatnonzero(~marked)
        if len(sendable):
            secret_headers = self._secret_headers()
            secrets = [value for _, value in secret_headers]
            todo = list(calls(chunk, sendable, self._config, self._headers(secret_headers)))
            for call in todo:
                found = self._verdicts(call, until_s=until_s, is_only=len(todo) == 1)
                rejections += [
                    _rejection(int(call.rows[place]), refusal, chunk, secrets) for place, refusal in sorted(found.refused.items())
                ]
                unknown += [int(call.rows[place]) for place in found.unknown]
        accepted = chunk.rows - len(rejections) - len(unknown)
        return WriteResult(accepted_rows=accepted, rejections=tuple(rejections), unknown=tuple(sorted(unknown)))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _refuse_deletes(self, chunk: Chunk) -> None:
        if Operation.DELETE not in self._config.operations and "delete" in set(chunk.changes.column(0).unique().to_pylist()):
            raise ConfigError("the endpoint takes no deletes", next_step="set `op_field` or `delete`, or use `mode: upsert`")

    def _verdicts(self, call: Call, *, until_s: float, is_only: bool) -> Verdicts:
        """Of one request; a single row that is refused beside other requests is a rejection and leaves these alone."""
        try:
            return _judged(call, self._client.send(call.request, until_s=until_s))
        except RowError as exc:
            if is_only or len(call.rows) > 1:
                raise
            return Verdicts(refused={0: Refusal(code=exc.code, message=exc.message, retryable=False)})

    # -- headers

    def _headers(self, secret_headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of every request."""
        ours = [("User-Agent", f"wsync-http/{__version__}"), ("Accept", "application/json"), ("Accept-Encoding", "identity")]
        given = [*self._config.headers.items(), *secret_headers]
        named = {name.lower() for name, _ in given}
        return [*((name, value) for name, value in ours if name.lower() not in named), *given]

    def _secret_headers(self) -> list[tuple[str, str]]:
        """With the secrets as they are now."""
        revealed = [(name, secret.reveal().strip()) for name, secret in self._config.secret_headers.items()]
        for name, value in revealed:
            if header_problem(name, value):
                raise ConfigError(
                    f"the secret of header `{name}` holds a character that a header can't hold", next_step="correct the secret's value"
                )
        return revealed

    # -- check

    def check(self) -> CheckReport:
        """Resolve, connect and do TLS with each host; with `check:`, also make that request. Writes nothing."""
        findings = [self._secrets_found()]
        urls = [self._config.url, *([self._config.delete.url] if self._config.delete is not None else [])]
        for url in {_origin(url): url for url in urls}.values():
            findings += self._host_found(url)
        if self._config.check is not None and all(finding.ok for finding in findings):
            findings.append(self._request_found(self._config.check.method, self._config.check.url))
        return CheckReport(findings=tuple(findings))

    def _secrets_found(self) -> Finding:
        try:
            names = [name for name, _ in self._secret_headers()]
        except WsyncError as exc:
            return Finding(name="secret_headers", ok=False, message=exc.message, next_step=exc.next_step)
        return Finding(name="secret_headers", ok=True, message=f"{len(names)} resolved" if names else "none configured")

    def _host_found(self, url: str) -> list[Finding]:
        host = urlsplit(url).hostname
        try:
            said = self._client.connect(url, until_s=time.monotonic() + CHECK_TIMEOUT_S)
        except WsyncError as exc:
            return [Finding(name="reachable", ok=False, message=exc.message, next_step=exc.next_step)]
        findings = [Finding(name="reachable", ok=True, message=f"`{host}`: {said}")]
        if urlsplit(url).scheme == "http":
            step = "use https unless the network between is yours"
            findings.append(Finding(name="encryption", ok=True, message=f"`{host}`: rows and credentials go in plain text", next_step=step))
        return findings

    def _request_found(self, method: str, url: str) -> Finding:
        request = Request(method=method, url=url, headers=self._headers(self._secret_headers()))
        try:
            reply = self._client.send(request, until_s=time.monotonic() + CHECK_TIMEOUT_S)
        except WsyncError as exc:
            return Finding(name="request", ok=False, message=exc.message, next_step=exc.next_step)
        if is_among(reply.status, ("2xx",)):
            return Finding(name="request", ok=True, message=f"{request.doing}: the endpoint answers {reply.status}")
        error = error_of_status(request.doing, reply, now=datetime.now(UTC))
        step = "correct `check.url` or `check.method`" if isinstance(error, RowError | FatalError) else error.next_step
        return Finding(name="request", ok=False, message=error.message, next_step=step)


def _judged(call: Call, reply: Reply) -> Verdicts:
    """What a reply says of the rows of its request."""
    doing, endpoint = call.request.doing, call.endpoint
    is_success = is_among(reply.status, endpoint.success)
    if not is_success and not _has_results(endpoint, reply.status):
        raise error_of_status(doing, reply, now=datetime.now(UTC))
    if endpoint.results is None:
        return _believed(doing, reply, endpoint)
    if reply.state is Body.OVERSIZED:
        raise FatalError(
            f"{doing}: the reply is too large to be read, so the rows' fate is not known",
            next_step="raise `reply_max_bytes`, or lower `limits.max_rows`",
        )
    if reply.state is Body.BROKEN:
        raise _half_reply(doing)
    try:
        found = verdicts(reply.body, endpoint.results, len(call.rows))
    except Unreadable as exc:
        if not is_success:
            raise error_of_status(doing, reply, now=datetime.now(UTC)) from exc
        raise RetryableError(
            f"{doing}: the endpoint answers {reply.status}, but {exc}", next_step="correct `results.items` if it is not by accident"
        ) from exc
    if not is_success and not found.refused and not found.unknown:
        # A refusal that names no row: believed to be one of all of them.
        raise error_of_status(doing, reply, now=datetime.now(UTC))
    return found


def _bytes_around(config: HttpConfig) -> int:
    """What stands around the records of a body, at most."""
    wraps = [config.wrap, config.delete.wrap if config.delete is not None else None]
    return max(len(json.dumps(wrap or "")) + len("{:[]}") for wrap in wraps)


def _has_results(endpoint: Endpoint, status: int) -> bool:
    return endpoint.results is not None and is_among(status, endpoint.results.statuses)


def _believed(doing: str, reply: Reply, endpoint: Endpoint) -> Verdicts:
    """A success without results: its status is all it says, so its body need only be whole, and may be of any size."""
    if reply.status == 207 and "207" not in endpoint.success:
        raise FatalError(
            f"{doing}: the endpoint answers 207: some rows may be refused, and nothing says which",
            next_step="say by `results` where the reply tells, or name 207 under `success` to take it as one for all rows",
        )
    if reply.state is Body.BROKEN:
        raise _half_reply(doing)
    return Verdicts(refused={})


def _half_reply(doing: str) -> RetryableError:
    return RetryableError(f"{doing}: the reply ended in its middle", next_step="nothing to do: it is tried again")


def _marked_row(row: int, record: str) -> Rejection:
    code, field = mark_of(record)
    return Rejection(row=row, code=code, message=f"`{field}` {_REASONS[code]}")


def _rejection(row: int, refusal: Refusal, chunk: Chunk, secrets: Sequence[str]) -> Rejection:
    assert chunk.records is not None
    message = without(refusal.message, [*secrets, *values_in(str(chunk.records[row])[:-SEPARATOR_BYTES])])
    return Rejection(row=row, code=without(refusal.code, secrets), message=message, retryable=refusal.retryable)


def _has_text(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_integer(type_)
        or pa.types.is_decimal(type_)
        or pa.types.is_date(type_)
    )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
