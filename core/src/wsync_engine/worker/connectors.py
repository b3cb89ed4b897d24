"""Opening a run's source and sink through the plugin host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from wsync_engine.worker.messages import Assignment, ConnectionPart
from wsync_sdk import AddressPolicy, ConfigError

if TYPE_CHECKING:  # a supervisor hands an opener to its children and opens nothing: it needs neither plugins nor Arrow
    from wsync_engine.plugins import PluginHost
    from wsync_sdk import Sink, Source

__all__ = ["InstalledPlugins", "Opener"]

Opener = Callable[[Assignment], "tuple[Source, Sink]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPlugins:
    """Opens connectors of installed plugins; the host is loaded once per child.

    :param allow: distributions that may load; empty: all. :param block: distributions that may not. :param network: which addresses sinks may call.
    """

    allow: Sequence[str] = ()
    block: Sequence[str] = ()
    tried: Path | None = None
    network: AddressPolicy = AddressPolicy()

    def __call__(self, assignment: Assignment) -> tuple[Source, Sink]:
        """The run's source and sink.

        :raises ConfigError: a plugin is not there, a config is wrong, or a secret is missing.
        """
        host = _host(tuple(self.allow), tuple(self.block), self.tried)
        source = host.open_source(assignment.source.plugin, assignment.source.config, partial(_secret, assignment.source))
        sink = host.open_sink(assignment.sink.plugin, assignment.sink.config, partial(_secret, assignment.sink), network=self.network)
        return source, sink


@cache
def _host(allow: tuple[str, ...], block: tuple[str, ...], tried: Path | None) -> PluginHost:
    from wsync_engine.plugins import PluginHost  # noqa: PLC0415

    return PluginHost.load(allow=allow, block=block, tried=tried)


def _secret(part: ConnectionPart, reference: str) -> str:
    if reference not in part.secret_by_reference:
        raise ConfigError(f"`{reference}`: the worker can't resolve it", next_step="set the variable or the file where the worker runs")
    return part.secret_by_reference[reference]
