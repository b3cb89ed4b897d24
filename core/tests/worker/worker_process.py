"""A worker as a process of its own: `python worker_process.py '{"engine_url": …, "options": {…}}'`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wsync_engine.index.connection import connect
from wsync_engine.index.shards import Shards
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.state import database
from wsync_engine.worker.connectors import InstalledPlugins
from wsync_engine.worker.host import Host
from wsync_engine.worker.options import WorkerOptions
from wsync_engine.worker.supervisor import Worker
from wsync_engine.worker.task_groups import TaskGroups


def main() -> None:
    from connectors_for_tests import open_connectors

    told = json.loads(sys.argv[1])
    groups = TaskGroups(Path(told["task_cgroup"]), limit_bytes=told["group_bytes"]) if told["task_cgroup"] else None
    worker = Worker(
        WorkerOptions(**told["options"]),
        index=Shards(connect(told["redis_url"])),
        client=connect(told["redis_url"]),
        connect=lambda: database.connect(told["engine_url"], application_name="wsync worker"),
        keyring=Keyring.from_text(told["key"]),
        host=Host(groups),
        opener=InstalledPlugins() if told["is_host_used"] else open_connectors,
    )
    worker.run()


if __name__ == "__main__":
    main()
