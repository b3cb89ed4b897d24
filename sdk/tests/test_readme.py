"""The README's tutorial is true: its connector passes its test module, as an author would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from wsync_sdk.testing import SinkContract, rules_of

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```(?:python|toml)\n# (?P<name>\w+\.\w+)\n(?P<code>.*?)```", re.DOTALL)


def write_out(folder: Path) -> None:
    """Every file that the tutorial shows."""
    for block in BLOCK.finditer(README.read_text(encoding="utf-8")):
        (folder / block["name"]).write_text(block["code"], encoding="utf-8")


def test_the_tutorials_connector_passes_its_test_module(tmp_path: Path) -> None:
    write_out(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    assert sum(counts.values()) == len(rules_of(SinkContract))
    assert counts["passed"] > counts["skipped"]
