"""A list's new version: an empty draft, filled beside the live list, which takes its place in one step.

    start_sync ── add … ── finish_sync          or: delete the draft

From SuprSend's docs and its Python SDK 0.20.0 (read 2026-11-20): `start_sync` makes another draft each time; a draft that is finished is gone, as one that is
deleted is, so only the live list's count tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from wsync_sdk import FatalError, Inspection, RowError
from wsync_sdk.http import Reply
from wsync_suprsend.answers import verdicts_of
from wsync_suprsend.service import Service

__all__ = ["ListVersions", "VersionToken", "document_of", "is_missing"]

CALL_TIMEOUT_S = 10.0
_NOT_FOUND = 404
"""As status, or as `code` of a reply with status 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionToken:
    """A list's draft."""

    list_id: str
    version_id: str

    def encode(self) -> bytes:
        """As the engine stores it."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def decode(token: bytes) -> VersionToken | None:
        """What `encode` made; None: an empty token, of a run that changes the live list."""
        return VersionToken(**json.loads(token)) if token else None

    @property
    def path(self) -> str:
        """Of the draft, below the list."""
        return f"version/{self.version_id}/"


class ListVersions:
    """The drafts of one list.

    :param is_counted: every user that was accepted is in the draft, so that their number has to be its count.
    """

    def __init__(self, list_id: str, service: Service, *, is_counted: bool) -> None:
        self._list_id = list_id
        self._service = service
        self._is_counted = is_counted

    def start(self) -> bytes:
        """Make a draft; its token.

        :raises RetryableError: whether one was made is not known: `find_open` sees it.
        """
        reply = self._ask("POST", "start_sync/", b"{}")
        self._must_be_done("POST", reply)
        version_id = document_of(reply).get("version_id")
        if not isinstance(version_id, str) or not version_id.replace("-", "").replace("_", "").isalnum():
            raise FatalError(
                f"{self._service.doing('POST')}: SuprSend began a version of the list `{self._list_id}` without saying its id",
                next_step="report it to the connector's author",
            )
        return VersionToken(list_id=self._list_id, version_id=version_id).encode()

    def finish(self, version: VersionToken, totals: Mapping[str, int]) -> None:
        """Put the draft in the place of the live list, unless that is done.

        :raises RetryableError: whether it was done is not known. :raises FatalError: the draft is gone, or does not hold what it should.
        """
        if self._is_done(version, totals["accepted"]):
            return
        reply = self._ask("PATCH", f"{version.path}finish_sync/", b"{}")
        if is_missing(reply) and self._is_done(version, totals["accepted"]):
            return
        self._must_be_done("PATCH", reply)

    def drop(self, version: VersionToken) -> None:
        """Delete the draft; one that is gone is as it shall be."""
        reply = self._ask("DELETE", version.path)
        if not is_missing(reply):
            self._must_be_done("DELETE", reply)

    def inspect(self, version: VersionToken) -> Inspection:
        """OPEN, or UNKNOWN: nothing tells a draft that was finished from one that was deleted."""
        found = self._list()
        if found is None:
            return Inspection.GONE
        return Inspection.OPEN if version.version_id in _drafts(found) else Inspection.UNKNOWN

    def open_tokens(self) -> list[bytes]:
        """Of all drafts of the list: nothing says whose they are."""
        found = self._list() or {}
        return [VersionToken(list_id=self._list_id, version_id=version_id).encode() for version_id in _drafts(found)]

    def _is_done(self, version: VersionToken, users: int) -> bool:
        """Whether the draft has become the list; False: it is there, and may.

        :raises FatalError: neither is so.
        """
        found = self._list() or {}
        drafts = _drafts(found)
        if version.version_id not in drafts:
            if found.get("subscribers_count") == users:
                return True
            raise FatalError(
                f"the new version of the list `{self._list_id}` is gone, and the list does not have its {users} users",
                next_step="run the sync again: it begins another version",
            )
        count = drafts[version.version_id]
        if self._is_counted and count is not None and count != users:
            raise FatalError(
                f"the new version of the list `{self._list_id}` has {count} users, and was given {users}; the list stays as it was",
                next_step="run the sync again: it begins another version",
            )
        return False

    def _list(self) -> dict[str, Any] | None:
        """The list's document; None: there is no such list."""
        reply = self._ask("GET", "")
        if reply.status == _NOT_FOUND:
            return None
        self._must_be_done("GET", reply)
        return document_of(reply)

    def _ask(self, method: str, rest: str, body: bytes = b"") -> Reply:
        path = f"/v1/subscriber_list/{self._list_id}/{rest}"
        return self._service.send(method, path, body, until_s=self._service.deadline_s(CALL_TIMEOUT_S))

    def _must_be_done(self, method: str, reply: Reply) -> None:
        """
        :raises WsyncError: the reply is no success, or not whole.
        """
        doing, now = self._service.doing(method), datetime.now(UTC)
        if is_missing(reply):
            raise FatalError(
                f"{doing}: SuprSend has no list `{self._list_id}`, or no such version of it", next_step="see whether the list is there"
            )
        try:
            verdicts_of(doing, reply, 0, now=now, sent=lambda _: ())
        except RowError as exc:
            raise FatalError(exc.message, next_step="see what the list allows, in SuprSend") from exc


def document_of(reply: Reply) -> dict[str, Any]:
    """A reply's object; empty where it is none."""
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_missing(reply: Reply) -> bool:
    """Whether SuprSend says that list or version is not there."""
    return reply.status == _NOT_FOUND or (reply.status == 400 and document_of(reply).get("code") == _NOT_FOUND)


def _drafts(found: Mapping[str, Any]) -> dict[str, int | None]:
    """How many users each draft has, by its id; None: it does not say."""
    drafts = found.get("drafts")
    counts: dict[str, int | None] = {}
    for draft in drafts if isinstance(drafts, list) else []:
        told = draft if isinstance(draft, dict) else {"version_id": draft}
        count = told.get("subscribers_count")
        counts[str(told.get("version_id"))] = count if isinstance(count, int) else None
    return counts
