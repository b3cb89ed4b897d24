"""What the log shows, and what it never shows."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import structlog
from wsync_engine.telemetry import log_to_stderr
from wsync_engine.worker import child
log_to_stderr()
def connect():
    password = "hunter" + "2"
    raise KeyError("it broke")
try:
    connect()
except KeyError:
    structlog.get_logger().exception("run.failed", run="4711")
"""


def test_a_traceback_in_the_log_shows_no_local_variable() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert "run.failed" in done.stderr
    assert "it broke" in done.stderr
    assert "hunter2" not in done.stderr
