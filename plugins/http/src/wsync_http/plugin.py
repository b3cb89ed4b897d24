"""What this package offers to the engine. Imports no HTTP library: the factory does, and it runs when a connection is about to be used."""

from __future__ import annotations

from collections.abc import Sequence

from wsync_http.config import HttpConfig
from wsync_sdk import Operation, Sink, SinkCapabilities, SinkSpec, StreamSpec, hookimpl

__all__ = ["wsync_sinks"]


def _sink(config: HttpConfig) -> Sink:
    from wsync_http.sink import HttpSink  # noqa: PLC0415 - brings httpcore and arro3, which a listing of plugins does not need

    return HttpSink(config)


def _operations(config: HttpConfig) -> frozenset[Operation]:
    return config.operations


def _stream(config: HttpConfig, name: str) -> StreamSpec:
    from wsync_http.sink import HttpSink  # noqa: PLC0415 - as above

    with HttpSink(config) as sink:
        return sink.stream(name)


@hookimpl
def wsync_sinks() -> Sequence[SinkSpec]:
    """The HTTP sink."""
    spec = SinkSpec(
        name="http",
        title="HTTP endpoint",
        config_model=HttpConfig,
        factory=_sink,
        capabilities=SinkCapabilities(transactional=False, renders=True),
        operations=_operations,
        stream=_stream,
    )
    return (spec,)
