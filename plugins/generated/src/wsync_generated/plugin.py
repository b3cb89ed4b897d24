"""What this package offers to the engine."""

from __future__ import annotations

from collections.abc import Sequence

from wsync_generated.config import CountingConfig, GeneratedConfig
from wsync_sdk import Operation, Sink, SinkCapabilities, SinkSpec, Source, SourceCapabilities, SourceSpec, hookimpl

__all__ = ["wsync_sinks", "wsync_sources"]


def _source(config: GeneratedConfig) -> Source:
    from wsync_generated.source import GeneratedSource  # noqa: PLC0415 - a listing of plugins needs no NumPy

    return GeneratedSource(config)


def _sink(config: CountingConfig) -> Sink:
    from wsync_generated.sink import CountingSink  # noqa: PLC0415

    return CountingSink(config)


def _operations(_: CountingConfig) -> frozenset[Operation]:
    return frozenset(Operation)


@hookimpl
def wsync_sources() -> Sequence[SourceSpec]:
    """The source of made-up rows."""
    capabilities = SourceCapabilities(parallel=True, resumable=True, cancels=False, estimates=True, read_only=True)
    return (SourceSpec(name="generated", title="Made-up rows", config_model=GeneratedConfig, factory=_source, capabilities=capabilities),)


@hookimpl
def wsync_sinks() -> Sequence[SinkSpec]:
    """The sink that counts."""
    return (
        SinkSpec(
            name="counting",
            title="Counts what it is sent",
            config_model=CountingConfig,
            factory=_sink,
            capabilities=SinkCapabilities(transactional=False, renders=False),
            operations=_operations,
        ),
    )
