"""The state of one workspace and what each request does to it, without a network. Any thread."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

__all__ = ["Answer", "User", "Workspace"]

CHANNELS = frozenset(["$email", "$sms", "$whatsapp", "$inbox", "$androidpush", "$iospush", "$webpush", "$slack", "$ms_teams"])
RESERVED = frozenset({"$timezone", "$locale", "$preferred_language"})
OPERATIONS = frozenset({"$set", "$set_once", "$unset", "$remove", "$append", "$add"})
MOST_RECORDS, MOST_RECORD_BYTES, MOST_BODY_BYTES, MOST_IDS = 400, 10_240, 819_200, 10_000
CLOCK_SKEW = timedelta(minutes=15)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Refused(Exception):
    """A request that is answered with an error; `args` are status, message and, where it is another than the status, the body's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status and body; what is not text is sent as JSON."""

    status: int
    body: Any = ""


@dataclass(slots=True, kw_only=True)
class User:
    """One user's properties and channel addresses."""

    properties: dict[str, Any] = field(default_factory=dict)
    channels: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Workspace:
    """A workspace with both kinds of credential.

    :param refuse: why a user record is refused, if it is: for what no document rules out.
    :ivar drafts: by list and version. :ivar records: every user record that was taken, in order, as it came. :ivar clashes: users that were in two requests at once.
    """

    key: str = "acme-live"
    secret: str = "opensesame-7041"
    api_key: str = "SS.WSS.opensesame-7042"
    uid: str = "acme_uid"
    refuse: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    users: dict[str, User] = field(default_factory=dict)
    lists: dict[str, set[str]] = field(default_factory=dict)
    drafts: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    query_lists: set[str] = field(default_factory=set)
    records: list[dict[str, Any]] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)
    has_bulk_delete: bool = True
    lock: threading.RLock = field(default_factory=threading.RLock)
    in_flight: set[str] = field(default_factory=set)

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What a request does. Header names are lower case."""
        try:
            self._authenticate(method, target, headers, body)
            if len(body) > MOST_BODY_BYTES:
                raise Refused(413, "the body is too large")
            document = _document(headers, body) if body else None
            with self.lock:
                return self._route(method, urlsplit(target), document)
        except Refused as exc:
            status, message, *code = exc.args
            return Answer(
                status=status, body={"code": code[0] if code else status, "error_code": "invalid", "type": "error", "message": message}
            )

    @contextmanager
    def holding(self, body: bytes) -> Iterator[None]:
        """While a request is under way its users are in flight; the same user twice is noted."""
        ids = _ids_in(body)
        with self.lock:
            self.clashes += sorted(ids & self.in_flight)
            self.in_flight |= ids
        try:
            yield
        finally:
            with self.lock:
                self.in_flight -= ids

    # -- who asks

    def _authenticate(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        given = headers.get("authorization", "")
        if given == f"Bearer {self.api_key}":
            return
        date = headers.get("date", "")
        try:
            age = abs(datetime.now(UTC) - parsedate_to_datetime(date))
        except (ValueError, TypeError):
            raise Refused(401, "no valid date") from None
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest() if body else ""
        words = "\n".join((method, digest, headers.get("content-type", ""), date, target))
        signature = base64.b64encode(hmac.new(self.secret.encode(), words.encode(), hashlib.sha256).digest()).decode()
        if age > CLOCK_SKEW or not hmac.compare_digest(given.encode(), f"{self.key}:{signature}".encode()):
            raise Refused(401, "wrong key, secret, signature or clock")

    # -- what is asked

    def _route(self, method: str, target: Any, document: Any) -> Answer:  # noqa: PLR0911 - a line per path
        match method, [unquote(part) for part in target.path.strip("/").split("/")]:
            case "POST", ["event"]:
                return self._events(document)
            case "GET", ["v1", "user", distinct_id]:
                return Answer(status=200, body={"distinct_id": distinct_id, **self._user_document(distinct_id)})
            case "DELETE", ["v1", "user", distinct_id]:
                return Answer(status=204 if self._forget(distinct_id) else 404)
            case "DELETE", ["v1", "bulk", "user"] if self.has_bulk_delete:
                for distinct_id in _distinct_ids(document):
                    self._forget(distinct_id)
                return Answer(status=204)
            case "POST", ["v1", "subscriber_list"]:
                return Answer(status=201, body=self._list_document(_list_id(document.get("list_id")), is_made=True))
            case "GET", ["v1", "subscriber_list", name]:
                return Answer(status=200, body=self._list_document(_list_id(name)))
            case "GET", ["v1", "subscriber_list", name, "subscriber"]:
                return self._members(self._members_of(_list_id(name)), parse_qs(target.query))
            case "POST", ["v1", "subscriber_list", name, "subscriber", "add" | "remove" as what]:
                return self._edit_list(self._members_of(_list_id(name)), what, _distinct_ids(document))
            case method, ["v1", "subscriber_list", name, *rest] if rest and rest[0] in ("start_sync", "version"):
                return self._version(method, _list_id(name), rest, document)
            case _:
                raise Refused(404, "no such path")

    # -- users

    def _events(self, document: Any) -> Answer:
        records = document if isinstance(document, list) else [document]
        if not 1 <= len(records) <= MOST_RECORDS:
            raise Refused(400, "1 to 400 records")
        for record in records:
            self._check_record(record)
        for record in records:
            self.records.append(record)
            user = self.users.setdefault(record["distinct_id"], User())
            for operation in record["$user_operations"]:
                _apply(user, operation)
        return Answer(status=202, body="OK")

    def _check_record(self, record: Any) -> None:
        if (
            not isinstance(record, dict)
            or len(json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=float).encode()) > MOST_RECORD_BYTES
        ):
            raise Refused(400, "a record is no object, or larger than 10,240 bytes")
        known = {"$schema", "$insert_id", "$time", "env", "distinct_id", "$user_operations", "properties", "tenant_id"}
        if record.keys() - known or record.get("$schema") != "2" or record.get("env") not in (self.key, self.uid):
            raise Refused(400, "a record has a foreign key, or another schema or workspace")
        if not _UUID.fullmatch(str(record.get("$insert_id"))) or not isinstance(record.get("$time"), int):
            raise Refused(400, "a record without id or time")
        _check_id(record.get("distinct_id"))
        operations = record.get("$user_operations")
        if not isinstance(operations, list) or not operations:
            raise Refused(400, "a record without operations")
        for operation in operations:
            _check_operation(operation)
        if (reason := self.refuse(record)) is not None:
            raise Refused(400, reason)

    def _user_document(self, distinct_id: str) -> dict[str, Any]:
        user = self.users.get(distinct_id)
        if user is None:
            raise Refused(404, "no such user")
        addresses = {name: [{"value": value, "status": "active"} for value in values] for name, values in user.channels.items()}
        return {"properties": user.properties, **addresses}

    def _forget(self, distinct_id: str) -> bool:
        for members in self.lists.values():
            members.discard(distinct_id)
        return self.users.pop(distinct_id, None) is not None

    # -- lists

    def _members_of(self, name: str) -> set[str]:
        if name not in self.lists:
            raise Refused(404, "no such list")
        return self.lists[name]

    def _list_document(self, name: str, *, is_made: bool = False) -> dict[str, Any]:
        members = self.lists.setdefault(name, set()) if is_made else self._members_of(name)
        kind = "query_based" if name in self.query_lists else "static_list"
        return {
            "list_id": name,
            "list_type": kind,
            "is_readonly": name in self.query_lists,
            "subscribers_count": len(members),
            "drafts": self._drafts_document(name),
        }

    def _drafts_document(self, name: str) -> list[dict[str, Any]]:
        drafts = self.drafts.get(name, {})
        return [{"version_id": one, "status": "draft", "subscribers_count": len(members)} for one, members in drafts.items()]

    def _version(self, method: str, name: str, rest: list[str], document: Any) -> Answer:
        """Of a list that is replaced by a draft."""
        drafts = self.drafts.setdefault(name, {})
        if name not in self.lists or name in self.query_lists:
            raise Refused(400, "no such list, or one that is made by a query", 404)
        match method, rest:
            case "POST", ["start_sync"]:
                version_id = uuid4().hex
                drafts[version_id] = set()
                return Answer(status=201, body={"list_id": name, "version_id": version_id})
            case "POST", ["version", version_id, "subscriber", "add" | "remove" as what] if version_id in drafts:
                return self._edit_list(drafts[version_id], what, _distinct_ids(document))
            case "PATCH", ["version", version_id, "finish_sync"] if version_id in drafts:
                self.lists[name] = drafts.pop(version_id)
                return Answer(status=201, body={"list_id": name})
            case "DELETE", ["version", version_id] if drafts.pop(version_id, None) is not None:
                return Answer(status=204)
            case "PATCH", ["version", version_id, "delete"] if drafts.pop(version_id, None) is not None:
                return Answer(status=204)
        raise Refused(400, "no such version", 404)

    def _members(self, members: set[str], query: Mapping[str, list[str]]) -> Answer:
        limit, after = int(query.get("limit", ["20"])[0]), query.get("after", [""])[0]
        ids = sorted(one for one in members if one > after)
        meta = {"has_next": len(ids) > limit, "after": ids[limit - 1] if len(ids) > limit else None}
        return Answer(status=200, body={"meta": meta, "results": [{"distinct_id": one} for one in ids[:limit]]})

    def _edit_list(self, members: set[str], what: str, ids: list[str]) -> Answer:
        if what == "add":
            affected = {one for one in ids if one in self.users and one not in members}
            members |= affected
        else:
            affected = members & set(ids)
            members -= affected
        return Answer(status=201, body={"success": True, "affected_count": len(affected)})


# -- documents


def _document(headers: Mapping[str, str], body: bytes) -> Any:
    if headers.get("content-type", "").lower() != "application/json; charset=utf-8":
        raise Refused(415, "no JSON")
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant, parse_float=Decimal)  # all digits are kept
        json.dumps(document, ensure_ascii=False, default=str).encode()  # half of a surrogate pair can't be encoded
    except ValueError:
        raise Refused(400, "no JSON") from None
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _ids_in(body: bytes) -> set[str]:
    try:
        document = json.loads(body)
    except ValueError:
        return set()
    if isinstance(document, dict) and "distinct_ids" in document:
        return set(document["distinct_ids"])
    return {record["distinct_id"] for record in document} if isinstance(document, list) else set()


def _check_id(value: Any) -> str:
    if not isinstance(value, str) or not value or value != value.strip():
        raise Refused(400, "a distinct_id that is no text, empty, or has blanks around it")
    return value


def _distinct_ids(document: Any) -> list[str]:
    ids = document.get("distinct_ids") if isinstance(document, dict) else None
    if not isinstance(ids, list) or not 1 <= len(ids) <= MOST_IDS:
        raise Refused(400, "1 to 10,000 distinct_ids")
    return [_check_id(one) for one in ids]


def _list_id(name: Any) -> str:
    folded = str(name).lower()
    if not re.fullmatch(r"[a-z0-9_-]{1,64}", folded):
        raise Refused(400, "no list id")
    return folded


def _check_operation(operation: Any) -> None:
    if not isinstance(operation, dict) or not operation or operation.keys() - OPERATIONS:
        raise Refused(400, "no operation")
    for kind, values in operation.items():
        names = values if kind == "$unset" else values.keys()
        if not names or any(name.startswith("$") and name not in CHANNELS | RESERVED for name in names):
            raise Refused(400, "an operation on nothing, or on a key that is reserved")
        if kind in ("$set", "$set_once", "$add") and CHANNELS & set(names):
            raise Refused(400, "a channel is appended to, not set")
        if kind != "$unset" and any(value is None for value in values.values()):
            raise Refused(400, "what a null does is not documented")


def _apply(user: User, operation: Mapping[str, Any]) -> None:
    for kind, values in operation.items():
        if kind == "$unset":
            for name in values:
                (user.channels if name in CHANNELS else user.properties).pop(name, None)
            continue
        for name, value in values.items():
            if name in CHANNELS:
                _apply_address(user.channels, kind, name, value)
            else:
                _apply_property(user.properties, kind, name, value)


def _apply_address(channels: dict[str, list[Any]], kind: str, name: str, value: Any) -> None:
    others = [one for one in channels.pop(name, []) if one != value]
    if kind == "$append" or others:
        channels[name] = [*others, value] if kind == "$append" else others


def _apply_property(properties: dict[str, Any], kind: str, name: str, value: Any) -> None:
    match kind:
        case "$set":
            properties[name] = value
        case "$set_once":
            properties.setdefault(name, value)
        case "$append":
            properties.setdefault(name, []).append(value)
        case "$add":
            properties[name] = properties.get(name, 0) + value
        case _:
            properties[name] = [one for one in properties.get(name, []) if one != value]
