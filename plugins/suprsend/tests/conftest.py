"""The double of SuprSend as server, sinks that may call it, and chunks as the engine makes them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

import pyarrow as pa
import pytest

from wsync_sdk import BEFORE, OP, AddressPolicy, Chunk, Fence, RowRange, RunRef, Target, before_type
from wsync_suprsend.config import SuprSendConfig
from wsync_suprsend.double import Answer, Call, Workspace, serving
from wsync_suprsend.double.server import Behaviour, Handler, Server
from wsync_suprsend.sink import SuprSendSink

LOOPBACK = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))
RUN = RunRef(tenant_id="acme", sync_id="people", run_id="run-1", delivery=1)
SCHEMA = pa.schema([("id", pa.string()), ("name", pa.string())])
MakeSink = Callable[..., SuprSendSink]


@pytest.fixture
def workspace() -> Workspace:
    return Workspace()


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Server]:
    with serving(workspace) as made:
        yield made


@pytest.fixture
def make_sink(server: Server) -> Iterator[MakeSink]:
    """Sinks that may call loopback, signing unless told otherwise; closed at the end."""
    opened: list[SuprSendSink] = []

    def make(*, network: AddressPolicy = LOOPBACK, **config: Any) -> SuprSendSink:
        signing = {"workspace_key": server.workspace.key, "workspace_secret": server.workspace.secret}
        credential = {} if "api_key" in config else signing
        sink = SuprSendSink(SuprSendConfig.model_validate({"base_url": server.url, **credential, **config}))
        sink.network = network
        opened.append(sink)
        return sink

    yield make
    for sink in opened:
        sink.close()


def batch_of(changes: Sequence[Mapping[str, Any]], schema: pa.Schema, before: pa.DataType | None = None) -> pa.RecordBatch:
    """Rows as changes, upserts unless `op` says otherwise; `before` is the type of the last column, if there is one."""
    fields = [pa.field(OP, pa.string(), nullable=False), *schema, *([pa.field(BEFORE, before)] if before is not None else [])]
    table = [
        {
            OP: row.get("op", "upsert"),
            **{name: row.get(name) for name in schema.names},
            **({BEFORE: row.get("before")} if before is not None else {}),
        }
        for row in changes
    ]
    return pa.RecordBatch.from_pylist(table, schema=pa.schema(fields))


def chunk_of(
    sink: SuprSendSink,
    changes: Sequence[Mapping[str, Any]],
    *,
    schema: pa.Schema = SCHEMA,
    stream: str = "profiles",
    key: str = "run-1.0.0-9",
    timeout_s: float = 5.0,
    before: Sequence[str] = (),
) -> Chunk:
    """Rows as a chunk, rendered by the sink; the key is the schema's first field."""
    target = Target(stream=stream, key=(schema.names[0],), schema=schema)
    sink.begin(RUN, target)
    batch = batch_of(changes, schema, before_type(before) if before else None)
    return Chunk(
        key=key,
        run=RUN,
        partition=0,
        range=RowRange(0, max(0, len(changes) - 1)),
        target=target,
        changes=batch,
        records=sink.render(batch, target),
        fence=Fence(sync_id="people", delivery=1, partition=0, epoch=1),
        timeout_s=timeout_s,
    )


def people(*ids: str) -> list[dict[str, Any]]:
    return [{"id": one, "name": f"name {one}"} for one in ids]


def gone(*ids: str) -> list[dict[str, Any]]:
    return [{"op": "delete", "id": one} for one in ids]


# -- how the server misbehaves


def answer(status: int, body: Any = "", **headers: str) -> Behaviour:
    """A whole answer, and nothing is applied."""
    return lambda handler, _: handler.reply(Answer(status=status, body=body), **headers)


def lose_reply(handler: Handler, call: Call) -> None:
    """Apply the request, and hang up."""
    handler.server.workspace.answer(call.method, call.target, call.headers, call.body)
    handler.close_connection = True


def raw(data: bytes, *, resets: bool = False) -> Behaviour:
    """Send some bytes, then hang up, by a reset if wanted."""

    def behave(handler: Handler, _: Call) -> None:
        handler.wfile.write(data)
        if resets:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            handler.connection.close()
        handler.close_connection = True

    return behave


def trickle(start: bytes, drop: bytes) -> Behaviour:
    """Send `start`, then `drop` again and again, until the other side is tired of it."""

    def behave(handler: Handler, _: Call) -> None:
        pause = threading.Event()
        handler.wfile.write(start)
        for _number in range(200):
            handler.wfile.write(drop)
            pause.wait(0.05)
        handler.close_connection = True

    return behave
