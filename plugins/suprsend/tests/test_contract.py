"""The SuprSend sink keeps the contract of every connector, with each form of authentication and each way to delete that removes something."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from wsync_sdk import SinkCapabilities, Target
from wsync_sdk.testing import Refusal, SinkContract, SinkHarness
from wsync_sdk.testing.sink_modes import SinkModeRules
from wsync_suprsend.double import User
from wsync_suprsend.double.server import Server
from wsync_suprsend.sink import SuprSendSink

from .conftest import MakeSink, lose_reply

WRONG_SECRET = "opensezame-7041"
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
POISON = "of a kind that is refused"


def read_as(value: Any, kind: pa.DataType) -> Any:  # noqa: PLR0911 - a branch per type
    """A JSON value as a reader who knows the field's type takes it."""
    if value is None:
        return None
    if pa.types.is_decimal(kind):
        return Decimal(str(value))
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


class Always(list[Any]):
    """A script that never ends."""

    def pop(self, _: Any = 0) -> Any:
        return self[0]


class SuprSendHarness(SinkHarness):
    capabilities = SinkCapabilities(renders=True)
    unknown_stream = "profile"
    config: ClassVar[Mapping[str, Any]] = {"profiles": {"on_delete": "delete_user"}}
    wrong: ClassVar[Mapping[str, Any]] = {"workspace_secret": WRONG_SECRET}

    def __init__(self, server: Server, make_sink: MakeSink) -> None:
        self.server, self.make_sink = server, make_sink
        self.secrets = (server.workspace.secret, server.workspace.api_key, WRONG_SECRET)
        server.workspace.refuse = self.refuses

    @staticmethod
    def refuses(record: Mapping[str, Any]) -> str | None:
        names = [operation.get("$set", {}).get("name") for operation in record["$user_operations"]]
        return f"{POISON}, and {WRONG_SECRET}" if POISON in names else None

    def sink(self) -> SuprSendSink:
        return self.make_sink(**self.config)

    def target(self, schema: pa.Schema, key: tuple[str, ...]) -> Target | None:
        if len(key) > 1:
            return None
        self.server.workspace.users.clear()
        return Target(stream="profiles", key=key, schema=schema)

    def contents(self, target: Target) -> Sequence[Mapping[str, Any]]:
        kinds = {name: target.schema.field(name).type for name in target.schema.names if name not in target.key}
        return [
            {target.key[0]: int(distinct_id), **{name: read_as(user.properties.get(name), kind) for name, kind in kinds.items()}}
            for distinct_id, user in self.server.workspace.users.items()
        ]

    def wrong_login(self) -> SuprSendSink:
        return self.make_sink(**{**self.config, **self.wrong})

    def refusal(self) -> Refusal:
        target = self.target(SCHEMA, ("id",))
        assert target is not None
        return Refusal(target=target, good=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], bad={"id": 3, "name": POISON})

    @contextmanager
    def lose_reply(self) -> Iterator[None]:
        self.server.script = Always([lose_reply])
        try:
            yield
        finally:
            self.server.script = []


class BearerHarness(SuprSendHarness):
    config: ClassVar[Mapping[str, Any]] = {
        "profiles": {"on_delete": "delete_user"},
        "api_key": "SS.WSS.opensesame-7042",
        "workspace_uid": "acme_uid",
        "limits": {"max_rows": 7, "concurrency": 4},
    }
    wrong: ClassVar[Mapping[str, Any]] = {"api_key": WRONG_SECRET}


class OneByOneHarness(SuprSendHarness):
    """A workspace without the path that deletes many."""

    def __init__(self, server: Server, make_sink: MakeSink) -> None:
        super().__init__(server, make_sink)
        server.workspace.has_bulk_delete = False


class TestSuprSendSinkWithSignatures(SinkContract):
    @pytest.fixture
    def harness(self, server: Server, make_sink: MakeSink) -> SuprSendHarness:
        return SuprSendHarness(server, make_sink)


class TestSuprSendSinkWithApiKey(SinkContract):
    @pytest.fixture
    def harness(self, server: Server, make_sink: MakeSink) -> BearerHarness:
        return BearerHarness(server, make_sink)


class TestSuprSendSinkThatDeletesUserByUser(SinkContract):
    @pytest.fixture
    def harness(self, server: Server, make_sink: MakeSink) -> OneByOneHarness:
        return OneByOneHarness(server, make_sink)


class ListHarness(SuprSendHarness):
    """Lists, which are replaced by versions; every user is there."""

    def version_target(self) -> Target:
        workspace = self.server.workspace
        workspace.users.update({str(number): User() for number in range(10)})
        name = f"list-{len(workspace.lists)}"
        workspace.lists[name] = {"9"}
        return Target(stream=f"list:{name}", key=("id",), schema=pa.schema([("id", pa.int64())]))

    def contents(self, target: Target) -> Sequence[Mapping[str, Any]]:
        return [{"id": int(one)} for one in self.server.workspace.lists[target.stream.removeprefix("list:")]]


class TestSuprSendLists(SinkModeRules):
    @pytest.fixture
    def harness(self, server: Server, make_sink: MakeSink) -> ListHarness:
        return ListHarness(server, make_sink)
