"""The streams `list:ID`: who is on a subscriber list.

SuprSend adds only users that it has, and skips the others without a word; it says how many it added, and counts those who were there already as not added.
So where it added fewer than it was sent, each user is asked for: one that is not there is a rejection that is offered again, and one that could not be
asked for in time is unknown. What is accepted is on the list.

Asking costs a call per user, so calls that add are small by default: one absent user makes work for its own call only. To add once more by halves would tell
nothing, as all who are there are on the list by then.

A list that is replaced is filled as a draft (`versions.py`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pyarrow as pa

from wsync_sdk import (
    Chunk,
    ConfigError,
    FatalError,
    FieldSpec,
    Operation,
    RetryableError,
    StreamLimits,
    StreamSpec,
    Target,
    WriteMode,
    WriteResult,
)
from wsync_sdk.records import SEPARATOR_BYTES, Text
from wsync_suprsend.answers import Refusal, verdicts_of
from wsync_suprsend.config import SuprSendConfig
from wsync_suprsend.fields import id_field
from wsync_suprsend.records import ids_rendered
from wsync_suprsend.rows import Places, Rows, values_of
from wsync_suprsend.service import BYTES_AROUND_IDS, MOST_BODY_BYTES, Service, ids_body, user_path
from wsync_suprsend.versions import ListVersions, VersionToken, document_of, is_missing

__all__ = ["LIST_PREFIX", "ListStream", "list_id"]

LIST_PREFIX = "list:"
BEGIN_TIMEOUT_S = 10.0
_LIST_ID = re.compile(r"[a-z0-9_-]{1,64}")


def list_id(stream: str) -> str:
    """The id of a stream's list. Upper case is lower case to SuprSend.

    :raises ConfigError: no list can have that id.
    """
    found = stream.removeprefix(LIST_PREFIX)
    folded = found.lower() if found.isascii() else found
    if not _LIST_ID.fullmatch(folded):
        raise ConfigError(f"`{found}` is no list id", next_step="a list id has 1 to 64 of the characters a-z, 0-9, `_` and `-`")
    return folded


class ListStream:
    """Adds users to one list, and removes them.

    :raises ConfigError: no list can have the stream's id.
    """

    def __init__(self, name: str, config: SuprSendConfig, service: Service) -> None:
        self._name = name
        self._list_id = list_id(name)
        self._config = config
        self._service = service

    def spec(self) -> StreamSpec:
        """What the stream takes. The limits count ids with the byte behind each."""
        limits, lists = self._config.limits, self._config.lists
        return StreamSpec(
            name=self._name,
            title=f"SuprSend list {self._list_id}, workspace {self._config.environment}",
            operations=frozenset(Operation),
            limits=StreamLimits(
                max_rows=lists.max_rows,
                max_bytes=MOST_BODY_BYTES - BYTES_AROUND_IDS + SEPARATOR_BYTES,
                calls_per_s=limits.calls_per_s,
                concurrency=limits.concurrency,
                idempotent=True,
            ),
            fields=(FieldSpec(name="distinct_id", description="the user's id, whatever its name: the sync's key"),),
            open_fields=False,
            write_modes=frozenset({WriteMode.MERGE, WriteMode.REPLACE}),
        )

    def begin(self, target: Target) -> None:
        """Look whether the mapping is an id alone, and whether there is such a list that may be edited.

        :raises ConfigError: it is not, or there is none.
        :raises RetryableError: SuprSend can't be asked now.
        """
        key = id_field(target)
        if extra := next((name for name in target.schema.names if name != key), None):
            raise ConfigError(f"mapping: a list takes ids only, and `{extra}` is mapped too", next_step=f"map `{key}` alone")
        doing, until_s = self._service.doing("GET"), self._service.deadline_s(BEGIN_TIMEOUT_S)
        reply = self._service.send("GET", self._path(""), until_s=until_s)
        if reply.status == 404:
            raise ConfigError(f"SuprSend has no list `{self._list_id}`", next_step="make the list in SuprSend, or correct `stream`")
        verdicts_of(doing, reply, 1, now=datetime.now(UTC), sent=lambda _: ())
        found = document_of(reply)
        if found.get("is_readonly") or found.get("list_type", "static_list") != "static_list":
            raise ConfigError(f"the list `{self._list_id}` is made by a query or read only", next_step="name a static list as `stream`")

    def render(self, changes: pa.RecordBatch, target: Target) -> Text:
        """An id as JSON text per change."""
        return ids_rendered(changes, target.key[0])

    @property
    def versions(self) -> ListVersions:
        """The list's drafts."""
        return ListVersions(self._list_id, self._service, is_counted=self._config.lists.check_users)

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """Add the users of upserts, then remove those of deletes; of the list, or of its draft."""
        version = VersionToken.decode(token)
        within = "" if version is None else version.path
        until_s = self._service.deadline_s(chunk.timeout_s)
        rows = Rows(chunk)
        added, gone = rows.of(Operation.UPSERT), rows.of(Operation.DELETE)
        if len(added):
            affected = self._edit(f"{within}subscriber/add/", rows, added, until_s=until_s)
            if self._config.lists.check_users and affected != len(added):
                self._look_for(rows, added, until_s=until_s)
        if len(gone):
            self._edit(f"{within}subscriber/remove/", rows, gone, until_s=until_s)
        return rows.result()

    def _edit(self, path: str, rows: Rows, places: Places, *, until_s: float) -> int | None:
        """The number of users that SuprSend says it added or removed, if it does."""
        ids = rows.picked(places)
        reply = self._service.send("POST", self._path(path), ids_body(ids), until_s=until_s)
        if is_missing(reply):
            raise FatalError(
                f"{self._service.doing('POST')}: SuprSend has no list `{self._list_id}`, or not the version of it that was begun",
                next_step="see whether the list is there, then run the sync again",
            )
        verdicts = verdicts_of(
            self._service.doing("POST"),
            reply,
            len(places),
            now=datetime.now(UTC),
            sent=lambda row: self._service.hidden(values_of(ids, row)),
        )
        rows.note(places, verdicts)
        if document_of(reply).get("success") is False:
            raise RetryableError(
                f"{self._service.doing('POST')}: SuprSend answers {reply.status}, and that it had no success",
                next_step="nothing to do: it is tried again",
            )
        affected = document_of(reply).get("affected_count")
        return affected if isinstance(affected, int) else None

    def _look_for(self, rows: Rows, places: Places, *, until_s: float) -> None:
        """Ask for each user, as far as the time goes: those that are not there were not added."""
        ids = rows.chunk.changes.column(rows.chunk.changes.schema.get_field_index(rows.chunk.target.key[0]))
        for number, place in enumerate(places):
            try:
                reply = self._service.send("GET", user_path(str(ids[int(place)].as_py())), until_s=until_s)
            except RetryableError:
                rows.doubt(places[number:])
                return
            if reply.status == 404:
                rows.refuse(int(place), Refusal(code="unknown_user", message="SuprSend has no such user, or not yet", retryable=True))
            elif reply.status != 200:
                rows.doubt(places[number:])
                return

    def _path(self, rest: str) -> str:
        return f"/v1/subscriber_list/{self._list_id}/{rest}"
