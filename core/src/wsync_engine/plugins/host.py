"""The host: loads every installed plugin that may load, explains those it leaves out, and opens connections."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from wsync_engine.plugins.boundary import called, guarded
from wsync_engine.plugins.configuration import validated
from wsync_engine.plugins.discovery import Candidate, exclusion, find_candidates, misfit
from wsync_engine.plugins.loading import LoadFailed, Offer, load, survives_import
from wsync_sdk import AddressPolicy, ConfigError, Operation, Sink, SinkSpec, Source, SourceSpec, StreamSpec

__all__ = ["PluginHost", "PluginReport"]

OURS = frozenset({"wsync-postgres", "wsync-http", "wsync-suprsend", "wsync-snowflake", "wsync-bigquery", "wsync-redshift"})

_PUBLIC_ONLY = AddressPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginReport:
    """What became of one installed plugin; `reason` is empty where it is in use. `is_excluded`: by this installation's lists, which is no fault."""

    distribution: str
    version: str
    name: str
    sources: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()
    reason: str = ""
    next_step: str = ""
    is_excluded: bool = False

    @property
    def ok(self) -> bool:
        """True where the plugin can be used."""
        return not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offered:
    spec: Any
    candidate: Candidate


class PluginHost:
    """The sources and sinks that can be used, by name. Made by `load`."""

    def __init__(self, sources: Mapping[str, _Offered], sinks: Mapping[str, _Offered], reports: Sequence[PluginReport]) -> None:
        self._sources = dict(sources)
        self._sinks = dict(sinks)
        self.reports = tuple(reports)

    @classmethod
    def load(cls, *, allow: Sequence[str] = (), block: Sequence[str] = (), tried: Path | None = None) -> PluginHost:
        """Find and import plugins.

        :param allow: distributions that may load; empty: all. :param block: distributions that may not; wins.
        :param tried: file that remembers which third-party plugins survived their first import, which happens in a child process.
        """
        offers: list[Offer] = []
        reports: list[PluginReport] = []
        for candidate in find_candidates():
            if (excluded := exclusion(candidate, allow=allow, block=block)) is not None:
                reports.append(replace(_report(candidate, *excluded), is_excluded=True))
                continue
            if (unfit := misfit(candidate)) is not None:
                reports.append(_report(candidate, *unfit))
                continue
            try:
                _try_first(candidate, tried)
                offers.append(load(candidate))
            except LoadFailed as exc:
                reports.append(_report(candidate, str(exc), f"upgrade or remove {candidate.distribution}, or tell its author"))
        preferred: set[str] = {canonicalize_name(name) for name in allow}
        clashing = {
            kind: _clashes([(name, offer) for offer in offers for name in _names(offer, kind)], preferred) for kind in ("sources", "sinks")
        }
        kept = [offer for offer in offers if not _loses(offer, clashing)]
        reports += [
            _report(offer.candidate, f"another plugin offers a {_loses(offer, clashing)} too", "name the one to use in WSYNC_PLUGINS_ALLOW")
            for offer in offers
            if _loses(offer, clashing)
        ]
        reports += [_loaded(offer) for offer in kept]
        sources = {spec.name: _Offered(spec=spec, candidate=offer.candidate) for offer in kept for spec in offer.sources}
        sinks = {spec.name: _Offered(spec=spec, candidate=offer.candidate) for offer in kept for spec in offer.sinks}
        return cls(sources, sinks, sorted(reports, key=lambda report: (report.distribution, report.name)))

    def source_spec(self, plugin: str) -> SourceSpec:
        """The source of that name.

        :raises ConfigError: there is none; names those there are.
        """
        spec: SourceSpec = _named(self._sources, plugin, "source").spec
        return spec

    def sink_spec(self, plugin: str) -> SinkSpec:
        """The sink of that name; as `source_spec`."""
        spec: SinkSpec = _named(self._sinks, plugin, "sink").spec
        return spec

    def open_source(self, plugin: str, config: Mapping[str, Any], resolve: Callable[[str], str]) -> Source:
        """A source from its stored config.

        :param resolve: gives the value behind a secret reference; called at each use.
        :raises ConfigError: no such plugin, or the config is wrong.
        """
        offered = _named(self._sources, plugin, "source")
        source: Source = guarded(offered.spec.factory, validated(offered.spec.config_model, config, resolve), _label(offered), Source)  # type: ignore[type-abstract]
        return source

    def sink_operations(self, plugin: str, config: Mapping[str, Any], resolve: Callable[[str], str]) -> frozenset[Operation] | None:
        """What a sink with this config can do, told without connecting; None: only a connected sink knows. Raises as `open_source`."""
        offered = _named(self._sinks, plugin, "sink")
        if offered.spec.operations is None:
            return None
        model = validated(offered.spec.config_model, config, resolve)
        operations: frozenset[Operation] = called(offered.spec.operations, _label(offered), "operations", model)
        return operations

    def sink_stream(self, plugin: str, config: Mapping[str, Any], resolve: Callable[[str], str], name: str) -> StreamSpec | None:
        """What a stream of a sink with this config takes, told without connecting; None: only a connected sink knows.

        :raises ConfigError: as `open_source`; or there can't be such a stream.
        """
        offered = _named(self._sinks, plugin, "sink")
        if offered.spec.stream is None:
            return None
        model = validated(offered.spec.config_model, config, resolve)
        stream: StreamSpec | None = called(offered.spec.stream, _label(offered), "stream", model, name)
        return stream

    def open_sink(
        self, plugin: str, config: Mapping[str, Any], resolve: Callable[[str], str], *, network: AddressPolicy = _PUBLIC_ONLY
    ) -> Sink:
        """A sink from its stored config; as `open_source`.

        :param network: which addresses it may call.
        """
        offered = _named(self._sinks, plugin, "sink")
        sink: Sink = guarded(offered.spec.factory, validated(offered.spec.config_model, config, resolve), _label(offered), Sink)  # type: ignore[type-abstract]
        sink.network = network
        return sink


def _label(offered: _Offered) -> str:
    return f"{offered.candidate.distribution} {offered.candidate.version}"


def _named(offered: Mapping[str, _Offered], plugin: str, kind: str) -> _Offered:
    if plugin in offered:
        return offered[plugin]
    near = get_close_matches(plugin, offered, n=1)
    known = ", ".join(sorted(offered)) or "none"
    hint = f"did you mean `{near[0]}`?" if near else f"installed are: {known}; `wsync-engine plugins list` says why others are left out"
    raise ConfigError(f"there is no {kind} plugin `{plugin}`", next_step=hint)


def _names(offer: Offer, kind: str) -> list[str]:
    specs: tuple[Any, ...] = getattr(offer, kind)
    return [spec.name for spec in specs]


def _clashes(named: Sequence[tuple[str, Offer]], preferred: set[str]) -> dict[str, set[str]]:
    """Names that more than one plugin offers → the distributions that lose: all, or all but the one that the allow list names."""
    losers: dict[str, set[str]] = {}
    for name in {name for name, _ in named}:
        holders = [offer.candidate.distribution for other, offer in named if other == name]
        if len(holders) > 1:
            wanted = [holder for holder in holders if holder in preferred]
            losers[name] = set(holders) - (set(wanted) if len(wanted) == 1 else set())
    return losers


def _loses(offer: Offer, clashing: Mapping[str, Mapping[str, set[str]]]) -> str:
    for kind, losers in clashing.items():
        for name in _names(offer, kind):
            if offer.candidate.distribution in losers.get(name, ()):
                return f"{kind.removesuffix('s')} `{name}`"
    return ""


def _report(candidate: Candidate, reason: str, next_step: str) -> PluginReport:
    return PluginReport(
        distribution=candidate.distribution, version=candidate.version, name=candidate.entry_point.name, reason=reason, next_step=next_step
    )


def _loaded(offer: Offer) -> PluginReport:
    return PluginReport(
        distribution=offer.candidate.distribution,
        version=offer.candidate.version,
        name=offer.candidate.entry_point.name,
        sources=tuple(_names(offer, "sources")),
        sinks=tuple(_names(offer, "sinks")),
    )


def _try_first(candidate: Candidate, tried: Path | None) -> None:
    """The first import of a plugin that is neither ours nor known happens in a child process."""
    identity = f"{candidate.distribution}=={candidate.version}:{candidate.entry_point.value}"
    if candidate.distribution in OURS:
        return
    known = _known(tried)
    if identity in known:
        return
    reason = survives_import(candidate)
    if reason is not None:
        raise LoadFailed(reason)
    if tried is not None:
        tried.parent.mkdir(parents=True, exist_ok=True)
        tried.write_text(json.dumps(sorted({*known, identity})))


def _known(tried: Path | None) -> list[str]:
    if tried is None or not tried.is_file():
        return []
    try:
        known = json.loads(tried.read_text())
    except ValueError:
        return []
    return [str(identity) for identity in known] if isinstance(known, list) else []
