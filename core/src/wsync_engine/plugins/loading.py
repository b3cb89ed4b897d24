"""Import one plugin and ask it what it offers; whatever goes wrong becomes one reason, and no other plugin notices."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy
from pydantic import BaseModel

from wsync_engine.plugins.discovery import Candidate
from wsync_sdk import SinkSpec, SourceSpec
from wsync_sdk import hooks as sdk_hooks
from wsync_sdk.hooks import ENTRY_POINT_GROUP

__all__ = ["LoadFailed", "Offer", "load", "survives_import"]

TRIAL_TIMEOUT_S = 30.0
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


class LoadFailed(Exception):
    """A plugin can't be used; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one plugin offers."""

    candidate: Candidate
    sources: tuple[SourceSpec, ...]
    sinks: tuple[SinkSpec, ...]


def survives_import(candidate: Candidate) -> str | None:
    """Import a plugin in a child process; the reason it can't be, or None. A segfault, an exit or a hang there is only a report here."""
    module = candidate.entry_point.value.partition(":")[0]
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; import importlib; importlib.import_module({module!r})"],
            capture_output=True,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its import did not end within {TRIAL_TIMEOUT_S:g} s"
    if done.returncode < 0:
        return f"its import ended the process with signal {-done.returncode}"
    if done.returncode > 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        return f"its import failed: {last[-1][:200] if last else f'exit code {done.returncode}'}"
    return None


def load(candidate: Candidate) -> Offer:
    """Import the plugin into this process and ask its hooks.

    :raises LoadFailed: it can't be imported, a hook raises, or what a hook gives breaks the contract.
    """
    try:
        module = candidate.entry_point.load()
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        raise LoadFailed(f"its import failed: {type(exc).__name__}: {str(exc)[:200]}") from exc
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(sdk_hooks)
    try:
        manager.register(module)
        manager.check_pending()
    except Exception as exc:
        raise LoadFailed(f"its hooks are not those of the SDK: {str(exc)[:200]}") from exc
    sources = _asked(manager.hook.wsync_sources, SourceSpec)
    sinks = _asked(manager.hook.wsync_sinks, SinkSpec)
    if not sources and not sinks:
        raise LoadFailed("it offers neither a source nor a sink")
    return Offer(candidate=candidate, sources=sources, sinks=sinks)


def _asked(hook: Callable[[], list[Any]], kind: type[Any]) -> tuple[Any, ...]:
    name = getattr(hook, "name", "hook")
    try:
        answers = hook()
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        raise LoadFailed(f"`{name}` raised {type(exc).__name__}: {str(exc)[:200]}") from exc
    found: list[Any] = []
    for answer in answers:
        if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
            raise LoadFailed(f"`{name}` gave a {type(answer).__name__} instead of a sequence of {kind.__name__}")
        found += answer
    for spec in found:
        _check_spec(spec, kind, name)
    return tuple(found)


def _check_spec(spec: Any, kind: type[Any], hook: str) -> None:
    if not isinstance(spec, kind):
        raise LoadFailed(f"`{hook}` gave a {type(spec).__name__} instead of a {kind.__name__}")
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        raise LoadFailed(f"`{hook}`: the name {spec.name!r} is not lower case letters, digits and `-`")
    if not isinstance(spec.config_model, type) or not issubclass(spec.config_model, BaseModel):
        raise LoadFailed(f"`{hook}`: `{spec.name}` has no pydantic model as config_model")
