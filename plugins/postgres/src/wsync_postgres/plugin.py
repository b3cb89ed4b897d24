"""What this package offers to the engine. Imports no driver: the factories do, and they run when a connection is about to be used."""

from __future__ import annotations

from collections.abc import Sequence

from wsync_postgres.config import PostgresConfig
from wsync_sdk import Sink, SinkCapabilities, SinkSpec, Source, SourceCapabilities, SourceSpec, hookimpl

__all__ = ["wsync_sinks", "wsync_sources"]

SOURCE_CAPABILITIES = SourceCapabilities(parallel=True, resumable=False, cancels=True, estimates=True, read_only=True)
SINK_CAPABILITIES = SinkCapabilities(transactional=True, renders=False)


def _source(config: PostgresConfig) -> Source:
    from wsync_postgres.source import PostgresSource  # noqa: PLC0415 - brings the driver, which a listing of plugins does not need

    return PostgresSource(config)


def _sink(config: PostgresConfig) -> Sink:
    from wsync_postgres.sink import PostgresSink  # noqa: PLC0415 - as above

    return PostgresSink(config)


@hookimpl
def wsync_sources() -> Sequence[SourceSpec]:
    """The Postgres source."""
    spec = SourceSpec(
        name="postgres",
        title="PostgreSQL",
        config_model=PostgresConfig,
        factory=_source,
        capabilities=SOURCE_CAPABILITIES,
    )
    return (spec,)


@hookimpl
def wsync_sinks() -> Sequence[SinkSpec]:
    """The Postgres sink."""
    spec = SinkSpec(
        name="postgres",
        title="PostgreSQL",
        config_model=PostgresConfig,
        factory=_sink,
        capabilities=SINK_CAPABILITIES,
    )
    return (spec,)
