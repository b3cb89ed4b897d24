"""What a connector's author gives the kit: how to reach the real thing, or a faithful double of it.

Each rule gets a harness of its own, from the pytest fixture `harness`. What a harness answers with None is left out, and shown as skipped.
"""

from __future__ import annotations

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from wsync_sdk.sink import Sink, SinkCapabilities, Target
from wsync_sdk.source import ParameterValue, Query, Source, SourceCapabilities

__all__ = ["Context", "Refusal", "SinkHarness", "SourceHarness", "Unrepresentable", "sink_from_plugin", "source_from_plugin"]


def source_from_plugin(module: str, name: str, config: Mapping[str, Any]) -> Source:
    """The source `name` of a plugin's module, from plain config; with `functools.partial` it is a factory that any process can call."""
    spec = next(spec for spec in importlib.import_module(module).wsync_sources() if spec.name == name)
    source: Source = spec.factory(spec.config_model.model_validate(dict(config)))
    return source


def sink_from_plugin(module: str, name: str, config: Mapping[str, Any]) -> Sink:
    """As `source_from_plugin`, for a sink."""
    spec = next(spec for spec in importlib.import_module(module).wsync_sinks() if spec.name == name)
    sink: Sink = spec.factory(spec.config_model.model_validate(dict(config)))
    return sink


@dataclass(slots=True, kw_only=True)
class Context:
    """A PlanContext that keeps what it was told."""

    tag: str = "tenant/sync/run"
    handles: list[bytes] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    on_started: Callable[[bytes], None] | None = None

    def started(self, handle: bytes) -> None:
        """Keep the handle, then do what the test wants to happen at this moment."""
        self.handles.append(handle)
        if self.on_started is not None:
            self.on_started(handle)

    def is_cancelled(self) -> bool:
        """Whether the test wants the run to end."""
        return self.cancelled.is_set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrepresentable:
    """A query of at least one row whose `column` holds a value without a faithful Arrow form, e.g. an infinite date."""

    query: Query
    column: str


class SourceHarness(ABC):
    """A warehouse to try a source on.

    :cvar capabilities: as in the source's SourceSpec.
    :cvar secrets: every secret text in the source's config; none may ever be shown.
    :cvar unsupported: columns of the sample of types that the warehouse has no type for; see `wsync_sdk.testing.SAMPLE_TYPES`.
    :cvar patience_s: how long a cancelled read may take to end.
    """

    capabilities: SourceCapabilities = SourceCapabilities()
    secrets: tuple[str, ...] = ()
    unsupported: frozenset[str] = frozenset()
    patience_s: float = 10.0

    @abstractmethod
    def factory(self) -> Callable[[], Source]:
        """A callable that makes the source and that can be pickled: another process calls it too. See `source_from_plugin`."""

    @abstractmethod
    def load(self, rows: pa.Table, *, split_by: str | None = None) -> Query:
        """Put the rows into a new table of the warehouse, and give a query (split by that column, if any) that reads it."""

    @abstractmethod
    def bad_sql(self) -> Query:
        """A query that the warehouse does not understand."""

    def source(self) -> Source:
        """A new instance; closed by who asked for it."""
        return self.factory()()

    def echo(self, parameters: Mapping[str, ParameterValue]) -> Query:
        """A query of one row with a column for each parameter, named like it and holding its value."""
        columns = ", ".join(f":{name} AS {name}" for name in parameters)
        return Query(sql=f"SELECT {columns}", parameters=parameters)

    def write_sql(self) -> Query | None:
        """A query that would write, if it were let."""
        return None

    def is_unchanged(self) -> bool:
        """Whether what `write_sql` would change is as it was."""
        return True

    def wrong_login(self) -> Source | None:
        """A source whose credential the warehouse refuses; its secrets are among `secrets`."""
        return None

    def slow(self) -> Query | None:
        """A query that takes some ten times `patience_s`, if nobody ends it."""
        return None

    def unrepresentable(self) -> Unrepresentable | None:
        """A value that Arrow can't hold, if the warehouse has such values."""
        return None

    def executions(self) -> int | None:
        """How many queries over loaded rows the warehouse has run so far, if it can tell; an estimate is none."""
        return None

    def held(self) -> int | None:
        """How many sessions, results and the like the warehouse holds for us now, if it can tell."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Rows for one target, in key order: `good` ones and, after them, one that the destination refuses for what it holds."""

    target: Target
    good: Sequence[Mapping[str, Any]]
    bad: Mapping[str, Any]


class SinkHarness(ABC):
    """A destination to try a sink on.

    :cvar capabilities: as in the sink's SinkSpec.
    :cvar secrets: every secret text in the sink's config; none may ever be shown.
    :cvar unsupported: columns of the sample of values that the destination can't hold; see `wsync_sdk.testing.SAMPLE_VALUES`.
    :cvar unknown_stream: a name that is no stream; None where any name is one.
    """

    capabilities: SinkCapabilities = SinkCapabilities()
    secrets: tuple[str, ...] = ()
    unsupported: frozenset[str] = frozenset()
    unknown_stream: str | None = None

    @abstractmethod
    def sink(self) -> Sink:
        """A new instance; closed by who asked for it."""

    @abstractmethod
    def target(self, schema: pa.Schema, key: tuple[str, ...]) -> Target | None:
        """A stream that is empty, or that `begin` makes; another one at each call. None: the destination has no such stream."""

    @abstractmethod
    def contents(self, target: Target) -> Sequence[Mapping[str, Any]]:
        """What the destination holds of this target now, by field name; asked past the sink. A missing name is NULL."""

    def version_target(self) -> Target | None:
        """A new stream with the one field `id`, its key, that can be replaced by versions, if there are such streams."""
        return self.target(pa.schema([("id", pa.int64())]), ("id",))

    def wrong_login(self) -> Sink | None:
        """A sink whose credential the destination refuses; its secrets are among `secrets`."""
        return None

    def refusal(self) -> Refusal | None:
        """A row that the destination refuses, if it refuses any; its target is an empty one, as of `target`."""
        return None

    def lose_reply(self) -> AbstractContextManager[None] | None:
        """While it is open, the destination applies writes and its replies are lost."""
        return None
