"""The SuprSend sink: user profiles by bulk records, list members by ids.

At least once: a chunk whose reply was lost is sent again, with the same `$insert_id`s, and says the same target values. Nothing is kept between calls but
open connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from wsync_sdk import (
    CheckReport,
    Chunk,
    ConfigError,
    Finding,
    Inspection,
    RunRef,
    Sink,
    StreamSpec,
    Target,
    WriteMode,
    WriteResult,
    WsyncError,
)
from wsync_suprsend.answers import error_of
from wsync_suprsend.config import SuprSendConfig
from wsync_suprsend.lists import LIST_PREFIX, ListStream
from wsync_suprsend.profiles import PROFILES, ProfileStream
from wsync_suprsend.service import Service, user_path
from wsync_suprsend.versions import ListVersions, VersionToken

__all__ = ["SuprSendSink"]

CHECK_TIMEOUT_S = 10.0
NOBODY = "wsync-connection-test"
"""The id that `check` asks for; whether there is such a user does not matter."""


class SuprSendSink(Sink):
    """One workspace. `write` may be called by several threads at once."""

    def __init__(self, config: SuprSendConfig) -> None:
        self._config = config
        self._service = Service(config, policy=lambda: self.network)
        self._profiles = ProfileStream(config, self._service)

    # -- what it is

    def streams(self) -> Sequence[StreamSpec]:
        """`profiles`. Lists have a stream each, `list:ID`, which is not listed: SuprSend tells of a list that is asked for."""
        return [self._profiles.spec()]

    def stream(self, name: str) -> StreamSpec:
        """`profiles`, or `list:` and a list's id.

        :raises ConfigError: it is neither, or no list can have that id.
        """
        return self._stream(name).spec()

    def _stream(self, name: str) -> ProfileStream | ListStream:
        if name == PROFILES:
            return self._profiles
        if name.startswith(LIST_PREFIX):
            return ListStream(name, self._config, self._service)
        raise ConfigError(f"there is no stream `{name}`", next_step=f"write `{PROFILES}`, or `{LIST_PREFIX}` and a list's id")

    # -- a run

    def begin(self, run: RunRef, target: Target) -> bytes:
        """Looks whether the mapping's fields are what SuprSend takes, and whether a list is there and may be edited; for a list that is to be replaced,
        begins a draft.

        :raises ConfigError: they are not.
        :raises RetryableError: of a list: SuprSend can't be asked now.
        """
        stream = self._stream(target.stream)
        stream.begin(target)
        if run.write_mode is WriteMode.REPLACE and isinstance(stream, ListStream):
            return stream.versions.start()
        return b""

    def render(self, changes: pa.RecordBatch, target: Target) -> pa.StringArray | pa.LargeStringArray:
        """A user record, or an id, per change and one separator byte; a change that must not be sent has a mark instead, and `write` rejects it."""
        return self._stream(target.stream).render(changes, target)

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """Send the chunk: one request for records, or for ids to add, and one for ids to delete or to remove; within `chunk.timeout_s`.

        :raises RowError: refused as a whole. Where records went in a request of their own before, these were accepted, and come again with the halves.
        :raises RetryableError: no whole reply, or one that asks for another try.
        :raises FatalError: list or workspace is not there.
        :raises ConfigError: address, credential or certificate is wrong.
        """
        return self._stream(chunk.target.stream).write(chunk, token)

    def commit(self, token: bytes, totals: Mapping[str, int]) -> None:
        """Put a draft in the place of its list; a list that was changed as it is, is.

        :raises WsyncError: as `ListVersions.finish`.
        """
        if (version := VersionToken.decode(token)) is not None:
            self._versions(version).finish(version, totals)

    def abort(self, token: bytes) -> None:
        """Delete a draft."""
        if (version := VersionToken.decode(token)) is not None:
            self._versions(version).drop(version)

    def inspect(self, token: bytes) -> Inspection:
        """Whether a draft is there."""
        version = VersionToken.decode(token)
        return Inspection.UNKNOWN if version is None else self._versions(version).inspect(version)

    def find_open(self, run: RunRef) -> Sequence[bytes]:
        """All drafts of a list that is to be replaced, whoever made them."""
        stream = self._stream(run.stream) if run.write_mode is WriteMode.REPLACE else None
        return stream.versions.open_tokens() if isinstance(stream, ListStream) else ()

    def _versions(self, version: VersionToken) -> ListVersions:
        return ListStream(f"{LIST_PREFIX}{version.list_id}", self._config, self._service).versions

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    # -- check

    def check(self) -> CheckReport:
        """Resolve, connect, do TLS, and ask for one user, which tells whether the credential is right. Writes nothing."""
        try:
            self._service.credential()
        except WsyncError as exc:
            return CheckReport(findings=(_failed("secret", exc),))
        findings = [Finding(name="secret", ok=True, message="resolved"), *self._reachable()]
        if all(finding.ok for finding in findings):
            findings.append(self._login())
        return CheckReport(findings=tuple(findings))

    def _reachable(self) -> list[Finding]:
        try:
            said = self._service.connect(until_s=self._service.deadline_s(CHECK_TIMEOUT_S))
        except WsyncError as exc:
            return [_failed("reachable", exc)]
        findings = [Finding(name="reachable", ok=True, message=f"`{self._service.host}`: {said}")]
        if self._config.base_url.startswith("http:"):
            step = "use https unless the network between is yours"
            findings.append(Finding(name="encryption", ok=True, message="rows go in plain text", next_step=step))
        return findings

    def _login(self) -> Finding:
        doing = self._service.doing("GET")
        try:
            reply = self._service.send("GET", user_path(NOBODY), until_s=self._service.deadline_s(CHECK_TIMEOUT_S))
        except WsyncError as exc:
            return _failed("login", exc)
        if "html" in reply.headers.get("content-type", "").lower():
            return Finding(
                name="login", ok=False, message=f"{doing}: a web page answers, not SuprSend's API", next_step="correct `base_url`"
            )
        if reply.status in (200, 404):
            return Finding(name="login", ok=True, message=f"{doing}: SuprSend takes the credential")
        return _failed("login", error_of(doing, reply, now=datetime.now(UTC)))


def _failed(name: str, error: WsyncError) -> Finding:
    return Finding(name=name, ok=False, message=error.message, next_step=error.next_step)
