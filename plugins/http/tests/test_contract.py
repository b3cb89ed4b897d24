"""The HTTP sink keeps the contract of every connector: in bulk with results per row, and with one call per row."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import unquote

import pyarrow as pa
import pytest

from wsync_http.sink import HttpSink
from wsync_sdk import SinkCapabilities, Target
from wsync_sdk.testing import Refusal, SinkContract, SinkHarness

from .conftest import Hangup, Received, Server, answer

TOKEN, WRONG_TOKEN = "opensesame-7041", "opensezame-7041"
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
POISON = "of a kind that is refused"
MakeSink = Callable[..., HttpSink]


@dataclass
class Store:
    """A subscriber store behind HTTP. It knows each stream's key; records are kept as they came."""

    key_by_stream: dict[str, tuple[str, ...]] = field(default_factory=dict)
    records: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    is_losing: bool = False

    def behave(self, request: Received, connection: socket.socket) -> None:
        if request.headers.get("authorization") != TOKEN:
            answer(401)(request, connection)
            return
        reply = self.take(request)
        if self.is_losing:
            raise Hangup
        reply(request, connection)

    def take(self, request: Received) -> Any:
        raise NotImplementedError

    def put(self, stream: str, record: dict[str, Any]) -> bool:
        if record.get("name") == POISON:
            return False
        key = self.key_of(stream, record)
        self.records[stream][key] = {**self.records[stream].get(key, {}), **record}
        return True

    def key_of(self, stream: str, record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[name] for name in self.key_by_stream[stream])


class BulkStore(Store):
    """Takes an array of records with their operation; lists the refused ones by their place."""

    def take(self, request: Received) -> Any:
        if request.method == "GET":
            return answer()
        stream = request.target.rpartition("/")[2]
        errors = []
        for place, record in enumerate(json.loads(request.body, parse_float=Decimal)):
            if record.pop("op") == "delete":
                self.records[stream].pop(self.key_of(stream, record), None)
            elif not self.put(stream, record):
                errors.append({"row": place, "code": "poison", "text": "not taken"})
        return answer(200, {"errors": errors})


class SingleStore(Store):
    """PUT and DELETE of one record each."""

    def take(self, request: Received) -> Any:
        if request.method == "GET":
            return answer()
        _, stream, key = request.target.split("/")
        if request.method == "DELETE":
            return answer(204 if self.records[stream].pop((int(unquote(key)),), None) else 404)
        return answer(200 if self.put(stream, json.loads(request.body, parse_float=Decimal)) else 422)


def read_as(value: Any, kind: pa.DataType) -> Any:  # noqa: PLR0911 - a branch per type
    """A JSON value as a reader who knows the field's type takes it."""
    if value is None:
        return None
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(value)
    if pa.types.is_binary(kind):
        return base64.b64decode(value, validate=True)
    if pa.types.is_list(kind):
        return [read_as(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {child.name: read_as(value.get(child.name), child.type) for child in kind}
    return value


class HttpHarness(SinkHarness):
    capabilities = SinkCapabilities(renders=True)
    secrets = (TOKEN, WRONG_TOKEN)
    config: ClassVar[Mapping[str, Any]]
    new_store: Callable[[], Store]
    is_single = False

    def __init__(self, server: Server, make_sink: MakeSink) -> None:
        self.server, self.make_sink = server, make_sink
        self.store = type(self).new_store()
        server.then = self.store.behave

    def sink(self) -> HttpSink:
        return self._sink(TOKEN)

    def _sink(self, token: str) -> HttpSink:
        check = {"url": f"{self.server.url}/health"}
        config = {name: self._with_host(value) for name, value in self.config.items()}
        return self.make_sink(**config, secret_headers={"Authorization": token}, check=check)

    def _with_host(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._with_host(inner) for name, inner in value.items()}
        return f"{self.server.url}{value}" if isinstance(value, str) and value.startswith("/{") else value

    def target(self, schema: pa.Schema, key: tuple[str, ...]) -> Target | None:
        if self.is_single and len(key) > 1:
            return None
        name = f"stream{len(self.store.key_by_stream)}"
        self.store.key_by_stream[name], self.store.records[name] = key, {}
        return Target(stream=name, key=key, schema=schema)

    def contents(self, target: Target) -> Sequence[Mapping[str, Any]]:
        kinds = {name: target.schema.field(name).type for name in target.schema.names}
        return [{name: read_as(record.get(name), kinds[name]) for name in kinds} for record in self.store.records[target.stream].values()]

    def wrong_login(self) -> HttpSink:
        return self._sink(WRONG_TOKEN)

    def refusal(self) -> Refusal:
        target = self.target(SCHEMA, ("id",))
        assert target is not None
        return Refusal(target=target, good=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], bad={"id": 3, "name": POISON})

    @contextmanager
    def lose_reply(self) -> Iterator[None]:
        self.store.is_losing = True
        try:
            yield
        finally:
            self.store.is_losing = False


class BulkHarness(HttpHarness):
    new_store = BulkStore
    config: ClassVar = {
        "url": "/{stream}",
        "op_field": "op",
        "results": {"items": "/errors", "lists": "errors", "index": "/row", "code": "/code", "message": "/text"},
    }


class SingleHarness(HttpHarness):
    new_store = SingleStore
    is_single = True
    config: ClassVar = {
        "url": "/{stream}/{id}",
        "method": "PUT",
        "format": "object",
        "delete": {"url": "/{stream}/{id}", "success": ["2xx", 404]},
    }


class TestHttpSinkInBulk(SinkContract):
    @pytest.fixture
    def harness(self, server: Server, make_sink: MakeSink) -> BulkHarness:
        return BulkHarness(server, make_sink)


class TestHttpSinkRowByRow(SinkContract):
    @pytest.fixture
    def harness(self, server: Server, make_sink: MakeSink) -> SingleHarness:
        return SingleHarness(server, make_sink)
