"""The docs say what is so: generated pages are current, and the tutorial does what it shows."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from wsync_engine.embedded.account import ServerAccount
from wsync_engine.embedded.postgres import EmbeddedPostgres
from wsync_engine.state.database import check_schema, upgrade
from wsync_sdk import ConfigError
from wsync_sdk.testing.rules import wait_for

DOCS = Path(__file__).resolve().parents[2] / "docs"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "metrics.md", "settings.md", "wsync-yaml.md", "wsync.schema.json"])
def test_a_reference_page_is_what_the_program_says(name: str) -> None:
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == generator().PAGES[name](), "run `make docs`"


@pytest.mark.parametrize("page", sorted([*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md"), *DOCS.parent.glob("*/*/README.md")]), ids=str)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=str)
def test_every_test_that_a_promise_names_is_there(page: Path) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))

    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in (DOCS.parent / path).read_text(encoding="utf-8")] == []


# -- the tutorial


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A block of the tutorial: what kind, and its text."""

    kind: str
    text: str


def steps(page: str = "tutorial.md") -> list[Step]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Step(kind=kind, text=text) for kind, text in found]


IN_A_TERMINAL_OF_ITS_OWN = ("wsync-engine up", "python -m wsync_suprsend.double")


class Reader:
    """Somebody who types what the tutorial shows, in one shell."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
        path = f"{Path(sys.executable).parent}:{clean['PATH']}"
        self.environment = {**clean, "PATH": path, "WAREHOUSE_URL": url, "CRM_URL": url}
        self.running: list[subprocess.Popen[bytes]] = []

    def follow(self, step: Step) -> None:
        if step.kind == "sql":
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute(step.text.encode())
        elif step.kind == "yaml":
            (self.folder / "wsync.yaml").write_text(step.text, encoding="utf-8")
        elif step.kind == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", step.text, re.MULTILINE):
                self.type(command, output)

    def type(self, command: str, output: str) -> None:
        if command.startswith(IN_A_TERMINAL_OF_ITS_OWN):
            self.leave_running(command, output.split("…", maxsplit=1)[0].strip())
            return
        done = subprocess.run(
            ["bash", "-c", command + "\nset > .shell"], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assigned = re.search(r"^RUN=(.+)$", (self.folder / ".shell").read_text(), re.MULTILINE)
        self.environment |= {"RUN": assigned[1]} if assigned else {}
        seen = done.stdout + done.stderr
        pattern = ".*".join(re.escape(part) for part in re.split(r"…\n?", output.strip("\n")))
        assert re.search(pattern, seen, re.DOTALL), f"{command}\n{seen}\n{self.log()}"

    def leave_running(self, command: str, output: str) -> None:
        path = self.folder / f"terminal{len(self.running)}.log"
        with path.open("wb") as log:
            self.running.append(subprocess.Popen(command.split(), cwd=self.folder, env=self.environment, stdout=log, stderr=log))
        assert wait_for(lambda: output in path.read_text(), timeout_s=60), path.read_text()

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("terminal*.log")))

    def close(self) -> None:
        for process in self.running[::-1]:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture
def reader(tmp_path: Path, servers: Any, database: Any) -> Iterator[Reader]:
    made = Reader(tmp_path, database.owner_url)
    with psycopg.connect(servers.endpoints.admin_url.rsplit("/", 1)[0] + "/" + database.owner_url.rsplit("/", 1)[1]) as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO wsync_owner")
    yield made
    made.close()


def test_the_tutorial_does_what_it_shows(reader: Reader) -> None:
    for step in steps():
        reader.follow(step)


def test_the_page_of_incremental_reads_does_what_it_shows(reader: Reader) -> None:
    for step in steps("incremental.md"):
        reader.follow(step)


def test_the_page_of_what_can_be_done_afterwards_does_what_it_shows(reader: Reader) -> None:
    for step in steps("after-the-fact.md"):
        reader.follow(step)


@pytest.mark.parametrize("page", ["suprsend.md", "modes.md"])
def test_a_page_with_suprsends_double_does_what_it_shows(reader: Reader, page: str) -> None:
    reader.environment |= {
        "SUPRSEND_SECRET": "opensesame-7041",
        "SUPRSEND_API_KEY": "SS.WSS.opensesame-7042",
        "WSYNC_ALLOW_PRIVATE_ADDRESSES": "127.0.0.0/8",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    for step in steps(page):
        reader.follow(Step(kind=step.kind, text=step.text.replace("8765", port)))


# -- schedules from Python


def test_the_script_that_makes_a_schedule_runs_as_it_stands_and_twice_is_once(reader: Reader, database: Any, redis_url: str) -> None:
    page = (DOCS / "explanation" / "scheduling.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    reader.environment |= {
        "WSYNC_DATABASE_URL_OWNER": database.owner_url,
        "WSYNC_DATABASE_URL_ENGINE": database.engine_url,
        "WSYNC_DATABASE_URL_API": database.api_url,
        "WSYNC_REDIS_URL": redis_url,
    }
    reader.follow(next(step for step in steps() if step.kind == "yaml"))
    reader.type("wsync-engine apply", "applied")
    (reader.folder / "hourly.py").write_text(script, encoding="utf-8")

    for _ in range(2):
        reader.type("python hourly.py", "hourly: next at …:00 UTC")

    reader.type("wsync-engine schedules list", "hourly     customers  @hourly …")


# -- servers of one's own


def test_the_roles_of_own_servers_are_what_an_upgrade_needs(tmp_path: Path) -> None:
    page = (DOCS / "own-servers.md").read_text(encoding="utf-8")
    (statements,) = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    account = ServerAccount()
    server = EmbeddedPostgres(tmp_path / "postgres", account, superuser_password="secret", settings={"fsync": "off"})
    port, _ = server.ensure_running()
    try:
        with psycopg.connect(f"postgresql://postgres:secret@127.0.0.1:{port}/postgres", autocommit=True) as admin:
            with pytest.raises(ConfigError, match="the server has no role `wsync_owner`"):
                upgrade(f"postgresql://postgres:secret@127.0.0.1:{port}/postgres")
            for statement in statements.split(";\n"):
                admin.execute(statement.encode())

        upgrade(f"postgresql://wsync_owner:choose%20one@127.0.0.1:{port}/wsync")

        check_schema(f"postgresql://wsync_engine:choose%20another@127.0.0.1:{port}/wsync")
        check_schema(f"postgresql://wsync_api:and%20a%20third@127.0.0.1:{port}/wsync")
    finally:
        server.stop()
