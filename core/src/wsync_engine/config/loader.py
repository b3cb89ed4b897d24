"""From the text of `wsync.yaml` to a declaration; all mistakes at once, each as `FILE:LINE: path: what; next: what to do`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path as File
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wsync_engine.config.document import Document, Path, Problem, read_document
from wsync_engine.config.schema import (
    ConnectionBlock,
    CursorBlock,
    DuplicatesBlock,
    FieldBlock,
    FileBlock,
    GuardsBlock,
    ScheduleBlock,
    SyncBlock,
)
from wsync_engine.model.declaration import ConnectionSpec, Declaration, ScheduleDeclaration, SyncDeclaration
from wsync_engine.model.refusal import Misplaced, refusal_words
from wsync_engine.plugins import PluginHost
from wsync_engine.scheduler.cron import parse_cron
from wsync_engine.scheduler.spec import check_params
from wsync_engine.scheduler.zones import zone_named
from wsync_engine.services.connections import check_config, declared_mistakes, roles_of
from wsync_sdk.errors import ConfigError

__all__ = ["load_declaration", "parse_declaration", "tenant_of"]


def load_declaration(file: File, host: PluginHost) -> Declaration:
    """Read and check a file.

    :raises ConfigError: it can't be read, or it has mistakes; the message lists all that were found.
    """
    return parse_declaration(_text(file), host, name=str(file))


def tenant_of(file: File) -> str | None:
    """The tenant that a file names, without checking the rest; None: there is no such file, or it names none."""
    if not file.is_file():
        return None
    value = read_document(_text(file)).value
    tenant = value.get("tenant") if isinstance(value, dict) else None
    return tenant if isinstance(tenant, str) else None


def parse_declaration(text: str, host: PluginHost, *, name: str = "wsync.yaml") -> Declaration:
    """As `load_declaration`; `name` is what messages call the file."""
    document = read_document(text)
    problems = list(document.problems)
    block: FileBlock | None = None
    if not problems and not isinstance(document.value, dict):
        what = "the file is empty" if document.value is None else "the file must hold keys with values"
        problems = [Problem(path=(), what=what, next_step="`wsync-engine init` writes an example")]
    if not problems:
        try:
            block = FileBlock.model_validate(document.value)
        except ValidationError as exc:
            problems = [_problem(error, document) for error in exc.errors(include_url=False)]
    if block is not None:
        problems = list(_checked(block.to_declaration(), host))
    if block is None or problems:
        raise _error(name, document, problems)
    return block.to_declaration()


def _text(file: File) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not a UTF-8 text", next_step="save it as UTF-8") from None
    except OSError as exc:
        reason = exc.strerror or "it can't be read"
        raise ConfigError(f"{file}: {reason}", next_step="name another file, or write one with `wsync-engine init`") from None


def _error(name: str, document: Document, problems: list[Problem]) -> ConfigError:
    placed = sorted(
        {(problem.line or document.line(problem.path), _place(problem), problem.what, problem.next_step) for problem in problems}
    )
    found = [Misplaced(f"{name}:{line}{place}", what, next_step=next_step) for line, place, what, next_step in placed]
    if len(found) == 1:
        return found[0]
    return Misplaced(name, f"{len(found)} mistakes", next_step=f"correct these {len(found)} mistakes", mistakes=found)


def _place(problem: Problem) -> str:
    return ": " + ".".join(str(part) for part in problem.path) if problem.path else ""


_CHILDREN: Mapping[type[BaseModel], Mapping[str, type[BaseModel]]] = {
    FileBlock: {"connections": ConnectionBlock, "syncs": SyncBlock},
    SyncBlock: {
        "mapping": FieldBlock,
        "duplicates": DuplicatesBlock,
        "guards": GuardsBlock,
        "schedule": ScheduleBlock,
        "cursor": CursorBlock,
    },
}
_NAMED = ("connections", "syncs", "mapping")
"""Keys whose entries are named by the user: the block is one step deeper."""


def _known_keys(path: Path) -> list[str]:
    """The keys that may stand beside the last part of a path."""
    block: type[BaseModel] = FileBlock
    is_name = False
    for part in path[:-1]:
        if is_name:
            is_name = False
            continue
        block = _CHILDREN.get(block, {}).get(str(part), block)
        is_name = part in _NAMED
    return list(block.model_fields)


def _problem(error: ErrorDetails, document: Document) -> Problem:
    path: Path = error["loc"]
    while path and error["type"] != "missing" and path not in document.lines:
        path = path[:-1]  # pydantic's own words for a branch it tried
    last = str(path[-1]) if path else ""
    if error["type"] == "extra_forbidden":
        near = get_close_matches(last, _known_keys(path), n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are: {', '.join(_known_keys(path))}"
        return Problem(path=path, what=f"`{last}` is not known", next_step=hint)
    if error["type"] == "misplaced":
        told = error["ctx"]
        return Problem(path=(*path, told["field"]), what=told["what"], next_step=told["next_step"])
    if error["type"] == "missing":
        return Problem(path=path, what=f"`{last}` is missing", next_step=f"add `{last}`")
    if error["type"] == "model_type" and last:
        step = f"write its settings below `{last}`, each on a line of its own: {', '.join(_known_keys((*path, '')))}"
        return Problem(path=path, what=f"`{last}` is a block of settings, not one value", next_step=step)
    if error["type"] == "string_pattern_mismatch":
        return Problem(path=path, what="not a name", next_step="use letters, digits, `_`, `-` and `.`, at most 80")
    return Problem(path=path, what=refusal_words(error["msg"]), next_step=f"correct `{last}`" if last else "correct the file")


def _checked(declaration: Declaration, host: PluginHost) -> Iterator[Problem]:
    """What no single block can know."""
    names = [connection.name for connection in declaration.connections]
    right: dict[str, ConnectionSpec] = {}
    for connection in declaration.connections:
        try:
            check_config(host, connection.plugin, connection.config, roles_of(declaration, connection.name))
            right[connection.name] = connection
        except ConfigError as exc:
            yield _of_connection(connection.name, connection.config, exc)
    for sync in declaration.syncs:
        yield from _checked_sync(sync, names)
        if sync.spec.sink in right:
            yield from _checked_stream(sync, right[sync.spec.sink], host)


def _of_connection(name: str, config: Mapping[str, Any], exc: ConfigError) -> Problem:
    """The message of a plugin's config begins with the field it is about."""
    field = exc.message.partition("`")[2].partition("`")[0]
    path: Path = ("connections", name, "plugin") if " plugin `" in exc.message else ("connections", name, "config")
    if path[-1] == "config" and field.split(".")[0] in config:
        path = (*path, *field.split("."))
    return Problem(path=path, what=exc.message, next_step=exc.next_step)


def _checked_sync(sync: SyncDeclaration, connections: list[str]) -> Iterator[Problem]:
    path: Path = ("syncs", sync.spec.name)
    for role, connection in (("source", sync.spec.source), ("sink", sync.spec.sink)):
        if connection not in connections:
            near = get_close_matches(connection, connections, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"declared are: {', '.join(connections) or 'none'}"
            yield Problem(path=(*path, role), what=f"there is no connection `{connection}`", next_step=hint)
    yield from _checked_fields(sync, path)
    if sync.schedule is not None:
        yield from _checked_schedule(sync, sync.schedule, (*path, "schedule"))


def _checked_stream(sync: SyncDeclaration, sink: ConnectionSpec, host: PluginHost) -> Iterator[Problem]:
    for mistake in declared_mistakes(host, sink.plugin, sink.config, sync.spec):
        yield Problem(path=("syncs", sync.spec.name, *mistake.path), what=mistake.what, next_step=mistake.next_step)


def _checked_fields(sync: SyncDeclaration, path: Path) -> Iterator[Problem]:
    targets = [entry.target for entry in sync.spec.mapping]
    for part in sync.spec.key if targets else ():
        if part not in targets:
            near = get_close_matches(part, targets, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"map it, or use one of: {', '.join(targets)}"
            yield Problem(path=(*path, "key"), what=f"`{part}` is not in the mapping", next_step=hint)
        elif "." in part:
            yield Problem(path=(*path, "key"), what=f"`{part}` is nested", next_step="use a field without a dot as key")
    by = sync.spec.duplicates.by
    if targets and by is not None and by not in targets:
        yield Problem(path=(*path, "duplicates", "by"), what=f"`{by}` is not in the mapping", next_step=f"use one of: {', '.join(targets)}")


def _checked_schedule(sync: SyncDeclaration, schedule: ScheduleDeclaration, path: Path) -> Iterator[Problem]:
    if schedule.cron is not None:
        yield from _checked_cron(schedule.cron, schedule.timezone, path)
    if schedule.start_at is not None and schedule.end_at is not None and schedule.end_at < schedule.start_at:
        yield Problem(path=(*path, "end"), what="`end` is before `start`", next_step="change `start` or `end`")
    for name, value in schedule.params.items():
        try:
            check_params(sync.spec.parameters, {name: value})
        except ConfigError as exc:
            yield Problem(path=(*path, "parameters", name), what=exc.message, next_step=exc.next_step)


def _checked_cron(cron: str, timezone: str, path: Path) -> Iterator[Problem]:
    try:
        parse_cron(cron)
    except ConfigError as exc:
        yield Problem(path=(*path, "cron"), what=exc.message, next_step=exc.next_step)
    try:
        zone_named(timezone)
    except ConfigError as exc:
        yield Problem(path=(*path, "timezone"), what=exc.message, next_step=exc.next_step)
