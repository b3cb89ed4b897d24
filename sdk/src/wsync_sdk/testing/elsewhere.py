"""Calls a function in a process of its own: what another worker would see of a plan, and what a read costs in memory.

A plain child and not `multiprocessing`: its start methods keep a server or re-import the caller's main module.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pyarrow as pa

from wsync_sdk.source import Query, ReadLimits, ReadPlan, Source
from wsync_sdk.testing.harness import Context
from wsync_sdk.testing.rules import ContractViolation

__all__ = ["call_elsewhere", "peak_rss_bytes", "rows_of_plan"]

_CHILD = "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); from wsync_sdk.testing.elsewhere import main; main()"
TIMEOUT_S = 120.0


def call_elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` gives in another process.

    :raises ContractViolation: the arguments can't be pickled, or the function raised there; with the child's own words.
    """
    try:
        call = pickle.dumps((function, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as exc:
        raise ContractViolation("factory(): give a picklable callable, e.g. `functools.partial` of a function of a module") from exc
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=pickle.dumps(sys.path) + call, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ContractViolation(f"in another process the connector failed: {last}")
    return pickle.loads(done.stdout)


def main() -> None:
    """The child's part: a call from stdin, its result to stdout; what the connector prints goes to stderr."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    function, arguments = pickle.load(sys.stdin.buffer)
    out.write(pickle.dumps(function(*arguments)))
    out.flush()


def rows_of_plan(factory: Callable[[], Source], plan_bytes: bytes) -> list[dict[str, Any]]:
    """All rows of a plan that came as bytes, read by a source made here."""
    plan = ReadPlan.from_bytes(plan_bytes)
    with factory() as source:
        batches = [batch for split in plan.splits for batch in source.read(split)]
    rows: list[dict[str, Any]] = pa.Table.from_batches(batches, schema=plan.schema).to_pylist()
    return rows


def peak_rss_bytes(factory: Callable[[], Source], queries: tuple[Query, ...], batch_rows: int) -> list[int]:
    """This process' largest resident size while each query streams, in turn."""
    with factory() as source:
        return [_peak(source, query, batch_rows) for query in queries]


def _peak(source: Source, query: Query, batch_rows: int) -> int:
    process = psutil.Process()
    plan = source.plan(query, ReadLimits(batch_rows=batch_rows, batch_bytes=256 * 1024), Context())
    peak = process.memory_info().rss
    for split in plan.splits:
        for _ in source.read(split):
            peak = max(peak, process.memory_info().rss)
    source.release(plan)
    return int(peak)
