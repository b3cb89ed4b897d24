"""A worker of installed plugins whose children stop at the step that the file `step` names: `python worker_that_stops.py '{"folder": …, …}'`.

Where they stand, each leaves a file `<step>.<process id>`; they go on for nobody: whoever wants to see what becomes of their runs kills them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from wsync_engine.index.connection import connect
from wsync_engine.index.shards import Shards
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state import database
from wsync_engine.worker.connectors import InstalledPlugins
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.supervisor import Worker
from wsync_sdk import AddressPolicy


def stop(folder: Path, name: str) -> None:
    step = folder / "step"
    if step.exists() and step.read_text() == name:
        (folder / f"{name}.{os.getpid()}").touch()
        signal.pause()


def main() -> None:
    told = json.loads(sys.argv[1])
    Worker(
        WorkerOptions(**told["options"]),
        index=Shards(connect(told["redis_url"])),
        client=connect(told["redis_url"]),
        connect=lambda: database.connect(told["engine_url"], application_name="wsync worker"),
        keyring=Keyring.from_text(told["key"]),
        opener=InstalledPlugins(network=AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),))),
        faults=partial(stop, Path(told["folder"])),
    ).run()


if __name__ == "__main__":
    main()
