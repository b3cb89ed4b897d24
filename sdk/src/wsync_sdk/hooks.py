"""How the engine finds a connector: pluggy hooks under the entry-point group `wsync_engine`.

    [project.entry-points.wsync_engine]
    postgres = "wsync_postgres.plugin"

The named module (or object) has the hooks below, marked with `hookimpl`. It must import fast and must not import a database driver: drivers are
imported when a connection opens. The distribution states the SDK it is written for, e.g. `Requires-Dist: wsync-sdk>=0.1,<0.2`; the engine reads that
before the import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy
from pydantic import BaseModel

from wsync_sdk.sink import Operation, Sink, SinkCapabilities, StreamSpec
from wsync_sdk.source import Source, SourceCapabilities

__all__ = ["ENTRY_POINT_GROUP", "SinkSpec", "SourceSpec", "hookimpl", "hookspec", "wsync_sinks", "wsync_sources"]

ENTRY_POINT_GROUP = "wsync_engine"

hookspec = pluggy.HookspecMarker(ENTRY_POINT_GROUP)
hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """A source that a plugin offers.

    :param name: what `plugin:` says in `wsync.yaml`: lower case letters, digits, `-`.
    :param title: for people. :param docs_url: where its page is.
    :param config_model: pydantic model of `config:`; secrets are fields of type `Secret`; forbids unknown keys.
    :param factory: makes the source from an instance of `config_model`; does not connect.
    """

    name: str
    title: str
    config_model: type[BaseModel]
    factory: Callable[[Any], Source]
    capabilities: SourceCapabilities
    docs_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    """A sink that a plugin offers; parameters as in SourceSpec.

    :param operations: what every stream of a sink with this config can do, told without connecting, so that `apply` can refuse a `mirror` sync whose sink
        can't delete. None: everything, or only a connected sink knows; the engine then asks `Sink.stream` before the run reads.
    :param stream: the stream of a name, told from the config without connecting or resolving a secret, so that `plan` and `apply` can hold a mapping against
        it; None, or a stream of None: only a connected sink knows. Raises ConfigError where there can't be such a stream.
    """

    name: str
    title: str
    config_model: type[BaseModel]
    factory: Callable[[Any], Sink]
    capabilities: SinkCapabilities
    docs_url: str = ""
    operations: Callable[[Any], frozenset[Operation]] | None = None
    stream: Callable[[Any, str], StreamSpec | None] | None = None


@hookspec
def wsync_sources() -> Sequence[SourceSpec]:  # type: ignore[empty-body]
    """The sources this plugin offers. Called once after import; must not do I/O."""


@hookspec
def wsync_sinks() -> Sequence[SinkSpec]:  # type: ignore[empty-body]
    """The sinks this plugin offers. Called once after import; must not do I/O."""
