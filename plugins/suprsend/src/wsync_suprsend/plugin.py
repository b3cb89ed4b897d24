"""What this package offers to the engine. Imports no HTTP library: the factory does, and it runs when a connection is about to be used."""

from __future__ import annotations

from collections.abc import Sequence

from wsync_sdk import Sink, SinkCapabilities, SinkSpec, StreamSpec, hookimpl
from wsync_suprsend.config import SuprSendConfig

__all__ = ["wsync_sinks"]


def _sink(config: SuprSendConfig) -> Sink:
    from wsync_suprsend.sink import SuprSendSink  # noqa: PLC0415 - brings httpcore and arro3, which a listing of plugins does not need

    return SuprSendSink(config)


def _stream(config: SuprSendConfig, name: str) -> StreamSpec:
    from wsync_suprsend.sink import SuprSendSink  # noqa: PLC0415 - as above

    with SuprSendSink(config) as sink:
        return sink.stream(name)


@hookimpl
def wsync_sinks() -> Sequence[SinkSpec]:
    """The SuprSend sink. Its streams differ in what they can do: each is told by its name."""
    spec = SinkSpec(
        name="suprsend",
        title="SuprSend",
        config_model=SuprSendConfig,
        factory=_sink,
        capabilities=SinkCapabilities(transactional=False, renders=True),
        stream=_stream,
    )
    return (spec,)
