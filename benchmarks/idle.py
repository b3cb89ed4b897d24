"""What does `wsync-engine up` cost at rest?

Usage: .venv/bin/python benchmarks/idle.py [--seconds 30]

Starts it in a data folder of its own, waits until its worker has shown itself, then watches all its processes without the embedded servers. The last
line is one JSON object: total_mib (proportional set sizes, so that what processes share counts once), limit_mib, ratio (limit by total),
peak_rss_mib (of the largest process) and cpu_percent (of one core, over the watched seconds).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

LIMIT_MIB = 300
MIB = 1024 * 1024
START_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
        environment["WSYNC_DATA_DIR"] = str(Path(folder) / "data")
        command = [sys.executable, "-m", "wsync_engine.cli", "up"]
        up = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            wait_for_worker(up)
            print(json.dumps(watch(psutil.Process(up.pid), seconds)))
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(60)


def wait_for_worker(up: subprocess.Popen[str]) -> None:
    assert up.stderr is not None
    started_s = time.monotonic()
    for line in up.stderr:
        if "worker.started" in line:
            return
        assert time.monotonic() < started_s + START_S, line
    raise SystemExit("`up` ended by itself")


def watch(up: psutil.Process, seconds: float) -> dict[str, float]:
    """Two looks, `seconds` apart; embedded servers detach from who starts them, so they are not among the children."""
    time.sleep(5)  # the children have imported what they need by then
    before_s = cpu_s(up)
    time.sleep(seconds)
    processes = [up, *up.children(recursive=True)]
    sizes = {process: process.memory_full_info() for process in processes}
    for process, size in sizes.items():
        print(f"{size.pss / MIB:6.1f} MiB  {' '.join(process.cmdline())[:100]}", file=sys.stderr)
    total_mib = sum(size.pss for size in sizes.values()) / MIB
    return {
        "processes": len(processes),
        "total_mib": round(total_mib, 1),
        "limit_mib": LIMIT_MIB,
        "ratio": round(LIMIT_MIB / total_mib, 2),
        "peak_rss_mib": round(max(size.rss for size in sizes.values()) / MIB),
        "cpu_percent": round(100 * (cpu_s(up) - before_s) / seconds, 2),
    }


def cpu_s(up: psutil.Process) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in [up, *up.children(recursive=True)])


if __name__ == "__main__":
    main()
