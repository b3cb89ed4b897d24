"""A run while it goes on: bars on a terminal, a line for each change of state off it. Always on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from wsync_engine.cli.output import say

__all__ = ["shown_progress"]

Show = Callable[[Mapping[str, Any]], None]


@contextmanager
def shown_progress(run_id: object) -> Iterator[Show]:
    """Gives a call that shows a run as its row is now."""
    if not sys.stderr.isatty():
        yield _lines(run_id)
        return
    # Only here: off a terminal nobody needs it.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        read = bars.add_task("rows read", total=None)
        sent = bars.add_task("changes delivered", total=None)
        lines = _lines(run_id, only_states=True)

        def show(run: Mapping[str, Any]) -> None:
            lines(run)
            counters, counts = run["progress"] or {}, run["counts"] or {}
            bars.update(read, completed=counts.get("read", counters.get("read", 0)), total=counts.get("read"))
            # Known once the result was compared with what was delivered before.
            total = counts["upserts"] + counts["deletes"] if "upserts" in counts else None
            settled = counts if "accepted" in counts else counters
            bars.update(sent, completed=settled.get("accepted", 0) + settled.get("rejected", 0), total=total)

        yield show


def _lines(run_id: object, *, only_states: bool = False) -> Show:
    said = ""

    def show(run: Mapping[str, Any]) -> None:
        nonlocal said
        words = _words(run, with_counters=not only_states)
        if words != said:
            say(f"{run_id}: {words}")
            said = words

    return show


def _words(run: Mapping[str, Any], *, with_counters: bool) -> str:
    words = [str(run["state"])]
    if run["state"] == "running" and run["phase"]:
        words.append(str(run["phase"]))
    if run["state"] == "running" and with_counters and isinstance(run["progress"], Mapping):
        words += [f"{name} {value}" for name, value in run["progress"].items()]
    if run["state"] == "queued" and run["error"]:  # it waits between two attempts
        words.append(f"again at {run['ready_at']:%H:%M:%SZ} after: {run['error']}")
    return ", ".join(words)
