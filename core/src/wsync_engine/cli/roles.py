"""`scheduler`, `worker` and `up`: the processes that stay. They end on SIGTERM or SIGINT."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from wsync_engine.cli.boundary import Exit, reported
from wsync_engine.cli.output import say

if TYPE_CHECKING:
    from wsync_engine.settings import Settings
    from wsync_engine.worker.host import Host

__all__ = ["add_commands"]

Slots = Annotated[int, typer.Option(min=1, max=256, help="Runs at the same time.")]
Queues = Annotated[list[str] | None, typer.Option("--queue", help="Take the runs of this queue; may be repeated. Default: `default`.")]
Metrics = Annotated[str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Answer GET /metrics there, for Prometheus.")]
NewStorage = Annotated[
    bool, typer.Option("--new-storage", help="Take this storage as the installation's: the former one is gone for good.")
]
WATCH_S = 0.2
MIB = 1024 * 1024


def add_commands(app: typer.Typer) -> None:
    """Register them."""
    app.command("up")(up)
    app.command("scheduler")(scheduler)
    app.command("worker")(worker)


@reported
def scheduler(metrics: Metrics = None) -> None:
    """Fire schedules, hand runs to workers, repair. Any number of them may run."""
    from wsync_engine.cli.session import default_caps, urls_of
    from wsync_engine.index.connection import connect as connect_index
    from wsync_engine.index.shards import Shards
    from wsync_engine.scheduler.janitor import Retention
    from wsync_engine.scheduler.loop import Scheduler
    from wsync_engine.services.shards import settle_shards
    from wsync_engine.settings import Settings
    from wsync_engine.state.database import check_schema, connect
    from wsync_engine.telemetry import log_to_stderr

    log_to_stderr()
    _serve(metrics)
    settings = Settings.read()
    with urls_of(settings) as urls:
        check_schema(urls.engine)
        with connect(urls.engine, application_name="wsync scheduler") as conn:
            count = settle_shards(conn, urls.redis)
        client = connect_index(urls.redis)
        indexes = Shards(client, count, default_caps=default_caps(settings))
        indexes.check_server()
        loop = Scheduler(
            indexes=indexes,
            wakes=Scheduler.wakes_of(client),
            connect=lambda: connect(urls.engine, application_name="wsync scheduler"),
            retention=Retention(runs_days=settings.keep_runs_days, events_days=settings.keep_events_days),
        )
        loop.run(_stop_on_signal())


@reported
def worker(slots: Slots = 2, queue: Queues = None, metrics: Metrics = None, new_storage: NewStorage = False) -> None:
    """Execute runs. The first signal lets them finish, the second ends them."""
    from wsync_engine.cli.session import address_policy, default_caps, keyring_of, plugins_file, urls_of
    from wsync_engine.index.connection import connect as connect_index
    from wsync_engine.index.shards import Shards
    from wsync_engine.services.shards import settle_shards
    from wsync_engine.services.storage import claim_storage
    from wsync_engine.services.workers import queues_named
    from wsync_engine.settings import Settings
    from wsync_engine.state.database import check_schema, connect
    from wsync_engine.storage import storage_id
    from wsync_engine.telemetry import log_to_stderr
    from wsync_engine.worker.connectors import InstalledPlugins
    from wsync_engine.worker.supervisor import Worker, WorkerOptions

    log_to_stderr()
    _serve(metrics)
    settings = Settings.read()
    with urls_of(settings) as urls:
        check_schema(urls.engine)
        with connect(urls.engine, application_name="wsync worker") as conn:
            index = Shards(connect_index(urls.redis), settle_shards(conn, urls.redis), default_caps=default_caps(settings))
            index.check_server()
            claim_storage(conn, settings.storage, is_new=new_storage)
            queues = tuple(queues_named(conn, queue or ()))
        options = WorkerOptions(
            api_url=urls.api,
            storage_url=settings.storage,
            storage_id=storage_id(settings.storage),
            slots=slots,
            queues=queues,
            lease_s=settings.lease_ttl_s,
            secret_folders=settings.secret_folders,
            memory_limit_bytes=settings.task_memory_mib * MIB,
        )
        Worker(
            options,
            host=_host(settings),
            index=index,
            client=connect_index(urls.redis),
            connect=lambda: connect(urls.engine, application_name="wsync worker"),
            keyring=keyring_of(settings),
            opener=InstalledPlugins(
                allow=settings.plugins_allow,
                block=settings.plugins_block,
                tried=plugins_file(settings),
                network=address_policy(settings),
            ),
        ).run()


@reported
def up(slots: Slots = 2, queue: Queues = None, new_storage: NewStorage = False) -> None:
    """A scheduler and a worker, for one machine; if one of them ends, so does the other."""
    from wsync_engine.settings import Settings

    Settings.read()  # a mistake in them is said once
    stop = _stop_on_signal()
    roles = [["scheduler"], ["worker", "--slots", str(slots), *(["--new-storage"] if new_storage else [])]]
    roles[1] += [word for name in queue or () for word in ("--queue", name)]
    # In groups of their own: Ctrl-C reaches each once, through us; -P: the current folder holds no modules of ours. Embedded servers are theirs: whoever comes first starts them.
    children = [subprocess.Popen([sys.executable, "-P", "-m", "wsync_engine.cli", *role], start_new_session=True) for role in roles]
    codes: list[int] = []
    try:
        say("running; Ctrl-C ends it")
        while not stop.wait(WATCH_S) and not codes:
            codes = [code for child in children if (code := child.poll()) is not None]
    finally:
        _end(children)
    if not stop.is_set():
        raise typer.Exit(codes[0] if codes[0] > 0 else Exit.FAILED)


def _host(settings: Settings) -> Host:
    from wsync_engine.worker.host import Host
    from wsync_engine.worker.task_groups import TaskGroups

    if settings.task_cgroup is None:
        return Host()
    return Host(TaskGroups(settings.task_cgroup, limit_bytes=settings.task_memory_mib * MIB))


def _serve(metrics: str | None) -> None:
    from wsync_engine.telemetry.metrics import serve

    if metrics is not None:
        serve(metrics)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        child.wait()


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop
