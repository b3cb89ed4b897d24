"""The README's first command, as a newcomer runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_demo_delivers_exactly_the_changes_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "wsync_engine.cli", "demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "first run: 100,000 rows read, 0 unchanged, 100,000 upserts and 0 deletes" in done.stderr
    assert "next run: 100,300 rows read, 98,800 unchanged, 1,500 upserts and 200 deletes" in done.stderr
    assert "first run into the HTTP endpoint: 100,000 rows read, 0 unchanged, 100,000 upserts and 0 deletes" in done.stderr
    assert "next run into the HTTP endpoint: 100,300 rows read, 98,800 unchanged, 1,500 upserts and 200 deletes" in done.stderr
    assert "the 100,300 subscribers in the store are what the query says" in done.stderr
    assert "the 100,300 subscribers that the endpoint was told of, in 102 calls, are the same" in done.stderr
    assert list(tmp_path.glob("wsync-demo-*")) == []
