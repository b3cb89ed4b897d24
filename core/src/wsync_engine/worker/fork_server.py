"""The process that children are forked from: one thread, no connections, heavy modules imported once.

It is asked for first, before the supervisor has anything that should not be inherited. Being imported *in* the fork server, this module ties its life
to the supervisor's: parent death signals follow the thread that forked, so the thread that calls `start` must be the supervisor's own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

__all__ = ["FORK_SERVER_ENVIRONMENT", "WITHHELD", "die_with_parent", "process_id", "start"]

PRELOAD = ("wsync_engine.worker.fork_server", "pyarrow", "pyarrow.parquet", "duckdb", "wsync_engine.worker.execution")
WITHHELD = ("WSYNC_DATABASE_URL_OWNER", "WSYNC_DATABASE_URL_ENGINE", "WSYNC_DATABASE_URL_API", "WSYNC_REDIS_URL", "WSYNC_SECRET_KEY")
"""Variables that no child has: it is told what it needs."""
FORK_SERVER_ENVIRONMENT: Mapping[str, str] = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""Without these, imports start threads, and a process with threads must not fork."""
_PARENT = "_FORK_SERVER_PARENT"
_PR_SET_PDEATHSIG = 1
_preloaded_in = os.getpid()


def start() -> ForkServerContext:
    """The context that makes children; its server runs when this returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    with _environment({**FORK_SERVER_ENVIRONMENT, _PARENT: str(os.getpid())}, WITHHELD):
        forkserver.ensure_running()
    return context


def die_with_parent(parent: int) -> None:
    """Be killed when the process `parent`, which must be ours, ends. Where the kernel can't, the closed pipe has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def process_id() -> int:
    """In a child: the fork server's process id."""
    return _preloaded_in


@contextmanager
def _environment(added: Mapping[str, str], removed: tuple[str, ...]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(added)
    for name in removed:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in {*added, *removed}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


_parent = os.environ.pop(_PARENT, "")
if _parent:
    die_with_parent(int(_parent))
