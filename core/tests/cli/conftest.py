from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from typer.testing import CliRunner

from wsync_engine.cli.main import app

TEXT = """\
version: 1
tenant: acme
connections:
  here: {plugin: postgres, config: {url: env:HERE_URL}}
syncs:
  customers:
    source: here
    query: SELECT id, email FROM public.customers
    key: id
    sink: here
    stream: public.people
    mode: mirror
    schedule: {cron: "0 0 1 1 *"}
"""
Run = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path, database: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wsync.yaml in the current folder, the installation's settings, and two tables."""
    for name in [name for name in os.environ if name.startswith("WSYNC_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSYNC_DATABASE_URL_OWNER", database.owner_url)
    monkeypatch.setenv("WSYNC_DATABASE_URL_ENGINE", database.engine_url)
    monkeypatch.setenv("WSYNC_DATABASE_URL_API", database.api_url)
    monkeypatch.setenv("WSYNC_REDIS_URL", redis_url)
    monkeypatch.setenv("WSYNC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WSYNC_PLUGINS_ALLOW", "wsync-postgres")
    monkeypatch.setenv("HERE_URL", database.owner_url)
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE IF NOT EXISTS public.customers (id bigint PRIMARY KEY, email text)")
        owner.execute("CREATE TABLE IF NOT EXISTS public.people (id bigint PRIMARY KEY, email text)")
        owner.execute("INSERT INTO public.customers SELECT n, 'user' || n || '@example.com' FROM generate_series(1, 10) n")
    path = tmp_path / "wsync.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Commands set up the log of their process; in a test it is everybody's."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def run() -> Run:
    """Call the command line in this process."""
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])
