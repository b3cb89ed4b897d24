"""The SDK's tutorial to its end: a package of somebody else's, installed beside the engine, is found, listed and opened by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "sdk" / "README.md"


def test_the_tutorials_package_is_listed_and_its_sink_opens(tmp_path: Path) -> None:
    for name, code in re.findall(r"```(?:python|toml)\n# (\w+\.\w+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        (tmp_path / name).write_text(code, encoding="utf-8")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(tmp_path)], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": str(site), "WSYNC_DATA_DIR": str(tmp_path / "data")}

    listed = subprocess.run(
        [sys.executable, "-P", "-m", "wsync_engine.cli", "plugins", "list", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    opened = subprocess.run(
        [
            sys.executable,
            "-c",
            "from wsync_engine.plugins import PluginHost; print(PluginHost.load().open_sink('ledger', {'path': 'x'}, str).check().ok)",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    plugins = {row["distribution"]: row for row in map(json.loads, listed.stdout.splitlines())}
    assert (plugins["wsync-ledger"]["ok"], plugins["wsync-ledger"]["sinks"]) == (True, ["ledger"])
    assert opened.stdout.strip() == "False"
