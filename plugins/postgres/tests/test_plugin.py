"""What the engine sees before anything connects."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from wsync_postgres import plugin
from wsync_postgres.config import PostgresConfig
from wsync_sdk import Secret


def test_importing_the_plugin_imports_no_driver() -> None:
    program = (
        "import sys, wsync_postgres.plugin as plugin; plugin.wsync_sources(); plugin.wsync_sinks()\n"
        "print([name for name in sys.modules if name.startswith(('psycopg', 'adbc'))])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_only_one_module_imports_the_drivers() -> None:
    package = Path(plugin.__file__).parent

    importing = {
        path.name for path in package.glob("*.py") if re.search(r"^\s*(import|from) (psycopg|adbc)", path.read_text(), re.MULTILINE)
    }

    assert importing == {"driver.py"}


def test_the_factories_make_a_source_and_a_sink_without_connecting() -> None:
    config = PostgresConfig(url=Secret("postgresql://nobody@nowhere.invalid/x"))

    for spec in (*plugin.wsync_sources(), *plugin.wsync_sinks()):
        assert spec.name == "postgres"
        spec.factory(config).close()


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError):
        PostgresConfig.model_validate({"url": "postgresql://x", "sslmode": "require"})


def test_the_url_is_never_shown() -> None:
    config = PostgresConfig.model_validate({"url": "postgresql://app:wr0ngsecret@x/y"})

    assert "wr0ngsecret" not in f"{config!r} {config.model_dump()} {config.model_dump_json()}"
