"""How fast, and in how much memory and disk, does a whole sync carry very many rows?

Usage: .venv/bin/python benchmarks/billion.py [--rows 10000000] [--slots 2] [--kill] [--urgent] [--folder DIR]

A sync from the `generated` source (three narrow columns) to the `counting` sink runs twice through a real scheduler and workers, with leases, tasks, acks
and folds: first all rows are sent, then the 1 % that a new revision changed. After each run the sink's count and the sum of its keys are compared with
what they must be. With --kill a worker, and all its children with it, dies by SIGKILL in the middle of the first run's delivery, and a second worker goes
on. With --urgent a small sync of high priority is run again and again meanwhile, beside a big one of low priority; on one slot, so that it needs the
big one's. The limit is what reading and counting alone would take: the same rows made up in as many processes as there are slots, and summed.

The last line is one JSON object: rows_per_s (of the first run), limit_per_s, ratio, peak_rss_mib (of the largest process of wsync), and of each run its
seconds and rows per second, the most that the folder held (disk_gib), how often a call was sent again (repeated), and how many seconds the urgent runs
took from their being made to their end (urgent_s: the median and the longest of them).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from wsync_generated import Total, total
from wsync_generated.source import made_up

ENGINE = [sys.executable, "-m", "wsync_engine.cli"]
FILE = """\
version: 1
tenant: benchmark
connections:
  numbers: {{plugin: generated, config: {{rows: {rows}, changed_percent: 1, revision: {revision}}}}}
  few: {{plugin: generated, config: {{rows: 100}}}}
  few_counter: {{plugin: counting, config: {{folder: "{folder}/few"}}}}
  counter: {{plugin: counting, config: {{folder: "{folder}/counted{revision}"}}}}
syncs:
  load:
    source: numbers
    query: SELECT id, score, tier FROM numbers
    key: id
    sink: counter
    stream: subscribers
    mode: mirror
  urgent:
    source: few
    query: SELECT id, score, tier FROM numbers
    key: id
    sink: few_counter
    stream: subscribers
    mode: upsert
"""
URGENT_PAUSE_S = 10.0
LIMIT_ROWS = 20_000_000
BATCH_ROWS = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--kill", action="store_true", help="kill a worker in the middle of the first run")
    parser.add_argument("--urgent", action="store_true", help="run a small, urgent sync beside, again and again")
    parser.add_argument("--folder", type=Path, help="where all of it lies; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(measure(arguments, Path(folder))))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    limit_per_s = limit(arguments.rows, arguments.slots)
    watch = Watch(folder)
    with installation(folder, arguments.slots, watch, is_urgent=arguments.urgent) as engine:
        first = engine.sync(arguments.rows, revision=0, is_killed=arguments.kill)
        sent = checked(folder / "counted0", rows=arguments.rows)
        second = engine.sync(arguments.rows, revision=1, is_killed=False)
        changed = total(folder / "counted1")
        assert changed.rows == second["counts"]["upserts"] > 0, (changed, second)
        assert second["counts"]["deletes"] == changed.deletes == 0, (changed, second)
        assert second["counts"]["unchanged"] + changed.rows == arguments.rows, second
    seconds = [seconds_of(first), seconds_of(second)]
    return {
        "rows": arguments.rows,
        "rows_per_s": round(arguments.rows / seconds[0]),
        "limit_per_s": round(limit_per_s),
        "ratio": round(arguments.rows / seconds[0] / limit_per_s, 3),
        "peak_rss_mib": round(watch.peak_rss_mib),
        "disk_gib": round(watch.peak_disk_bytes / 1024**3, 2),
        "first_s": round(seconds[0], 1),
        "second_s": round(seconds[1], 1),
        "second_rows_per_s": round(arguments.rows / seconds[1]),
        "changed": changed.rows,
        "repeated": sent.repeated,
        "crashes": first["crashes"],
        "urgent_s": [round(find(engine.urgent_s), 1) for find in (statistics.median, max)] if engine.urgent_s else None,
    }


def checked(folder: Path, *, rows: int) -> Total:
    """See that each row came, and no two under one key of a chunk."""
    found = total(folder)
    assert (found.rows, found.ids, found.deletes, found.differing) == (rows, rows * (rows - 1) // 2, 0, 0), found
    return found


def report_of(ended: subprocess.Popen[str]) -> dict[str, Any]:
    assert ended.stdout is not None
    report: dict[str, Any] = json.loads(ended.stdout.read().splitlines()[-1])
    return report


def seconds_of(report: dict[str, Any], *, since: str = "started_at") -> float:
    assert report["state"] == "succeeded", report
    started, finished = (datetime.fromisoformat(report[name]) for name in (since, "finished_at"))
    return (finished - started).total_seconds()


# -- the limit


def limit(rows: int, processes: int) -> float:
    """Rows per second that are made up and summed, and nothing else."""
    rows = min(rows, LIMIT_ROWS)
    bounds = [rows * number // processes for number in range(processes + 1)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(summed, [0] * processes, [1] * processes))  # started and imported
        began_s = time.monotonic()
        sums = pool.map(summed, bounds[:-1], bounds[1:])
        assert sum(sums) == rows * (rows - 1) // 2
        return rows / (time.monotonic() - began_s)


def summed(first: int, end: int) -> int:
    import pyarrow.compute as pc

    found = 0
    for start in range(first, end, BATCH_ROWS):
        batch = made_up(start, min(BATCH_ROWS, end - start), revision=0, changed_parts=0)
        found += pc.sum(batch.column("id")).as_py()
    return found


# -- the installation


@dataclass
class Watch:
    """The most memory of one process, and the most disk, that was seen."""

    folder: Path
    peak_rss_mib: float = 0.0
    peak_disk_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self, processes: list[psutil.Process]) -> None:
        names = {p.pid: p for process in processes for p in family(process)}
        for process in names.values():
            self.peak_rss_mib = max(self.peak_rss_mib, rss_mib(process.pid))
        self.peak_disk_bytes = max(self.peak_disk_bytes, used_bytes(self.folder))


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process of wsync and those below it; not the servers."""
    try:
        return [p for p in [process, *process.children(recursive=True)] if "python" in p.name()]
    except psutil.Error:
        return []


def rss_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0) / 1024


def used_bytes(folder: Path) -> int:
    found = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.stat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
    return found


class Engine:
    """An installation of its own: `up`, and a second worker where one is killed."""

    def __init__(self, folder: Path, slots: int, watch: Watch, *, is_urgent: bool) -> None:
        self.is_urgent = is_urgent
        self.urgent_s: list[float] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
        self.environment = {**clean, "WSYNC_DATA_DIR": str(folder / "data"), "WSYNC_KEEP_CHANGE_LOGS_DAYS": "0"}
        self.folder = folder
        self.slots = slots
        self.watch = watch
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("up", "--slots", str(slots))

    def start(self, *words: str) -> psutil.Process:
        with (self.folder / f"log{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen([*ENGINE, *words], env=self.environment, stdout=log, stderr=log)
        self.processes.append(process)
        return psutil.Process(process.pid)

    def sync(self, rows: int, *, revision: int, is_killed: bool) -> dict[str, Any]:
        """Apply this revision's file, and run its sync to the end."""
        file = self.folder / "wsync.yaml"
        file.write_text(FILE.format(rows=rows, folder=self.folder, revision=revision), encoding="utf-8")
        self.call("apply", str(file))
        waiting = self.run_sync("load", "low")
        urgent: subprocess.Popen[str] | None = None
        urgent_at_s = time.monotonic() + URGENT_PAUSE_S
        counted = self.folder / f"counted{revision}"
        while waiting.poll() is None:
            self.watch.look([psutil.Process(p.pid) for p in self.processes if p.poll() is None])
            if is_killed and total_rows(counted) >= rows // 2:
                self.kill_worker()
                is_killed = False
            if urgent is not None and urgent.poll() is not None:
                self.urgent_s.append(seconds_of(report_of(urgent), since="created_at"))
                urgent, urgent_at_s = None, time.monotonic() + URGENT_PAUSE_S
            if self.is_urgent and urgent is None and time.monotonic() >= urgent_at_s:
                urgent = self.run_sync("urgent", "high")
            time.sleep(1)
        report = report_of(waiting)
        print(f"revision {revision}: {report['state']}, {seconds_of(report):.1f} s, {report['counts']}", file=sys.stderr)
        return report

    def run_sync(self, name: str, priority: str) -> subprocess.Popen[str]:
        command = [*ENGINE, "sync", "run", name, "--tenant", "benchmark", "--priority", priority, "--wait", "--json"]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def kill_worker(self) -> None:
        """The worker below `up`; `up` ends then, and a scheduler and a worker of their own go on."""
        up = psutil.Process(self.processes[0].pid)
        worker = next(p for p in up.children() if "worker" in p.cmdline())
        worker.send_signal(signal.SIGKILL)
        self.processes[0].wait(60)
        print("the worker was killed", file=sys.stderr)
        self.start("up", "--slots", str(self.slots))

    def call(self, *words: str) -> str:
        return subprocess.run([*ENGINE, *words], env=self.environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.wait(90)


def total_rows(folder: Path) -> int:
    """About how many rows came so far: lines are of nearly one length."""
    return sum(sum(json.loads(line)["rows"] for line in path.read_text().split("\n")[:-1]) for path in folder.glob("*.jsonl"))


@contextmanager
def installation(folder: Path, slots: int, watch: Watch, *, is_urgent: bool) -> Iterator[Engine]:
    engine = Engine(folder, slots, watch, is_urgent=is_urgent)
    try:
        yield engine
    finally:
        engine.close()


if __name__ == "__main__":
    main()
