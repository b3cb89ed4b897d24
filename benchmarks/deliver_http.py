"""How near does a whole first run, Postgres → loopback HTTP endpoint, come to `psql COPY … (FORMAT binary)` of the same query?

Usage: .venv/bin/python benchmarks/deliver_http.py [--rows 1000000] [--rounds 5] [--batch 1000] [--latency MS] [--concurrency 4]

A real scheduler and worker execute one run a round, each of a sync of its own, so that every run is a first one: plan, extract, diff, deliver with
--batch rows a call, finish. COPY and run take turns, so both meet the same caches and the same noise. The endpoint is a process that reads each request
whole and says 200, with --latency so many milliseconds after its last byte; its CPU is part of the noise. The last line is one JSON object: rows_per_s, limit_per_s (both medians), ratio (median of
the rounds' ratios), ratio_range and peak_rss_mib (of the largest process of wsync).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
import psycopg
from extract import CREATE, QUERY, psql_copy, timed

ENGINE = [sys.executable, "-m", "wsync_engine.cli"]
SYNC = """\
  round{number}:
    source: warehouse
    query: {query}
    key: id
    sink: endpoint
    stream: subscribers
    mode: upsert
"""
FILE = """\
version: 1
tenant: benchmark
connections:
  warehouse: {{plugin: postgres, config: {{url: env:WAREHOUSE_URL}}}}
  endpoint: {{plugin: http, config: {{url: "http://127.0.0.1:{port}/{{stream}}", limits: {{max_rows: {batch}, max_bytes: 4000000, concurrency: {concurrency}}}}}}}
syncs:
{syncs}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--latency", type=float, default=0.0, metavar="MS", help="delay of each call in ms")
    parser.add_argument("--concurrency", type=int, default=4, help="most calls at once")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.latency / 1000))
        return
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    from wsync_engine.embedded.servers import EmbeddedServers

    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServers.start(Path(folder) / "data") as servers,
        endpoint(arguments.latency) as port,
    ):
        url = servers.endpoints.admin_url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(CREATE.format(rows=arguments.rows).encode())
            connection.execute("VACUUM ANALYZE subscriber")
        syncs = "".join(SYNC.format(number=number, query=QUERY) for number in range(arguments.rounds + 1))
        file = FILE.format(port=port, batch=arguments.batch, concurrency=arguments.concurrency, syncs=syncs)
        (Path(folder) / "wsync.yaml").write_text(file, encoding="utf-8")
        with up(Path(folder), url) as (environment, process):
            run(["apply", "wsync.yaml"], Path(folder), environment)
            rounds = [one_round(url, Path(folder), environment, arguments.rows, n) for n in range(arguments.rounds + 1)][
                1:
            ]  # the first warms up
            peak_mib = max(peak_rss_mib(one) for one in [process, *process.children(recursive=True)])
    ratios = [limit_s / ours_s for limit_s, ours_s in rounds]
    result = {
        "rows": arguments.rows,
        "batch_rows": arguments.batch,
        "latency_ms": arguments.latency,
        "concurrency": arguments.concurrency,
        "rows_per_s": round(arguments.rows / statistics.median(ours_s for _, ours_s in rounds)),
        "limit_per_s": round(arguments.rows / statistics.median(limit_s for limit_s, _ in rounds)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "peak_rss_mib": round(peak_mib),
    }
    print(json.dumps(result))


def one_round(url: str, folder: Path, environment: dict[str, str], rows: int, number: int) -> tuple[float, float]:
    with open(os.devnull, "wb") as devnull:
        limit_s, _ = timed(psql_copy(url), devnull.fileno())
    report = json.loads(run(["sync", "run", f"round{number}", "--wait", "--json"], folder, environment).splitlines()[-1])
    assert report["state"] == "succeeded", report
    assert report["counts"]["accepted"] == rows, report
    started, finished = (datetime.fromisoformat(report[name]) for name in ("started_at", "finished_at"))
    ours_s = (finished - started).total_seconds()
    print(f"round {number}: COPY {limit_s:.2f} s, run {ours_s:.2f} s", file=sys.stderr)
    return limit_s, ours_s


def run(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    return subprocess.run([*ENGINE, *words], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def up(folder: Path, warehouse_url: str) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WSYNC_")}
    settings = {"WSYNC_DATA_DIR": str(folder / "data"), "WSYNC_ALLOW_PRIVATE_ADDRESSES": "127.0.0.0/8", "WAREHOUSE_URL": warehouse_url}
    environment = {**clean, **settings}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*ENGINE, "up", "--slots", "1"], env=environment, stdout=log, stderr=log)
    try:
        yield environment, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def peak_rss_mib(process: psutil.Process) -> float:
    """The most it ever had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


# -- the endpoint


@contextmanager
def endpoint(latency_ms: float) -> Iterator[int]:
    with subprocess.Popen([sys.executable, __file__, "--serve", "--latency", str(latency_ms)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


class Requests(asyncio.Protocol):
    """Reads each request to its end and says 200, `latency_s` later."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.head = b""
        self.missing = 0

    def data_received(self, data: bytes) -> None:
        if self.missing == 0:
            self.head += data
            if b"\r\n\r\n" not in self.head:
                return
            head, _, data = self.head.partition(b"\r\n\r\n")
            self.head = b""
            self.missing = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        self.missing -= len(data)
        if self.missing == 0:
            reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            if self.latency_s:
                asyncio.get_running_loop().call_later(self.latency_s, self.transport.write, reply)
            else:
                self.transport.write(reply)


async def serve(latency_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Requests(latency_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.wait_for(server.serve_forever(), timeout=3600)


if __name__ == "__main__":
    main()
