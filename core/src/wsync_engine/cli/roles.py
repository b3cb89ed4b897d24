"""`scheduler`, `worker` and `up`: the processes that stay. They end on SIGTERM or SIGINT."""
# ruff: noqa: PLC0415  what a command needs is imported when it runs, so that --help stays quick

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from wsync_engine.cli.boundary import Exit, reported
from wsync_engine.cli.children import Role, Stop, end, watched
from wsync_engine.cli.output import say

if TYPE_CHECKING:
    from wsync_engine.cli.session import Urls
    from wsync_engine.index.shards import Shards
    from wsync_engine.scheduler.loop import Scheduler
    from wsync_engine.settings import Settings
    from wsync_engine.worker.host import Host
    from wsync_engine.worker.supervisor import Worker

__all__ = ["add_commands"]

Slots = Annotated[int, typer.Option(min=1, max=256, help="Runs at the same time.")]
Queues = Annotated[list[str] | None, typer.Option("--queue", help="Take the runs of this queue; may be repeated. Default: `default`.")]
Metrics = Annotated[str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Answer GET /metrics there, for Prometheus.")]
NewStorage = Annotated[
    bool, typer.Option("--new-storage", help="Take this storage as the installation's: the former one is gone for good.")
]
ReadyFd = Annotated[int | None, typer.Option("--ready-fd", hidden=True, help="For `up`: a byte is written there when the role is there.")]
T = TypeVar("T")
MIB = 1024 * 1024
START_S = 15.0
"""How long a role asks for servers that do not answer yet."""
START_PAUSE_S = 0.5


def add_commands(app: typer.Typer) -> None:
    """Register them."""
    app.command("up")(up)
    app.command("scheduler")(scheduler)
    app.command("worker")(worker)


@reported
def scheduler(metrics: Metrics = None, ready_fd: ReadyFd = None) -> None:
    """Fire schedules, hand runs to workers, repair. Any number of them may run."""
    from wsync_engine.cli.session import urls_of
    from wsync_engine.settings import Settings
    from wsync_engine.telemetry import log_to_stderr

    log_to_stderr()
    on_ready = _ready_sign(ready_fd)
    _serve(metrics)
    settings = Settings.read()
    stop = Stop.on_signals()
    with ExitStack() as stack:
        urls = _started("scheduler", lambda: stack.enter_context(urls_of(settings)), stop)
        loop = _started("scheduler", lambda: _scheduler_of(settings, urls), stop)
        loop.run(stop.event, on_ready)


def _scheduler_of(settings: Settings, urls: Urls) -> Scheduler:
    from wsync_engine.cli.session import default_caps
    from wsync_engine.index.connection import connect as connect_index
    from wsync_engine.index.shards import Shards
    from wsync_engine.scheduler.janitor import Retention
    from wsync_engine.scheduler.loop import Scheduler
    from wsync_engine.services.shards import settle_shards
    from wsync_engine.state.database import check_schema, connect

    check_schema(urls.engine)
    with connect(urls.engine, application_name="wsync scheduler") as conn:
        count = settle_shards(conn, urls.redis)
    client = connect_index(urls.redis)
    indexes = Shards(client, count, default_caps=default_caps(settings))
    indexes.check_server()
    return Scheduler(
        indexes=indexes,
        wakes=Scheduler.wakes_of(client),
        connect=lambda: connect(urls.engine, application_name="wsync scheduler"),
        retention=Retention(runs_days=settings.keep_runs_days, events_days=settings.keep_events_days),
    )


@reported
def worker(
    slots: Slots = 2, queue: Queues = None, metrics: Metrics = None, new_storage: NewStorage = False, ready_fd: ReadyFd = None
) -> None:
    """Execute runs. The first signal lets them finish, the second ends them."""
    from wsync_engine.cli.session import urls_of
    from wsync_engine.settings import Settings
    from wsync_engine.telemetry import log_to_stderr

    log_to_stderr()
    on_ready = _ready_sign(ready_fd)
    _serve(metrics)
    settings = Settings.read()
    stop = Stop.on_signals()
    with ExitStack() as stack:
        urls = _started("worker", lambda: stack.enter_context(urls_of(settings)), stop)
        index, queues = _started("worker", lambda: _prepared(settings, urls, queue or (), is_new_storage=new_storage), stop)
        made = _worker_of(settings, urls, index, slots=slots, queues=queues, on_ready=on_ready)
        stop.then = made.stop  # until it heeds signals itself
        if not stop.event.is_set():
            _start_sweeping(settings, urls, stop.event)
            made.run()


def _start_sweeping(settings: Settings, urls: Urls, stop: threading.Event) -> None:
    """Workers have the storage, so they free it; in a thread that is cut off where the worker ends."""
    from wsync_engine.services.storage_sweep import keep_swept
    from wsync_engine.state.database import connect

    connected = partial(connect, urls.engine, application_name="wsync storage")
    sweeping = partial(keep_swept, connected, settings.storage, keep_days=settings.keep_change_logs_days, stop=stop)
    threading.Thread(target=sweeping, name="storage", daemon=True).start()


def _prepared(settings: Settings, urls: Urls, queue: Sequence[str], *, is_new_storage: bool) -> tuple[Shards, tuple[int, ...]]:
    from wsync_engine.cli.session import default_caps
    from wsync_engine.index.connection import connect as connect_index
    from wsync_engine.index.shards import Shards
    from wsync_engine.services.shards import settle_shards
    from wsync_engine.services.storage import claim_storage
    from wsync_engine.services.workers import queues_named
    from wsync_engine.state.database import check_schema, connect

    check_schema(urls.engine)
    with connect(urls.engine, application_name="wsync worker") as conn:
        index = Shards(connect_index(urls.redis), settle_shards(conn, urls.redis), default_caps=default_caps(settings))
        index.check_server()
        claim_storage(conn, settings.storage, is_new=is_new_storage)
        return index, tuple(queues_named(conn, queue))


def _worker_of(
    settings: Settings, urls: Urls, index: Shards, *, slots: int, queues: tuple[int, ...], on_ready: Callable[[], None] | None
) -> Worker:
    from wsync_engine.cli.session import address_policy, keyring_of, plugins_file
    from wsync_engine.index.connection import connect as connect_index
    from wsync_engine.state.database import connect
    from wsync_engine.storage import storage_id
    from wsync_engine.worker.connectors import InstalledPlugins
    from wsync_engine.worker.options import WorkerOptions
    from wsync_engine.worker.supervisor import Worker

    options = WorkerOptions(
        api_url=urls.api,
        storage_url=settings.storage,
        storage_id=storage_id(settings.storage),
        slots=slots,
        queues=queues,
        lease_s=settings.lease_ttl_s,
        secret_folders=settings.secret_folders,
        memory_limit_bytes=settings.task_memory_mib * MIB,
        breaker_failures=settings.breaker_failures,
        rows_per_partition=settings.partition_rows,
    )
    return Worker(
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
        on_ready=on_ready,
    )


@reported
def up(slots: Slots = 2, queue: Queues = None, new_storage: NewStorage = False) -> None:
    """A scheduler and a worker, for one machine; if one of them ends, so does the other."""
    from wsync_engine.settings import Settings

    Settings.read()  # a mistake in them is said once
    stop = Stop.on_signals()
    options = ["--slots", str(slots), *(["--new-storage"] if new_storage else [])]
    options += [word for name in queue or () for word in ("--queue", name)]
    say("starting a scheduler and a worker")
    roles: list[Role] = []
    try:
        roles.append(Role.start("scheduler"))
        roles.append(Role.start("worker", *options))
        ended = watched(roles, stop)
    finally:
        end(roles, stop)
    if ended is not None:
        say(f"error: the {ended.name} {ended.how_it_ended}")
        say("next: its last lines above say why")
        raise typer.Exit(ended.exit_code if ended.exit_code > 0 else Exit.FAILED)


def _started(role: str, start: Callable[[], T], stop: Stop) -> T:
    """Servers that are still starting, or are too busy to answer in time, are asked again for `START_S`."""
    import psycopg

    from wsync_sdk.errors import RetryableError

    give_up_at_s = time.monotonic() + START_S
    said = ""
    while not stop.event.is_set():
        try:
            return start()
        except (RetryableError, psycopg.OperationalError) as exc:
            if time.monotonic() >= give_up_at_s:
                raise
            why = exc.message if isinstance(exc, RetryableError) else "the state store does not answer"
            if why != said:
                say(f"{role}: {why}; trying again for {give_up_at_s - time.monotonic():.0f} s")
                said = why
        stop.event.wait(START_PAUSE_S)
    raise typer.Exit(Exit.OK)


def _ready_sign(ready_fd: int | None) -> Callable[[], None] | None:
    """What tells `up` that the role is there, by the pipe that it gave; None: nobody waits for it."""
    if ready_fd is None:
        return None
    os.set_inheritable(ready_fd, False)  # not for the servers and children that are started from here

    def tell() -> None:
        with suppress(OSError):  # `up` is gone
            os.write(ready_fd, b"!")
            os.close(ready_fd)

    return tell


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
