"""Build every distribution's wheel and try the wheels in a clean environment: `make wheels`.

Catches what an editable install hides: a file left out of the wheel, an entry point that does not load, a dependency that is not declared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DISTS = ("sdk", "core", "plugins/postgres", "plugins/http", "plugins/suprsend", "plugins/generated")


def build(into: Path) -> list[Path]:
    for dist in DISTS:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into), str(ROOT / dist)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted(into.glob("*.whl"))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wheels = build(Path(scratch) / "wheels")
        assert len(wheels) == len(DISTS), wheels
        venv.create(Path(scratch) / "venv", with_pip=True)
        python = Path(scratch) / "venv" / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, *map(str, wheels)], check=True)
        engine = str(python.with_name("wsync-engine"))
        subprocess.run([engine, "--version"], check=True, cwd=scratch)
        listed = subprocess.run([engine, "plugins", "list", "--json"], check=True, cwd=scratch, stdout=subprocess.PIPE, text=True)
        plugins = {line["distribution"]: line for line in map(json.loads, listed.stdout.splitlines())}
        assert plugins["wsync-postgres"]["ok"], plugins
        assert plugins["wsync-http"]["ok"], plugins
        assert plugins["wsync-suprsend"]["ok"], plugins
        assert plugins["wsync-generated"]["ok"], plugins
        # A plugin is listed without what its connections need: extras of the SDK are met here.
        subprocess.run([str(python), "-c", "import wsync_http.sink, wsync_suprsend.sink, wsync_suprsend.double"], check=True, cwd=scratch)


if __name__ == "__main__":
    main()
