"""Writes docs/reference/ from the program itself: `make docs`. A test compares, so that no page says what is no longer so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from wsync_engine.cli.boundary import Exit
from wsync_engine.cli.main import app
from wsync_engine.config.schema import FileBlock
from wsync_engine.model.durations import duration_text
from wsync_engine.settings import PREFIX, Settings
from wsync_engine.telemetry import metrics

FOLDER = Path(__file__).parent / "reference"
EXITS = {
    Exit.OK: "done; also a run that was skipped because another one of its sync is open",
    Exit.FAILED: "finished with failures: a run that failed, was cancelled or is partial, a connection or installation that is not right",
    Exit.USAGE: "usage or configuration: nothing was changed",
    Exit.CHANGES: "`plan --exit-code`: something would change",
    Exit.GUARD: "a guard stopped the run: it waits for `runs approve` or `runs discard`",
    Exit.UNREACHABLE: "a server can't be reached",
    Exit.INTERRUPTED: "interrupted",
}
BLOCKS = ("FileBlock", "ConnectionBlock", "SyncBlock", "CursorBlock", "FieldBlock", "DuplicatesBlock", "GuardsBlock", "ScheduleBlock")
PLACES = {
    "FileBlock": "The file",
    "ConnectionBlock": "`connections.NAME`",
    "SyncBlock": "`syncs.NAME`",
    "CursorBlock": "`syncs.NAME.cursor`",
    "FieldBlock": "`syncs.NAME.mapping.FIELD`",
    "DuplicatesBlock": "`syncs.NAME.duplicates`",
    "GuardsBlock": "`syncs.NAME.guards`",
    "ScheduleBlock": "`syncs.NAME.schedule`",
}


def command_line() -> str:
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="wsync-engine"), name="wsync-engine")
    hidden = ("* `--install-completion", "* `--show-completion", "* `--help`")
    lines = [line for line in page.splitlines() if not line.startswith(hidden)]
    text = (
        "\n".join([*lines, ""]).replace("**Options**:\n\n\n", "").replace("\n\n\n", "\n\n").replace("# `wsync-engine`", "# Command line", 1)
    )
    codes = "\n".join(f"| {int(code)} | {words} |" for code, words in EXITS.items())
    talk = "Data goes to standard output, talk to standard error. `--json` prints one JSON object a line. `NO_COLOR` is honoured."
    talk += (
        "\n\nWith `--json` an error is an object too, in one line, the last on standard error: `error` says what is wrong, `where` the file, line and path,"
        " or the option (`null` where it has no place), `next_step` what to do; `mistakes` lists each of several in a file in the same form."
        " The exit codes are the same."
    )
    return f"{text.rstrip()}\n\n## Exit codes\n\n{talk}\n\n| code | means |\n|---|---|\n{codes}\n"


def settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None or field.default == () else f"`{_plain(field.default)}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    head = "Environment variables, read once at the start of every process. An unknown name with this prefix is refused."
    return f"# Settings\n\n{head}\n\n| variable | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _plain(default: object) -> str:
    return ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)


def file_schema() -> str:
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **FileBlock.model_json_schema()}, indent=2) + "\n"


def file_page() -> str:
    schema = FileBlock.model_json_schema()
    blocks = {"FileBlock": schema, **schema["$defs"]}
    text = "# wsync.yaml\n\nAn editor checks the file by [wsync.schema.json](wsync.schema.json). A key that is not known is an error.\n"
    for name in BLOCKS:
        text += f"\n## {PLACES[name]}\n\n{blocks[name]['description']}\n\n| key | value | default | meaning |\n|---|---|---|---|\n"
        text += "".join(f"{row}\n" for row in _rows(blocks[name]))
    return text


def _rows(block: Mapping[str, Any]) -> Iterator[str]:
    for key, field in block["properties"].items():
        default = "" if field.get("default") in (None, {}) else f"`{json.dumps(field['default'])}`"
        if field.get("type") == "string" and isinstance(field.get("default"), int):
            default = f"`{duration_text(field['default'])}`"
        if isinstance(field.get("default"), dict) and field["default"]:
            default = "as below"
        required = "**required**" if key in block.get("required", ()) else default
        yield f"| `{key}` | {_words(field)} | {required} | {field.get('description', '').replace('|', '&#124;')} |"


def _words(field: Mapping[str, Any]) -> str:  # noqa: PLR0911 - a kind of value per line
    if "anyOf" in field:
        return " or ".join(words for option in field["anyOf"] if (words := _words(option)) != "null")
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return PLACES.get(name) or " or ".join(f"`{value}`" for value in FileBlock.model_json_schema()["$defs"][name]["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return "list of names"
    if field.get("type") == "object":
        return "names with values"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}.get(
        field.get("type", ""), "null"
    )


def metrics_page() -> str:
    text = (
        "# Metrics\n\n`wsync-engine scheduler --metrics HOST:PORT` and `wsync-engine worker --metrics HOST:PORT` answer `GET /metrics` for Prometheus."
        " Both show all names; what a process does not count stays 0, or has no line if it has labels. No label names a tenant, a sync or a run.\n"
    )
    text += "\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
    for metric in metrics.REGISTRY.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = ", ".join(f"[`{label}`](#{label})" for label in metrics.LABELS_OF[name])
        text += f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |\n"
    for label, values in metrics.LABELS.items():
        text += f"\n## `{label}`\n\n| value | meaning |\n|---|---|\n" + "".join(
            f"| `{value}` | {words} |\n" for value, words in values.items()
        )
    return text


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": command_line,
    "settings.md": settings,
    "metrics.md": metrics_page,
    "wsync-yaml.md": file_page,
    "wsync.schema.json": file_schema,
}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
