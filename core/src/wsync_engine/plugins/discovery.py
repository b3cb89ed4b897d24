"""Which plugins are installed, judged without importing them: by name, allow and block lists, and the SDK they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from wsync_sdk.hooks import ENTRY_POINT_GROUP

__all__ = ["Candidate", "exclusion", "find_candidates", "misfit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An entry point that says it is a plugin, and the distribution that ships it."""

    distribution: str
    version: str
    entry_point: EntryPoint
    requires: tuple[str, ...]


def find_candidates() -> list[Candidate]:
    """All entry points of the group, in the order of their distributions' names; a distribution that stands twice on the path counts once."""
    found: dict[tuple[str, str], Candidate] = {}
    for distribution in distributions():
        for entry_point in _entry_points(distribution):
            name = canonicalize_name(distribution.metadata["Name"] or "unnamed")
            candidate = Candidate(
                distribution=name,
                version=distribution.version or "0",
                entry_point=entry_point,
                requires=tuple(distribution.requires or ()),
            )
            found.setdefault((name, entry_point.name), candidate)
    return [found[key] for key in sorted(found)]


def _entry_points(distribution: Distribution) -> Iterable[EntryPoint]:
    return [point for point in distribution.entry_points if point.group == ENTRY_POINT_GROUP]


def exclusion(candidate: Candidate, *, allow: Sequence[str], block: Sequence[str]) -> tuple[str, str] | None:
    """Why the operator does not want a candidate, as (reason, next step); None: it may be imported."""
    if candidate.distribution in {canonicalize_name(name) for name in block}:
        return "blocked by this installation", "take it off WSYNC_PLUGINS_BLOCK to load it"
    if allow and candidate.distribution not in {canonicalize_name(name) for name in allow}:
        return "not on this installation's allow list", "add it to WSYNC_PLUGINS_ALLOW to load it"
    return None


def misfit(candidate: Candidate) -> tuple[str, str] | None:
    """Why a candidate can't be imported, as (reason, next step): it was made for another SDK; None: it can."""
    installed = version("wsync-sdk")
    try:
        wanted = [Requirement(text) for text in candidate.requires]
    except InvalidRequirement:
        return "its metadata lists a requirement that can't be read", "report it to the connector's author"
    for requirement in wanted:
        if canonicalize_name(requirement.name) == "wsync-sdk" and not requirement.specifier.contains(installed, prereleases=True):
            return (
                f"it asks for wsync-sdk{requirement.specifier}, installed is {installed}",
                f"install a version of {candidate.distribution} for wsync-sdk {installed}",
            )
    return None
