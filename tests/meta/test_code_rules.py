"""What a review would say twice, said by a test: read from the syntax trees of every package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import wsync_sdk
from wsync_engine.cli.main import app
from wsync_sdk import WsyncError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("sdk", "core", "plugins/postgres", "plugins/http", "plugins/suprsend", "plugins/generated")
    for path in (ROOT / folder / "src").rglob("*.py")
    if "versions" not in path.parts
)
ERRORS = {
    name for name in wsync_sdk.__all__ if isinstance(getattr(wsync_sdk, name), type) and issubclass(getattr(wsync_sdk, name), WsyncError)
}
PORTED = [path for path in SOURCES if {"scheduler", "worker"} & set(path.parts) and "wsync_engine" in path.parts]
CLOCKS_AND_CHANCE = {"time", "random", "secrets"}
OF_OTHERS = {"datetime": {"now", "utcnow", "today"}, "date": {"today"}, "uuid": {"uuid1", "uuid4"}, "os": {"urandom"}}
PORTS = {"boot_time_s"}
"""The functions that are what a clock or chance is by default."""
LONGEST_FUNCTION = 50
LONGEST_MODULE = 600


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_says_why_it_exists_and_is_short(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "begin the module with what it is for"
    assert path.read_text(encoding="utf-8").count("\n") <= LONGEST_MODULE, "split the module"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    long = [node.name for node in functions(tree_of(path)) if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION]

    assert long == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_error_says_what_to_do_next(path: Path) -> None:
    silent = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
        if not any(keyword.arg in ("next_step", None) for keyword in node.keywords)
    ]

    assert silent == [], "lines that make an error without `next_step`"


def asks_for_time_or_chance(node: ast.AST) -> bool:
    """A call such as `time.sleep(1)`; `random.Random(seed)` is the same wherever it is asked."""
    if isinstance(node, ast.ImportFrom):
        return node.module in CLOCKS_AND_CHANCE
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)):
        return False
    module, name = node.func.value.id, node.func.attr
    if (module, name) == ("random", "Random"):
        return not node.args
    return module in CLOCKS_AND_CHANCE or name in OF_OTHERS.get(module, ())


@pytest.mark.parametrize("path", PORTED, ids=name_of)
def test_schedulers_and_workers_take_time_and_chance_from_their_ports(path: Path) -> None:
    tree = tree_of(path)
    in_ports = {node for function in functions(tree) if function.name in PORTS for node in ast.walk(function)}

    assert [node.lineno for node in ast.walk(tree) if asks_for_time_or_chance(node) and node not in in_ports] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_public_name_is_documented(path: Path) -> None:
    tree = tree_of(path)
    public = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")]

    assert [node.name for node in public if not ast.get_docstring(node)] == []


def commands_named(path: Path) -> set[str]:
    """Each `wsync-engine …` that a message tells a person to type, as far as it is words."""
    texts = [node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {match.strip() for text in texts for match in re.findall(r"`wsync-engine ([a-z]+(?: [a-z]+)?)", text)}


def test_every_command_that_a_message_names_is_there() -> None:
    root = typer.main.get_command(app)
    known = set(root.commands) | {
        f"{group} {name}" for group, command in root.commands.items() for name in getattr(command, "commands", {})
    }

    missing = {
        f"{name_of(path)}: {command}"
        for path in SOURCES
        for command in commands_named(path)
        if command not in known and (command.split()[0] not in known or hasattr(root.commands[command.split()[0]], "commands"))
    }

    assert missing == set()
