"""The stream `profiles`: users with their channels and properties.

A 202 of the bulk path means accepted: SuprSend applies the edits later, and does not promise an order among requests. Rows of one user are never in two
requests at once: a key is in a change log once, and a key that SuprSend would take for another one is refused (`refusals.id_texts`).
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from wsync_sdk import Chunk, ConfigError, Nulls, Operation, RetryableError, RowError, StreamLimits, StreamSpec, Target, WriteResult
from wsync_sdk.records import SEPARATOR_BYTES, Text
from wsync_suprsend.answers import Refusal, error_of, verdicts_of
from wsync_suprsend.config import OnDelete, SuprSendConfig
from wsync_suprsend.fields import CLOSED, field_specs, layout_of, needs_before
from wsync_suprsend.records import Template, rendered, stamped
from wsync_suprsend.rows import Places, Rows, values_of
from wsync_suprsend.service import BYTES_AROUND_IDS, MOST_BODY_BYTES, Service, ids_body, user_path

__all__ = ["MOST_RECORD_BYTES", "PROFILES", "ProfileStream"]

PROFILES = "profiles"
MOST_RECORD_BYTES = 10_240
"""Of one user record as UTF-8 JSON: the official Python SDK 0.20.0 (read 2026-11-20)."""
_BULK, _BULK_DELETE = "/event/", "/v1/bulk/user/"
_NOT_IN_BULK = frozenset({400, 404, 405, 413, 415, 422, 501})


class ProfileStream:
    """Renders and sends user records."""

    def __init__(self, config: SuprSendConfig, service: Service) -> None:
        self._config = config
        self._service = service
        self._template = Template(
            environment=config.environment,
            tenant_id=config.tenant_id,
            on_delete=config.profiles.on_delete,
            null_channels=config.profiles.null_channels,
            decimals_as_text=config.profiles.decimals == "text",
        )

    def spec(self) -> StreamSpec:
        """What the stream takes. The limits count records with the byte behind each."""
        limits = self._config.limits
        return StreamSpec(
            name=PROFILES,
            title=f"SuprSend users, workspace {self._config.environment}",
            operations=self._config.profile_operations,
            limits=StreamLimits(
                max_rows=limits.max_rows,
                max_bytes=MOST_BODY_BYTES - BYTES_AROUND_IDS + SEPARATOR_BYTES,
                max_record_bytes=MOST_RECORD_BYTES + SEPARATOR_BYTES,
                calls_per_s=limits.calls_per_s,
                concurrency=limits.concurrency,
                idempotent=True,
            ),
            fields=field_specs(),
            closed_prefixes=CLOSED,
            needs_before=needs_before(),
            nulls=frozenset(Nulls),
        )

    def begin(self, target: Target) -> None:
        """Look whether the mapping can be sent.

        :raises ConfigError: it can't.
        """
        layout = layout_of(target)
        on_delete = self._config.profiles.on_delete
        if on_delete.is_edit and not layout.channels:
            raise ConfigError(
                f"`on_delete: {on_delete}` is about the channels that the mapping names, and it names none",
                next_step="map a channel, or choose another `on_delete`",
            )

    def render(self, changes: pa.RecordBatch, target: Target) -> Text:
        """A record per change."""
        return rendered(changes, layout_of(target), self._template)

    def write(self, chunk: Chunk, token: bytes) -> WriteResult:
        """Send records, then the ids of users to delete."""
        until_s = self._service.deadline_s(chunk.timeout_s)
        rows = Rows(chunk)
        deletes = rows.of(Operation.DELETE)
        edits = rows.of(Operation.UPSERT)
        match self._config.profiles.on_delete:
            case OnDelete.REFUSE if len(deletes):
                raise ConfigError("the stream `profiles` takes no deletes", next_step="set `profiles.on_delete`, or use `mode: upsert`")
            case OnDelete.REMOVE_ADDRESSES | OnDelete.UNSET_CHANNELS:
                edits, deletes = np.sort(np.concatenate([edits, deletes])), deletes[:0]
            case OnDelete.IGNORE:
                deletes = deletes[:0]
            case _:
                pass
        if len(edits):
            self._edit(rows, edits, until_s=until_s)
        if len(deletes):
            self._delete(rows, deletes, until_s=until_s)
        return rows.result()

    def _edit(self, rows: Rows, places: Places, *, until_s: float) -> None:
        records = rows.picked(places)
        now = datetime.now(UTC)
        body = stamped(records, places, chunk_key=rows.chunk.key, now_ms=int(now.timestamp() * 1000))
        reply = self._service.send("POST", _BULK, body, until_s=until_s)
        doing = self._service.doing("POST")
        rows.note(places, verdicts_of(doing, reply, len(places), now=now, sent=lambda row: self._service.hidden(values_of(records, row))))

    # -- users to delete

    def _delete(self, rows: Rows, places: Places, *, until_s: float) -> None:
        """By one request, which is the official SDK's way and in no reference; where that is refused, by one per user, which is."""
        ids = rows.picked(places)
        now = datetime.now(UTC)
        reply = self._service.send("DELETE", _BULK_DELETE, ids_body(ids), until_s=until_s)
        if reply.status in _NOT_IN_BULK:
            self._delete_each(rows, places, until_s=until_s)
            return
        doing = self._service.doing("DELETE")
        rows.note(places, verdicts_of(doing, reply, len(places), now=now, sent=lambda row: self._service.hidden(values_of(ids, row))))

    def _delete_each(self, rows: Rows, places: Places, *, until_s: float) -> None:
        """User by user, as far as the time goes; the others are unknown and come again with the next run.

        :raises RetryableError: not even the first was deleted.
        """
        texts = rows.chunk.changes.column(rows.chunk.changes.schema.get_field_index(rows.chunk.target.key[0]))
        for number, place in enumerate(places):
            path = user_path(str(texts[int(place)].as_py()))
            try:
                reply = self._service.send("DELETE", path, until_s=until_s)
                if reply.status // 100 != 2 and reply.status != 404:
                    raise error_of(self._service.doing("DELETE"), reply, now=datetime.now(UTC))
            except RetryableError:
                if number == 0:
                    raise
                rows.doubt(places[number:])
                return
            except RowError as exc:
                rows.refuse(int(place), Refusal(code=exc.code, message=exc.message))
