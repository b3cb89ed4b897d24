"""How near does the adaptive limit come to the best fixed number of calls at once, and what does it ask of a destination that bears few?

Usage: .venv/bin/python benchmarks/concurrency.py [--seconds 5] [--most 32] [--rounds 3]

An HTTP server in a process of its own takes 50 ms a call and is one of: `parallel` (as many at once as come), `serial` (one after the other), `eight`
(eight at once, the others wait), `throttled` (more than six at once are answered 429), `slow_tenth` (a tenth of the calls take a second). The client is
the sinks' own, through the gate that deliveries pass. In turn: the adaptive limit, the stream's whole limit from the start (`fixed`), and AIMD, which
knows failures only. The last line is one JSON object: per_s and limit_per_s of `parallel` (adaptive and fixed), ratio, and for each destination and
policy its calls per second, calls at once in the mean, and the share that was throttled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

import psutil

KINDS = ("parallel", "serial", "eight", "throttled", "slow_tenth")
POLICIES = ("adaptive", "fixed", "aimd")
CALL_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--most", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
        return
    found: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        with server(kind) as port:
            rounds = [{policy: play(policy, port, arguments) for policy in POLICIES} for _ in range(arguments.rounds)]
        found[kind] = {
            policy: [round(statistics.median(x), 2) for x in zip(*(one[policy] for one in rounds), strict=True)] for policy in POLICIES
        }
        print(kind, found[kind], file=sys.stderr)
    ours, limit = found["parallel"]["adaptive"][0], found["parallel"]["fixed"][0]
    peak_mib = psutil.Process().memory_info().rss / 2**20
    print(
        json.dumps({"per_s": ours, "limit_per_s": limit, "ratio": round(ours / limit, 3), "peak_rss_mib": round(peak_mib), "found": found})
    )


def play(policy: str, port: int, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Calls that were taken per second, calls at once in the mean, share that was throttled."""
    from wsync_engine.pipeline.call_budget import NoBudget
    from wsync_engine.pipeline.concurrency import AdaptiveLimit
    from wsync_engine.pipeline.turns import CallGate
    from wsync_sdk import AddressPolicy, StreamLimits
    from wsync_sdk.http import Client, Request

    class Fixed(AdaptiveLimit):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            self.now = most

        def answered(self, *, began_s: float, ended_s: float, was_full: bool) -> None:
            pass

        def failed(self, *, began_s: float, ended_s: float) -> None:
            pass

    class Aimd(AdaptiveLimit):
        share = 0.0

        def answered(self, *, began_s: float, ended_s: float, was_full: bool) -> None:
            self.share = min(float(self._most), max(self.share, float(self.now)) + 1 / self.now)
            self.now = int(self.share)

        def failed(self, *, began_s: float, ended_s: float) -> None:
            if began_s >= self._changed_at_s:
                self.share = max(1.0, self.share / 2)
                self.now, self._changed_at_s = int(self.share), ended_s

    gate = CallGate(StreamLimits(concurrency=arguments.most), NoBudget(), longest_wait_s=30.0)
    if policy != "adaptive":
        gate._limit = (Fixed if policy == "fixed" else Aimd)(arguments.most)
    loopback = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))
    client = Client(policy=lambda: loopback, connections=arguments.most, ca_file=None, reply_max_bytes=1_000)
    started_s = time.monotonic()
    until_s = started_s + arguments.seconds
    taken, throttled, at_once = [0], [0], []

    def call() -> None:
        while time.monotonic() < until_s:
            gate.enter(lambda: None)
            began_s = time.monotonic()
            at_once.append(gate.calls_at_once)
            reply = client.send(Request(method="POST", url=f"http://127.0.0.1:{port}/", body=b"[]"), until_s=began_s + 30)
            if reply.status == 429:
                throttled[0] += 1
                gate.failed(began_s, None)
            else:
                taken[0] += 1
                gate.answered(began_s)

    threads = [threading.Thread(target=call) for _ in range(arguments.most)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    return taken[0] / (time.monotonic() - started_s), statistics.mean(at_once), throttled[0] / max(1, taken[0] + throttled[0])


# -- the destination


@contextmanager
def server(kind: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def serve(kind: str) -> None:
    places = asyncio.Semaphore({"serial": 1, "eight": 8}.get(kind, 10_000))
    inside, number = 0, 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal inside, number
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(2)
                inside, number = inside + 1, number + 1
                status = b"200 OK"
                if kind == "throttled" and inside > 6:
                    status = b"429 Slow"
                else:
                    async with places:
                        await asyncio.sleep(1.0 if kind == "slow_tenth" and number % 10 == 0 else CALL_S)
                inside -= 1
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    made = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(made.sockets[0].getsockname()[1], flush=True)
    await asyncio.wait_for(made.serve_forever(), timeout=3600)


if __name__ == "__main__":
    main()
