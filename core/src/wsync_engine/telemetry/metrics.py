"""What schedulers and workers count, in the form of Prometheus. All of it is in docs/reference/metrics.md, which is made from here.

No label names a tenant, a sync or a run: their number has no bound.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from wsync_sdk.errors import ConfigError

__all__ = [
    "BREAKERS",
    "BREAKER_CHANGES",
    "CALL_PLACES",
    "CHILD_EXITS",
    "CLAIMS",
    "CLOCK_SKEW",
    "DECISIONS",
    "DESTINATION_HOLDS",
    "DUE",
    "FENCED",
    "FIRE_LATENESS",
    "LABELS",
    "LABELS_OF",
    "LEASES_EXPIRED",
    "QUEUE_WAIT",
    "READY",
    "READY_AGE",
    "REBUILD",
    "REGISTRY",
    "REPAIRS",
    "RUNS",
    "RUNS_ENDED",
    "RUN_SECONDS",
    "START_LATENESS",
    "STUCK",
    "YIELDS",
    "priority_name",
    "serve",
]

REGISTRY = CollectorRegistry()
LABELS_OF: dict[str, tuple[str, ...]] = {}
"""By the name that is shown, in the order of the page."""
_LATENESS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0)


def _histogram(name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = _LATENESS) -> Histogram:
    LABELS_OF[name] = labels
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


def _counter(name: str, text: str, *labels: str) -> Counter:
    LABELS_OF[name] = labels
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    LABELS_OF[name] = labels
    return Gauge(name, text, labels, registry=REGISTRY)


FIRE_LATENESS = _histogram("wsync_fire_lateness_seconds", "From a run's due time until its fire was committed.", ("priority",))
QUEUE_WAIT = _histogram("wsync_queue_wait_seconds", "From when a run was ready until a worker claimed it.", ("priority",))
START_LATENESS = _histogram(
    "wsync_start_lateness_seconds", "From a run's due time until a worker claimed it the first time.", ("priority",)
)
RUN_SECONDS = _histogram("wsync_run_seconds", "How long a run was executed at a time.", buckets=_SECONDS)
REBUILD = _histogram("wsync_rebuild_seconds", "Loading the index anew.", buckets=_SECONDS)
DECISIONS = _counter("wsync_decisions_total", "What became of nominal times.", "decision")
CLAIMS = _counter("wsync_claims_total", "What became of runs that the index dispatched: claimed, or refused by the state store.", "result")
RUNS_ENDED = _counter("wsync_runs_total", "Executions by how they left their slot.", "ending")
LEASES_EXPIRED = _counter("wsync_lease_expired_total", "Runs that were taken from a worker that went silent.")
FENCED = _counter("wsync_fenced_total", "Runs that this worker learnt it had lost.")
CHILD_EXITS = _counter("wsync_child_exit_total", "Task processes that ended while they executed a run.", "signal")
STUCK = _counter("wsync_stuck_total", "Executions that were ended because their counters stood still.")
YIELDS = _counter("wsync_yields_total", "Executions that were asked to make room for others.")
REPAIRS = _counter("wsync_repairs_total", "Entries of the index that a sweep had to put right; none in health.", "kind")
BREAKER_CHANGES = _counter("wsync_breaker_changes_total", "Circuit breakers of destinations that went into a state.", "state")
BREAKERS = _gauge("wsync_breakers", "Destinations that are left alone now, as they failed again and again.", "state")
CALL_PLACES = _counter("wsync_call_places_total", "Calls that runs with a rate (`calls_per_s`) were given a place for.", "pace")
DESTINATION_HOLDS = _counter("wsync_destination_holds_total", "Times that a destination asked a run to wait (Retry-After).")
RUNS = _gauge("wsync_running", "Runs that this worker executes.")
DUE = _gauge("wsync_due_size", "Schedules that are due some time.", "shard")
READY = _gauge("wsync_ready", "Runs that wait for a slot.", "shard", "priority")
READY_AGE = _gauge("wsync_ready_age_seconds", "How long the oldest run has waited for a slot.", "shard", "priority")
CLOCK_SKEW = _gauge("wsync_clock_skew_seconds", "Clock of the index minus clock of the state store.", "shard")


LABELS: Mapping[str, Mapping[str, str]] = {
    "priority": {"low": "of a schedule with `priority: low`", "medium": "`priority: medium`", "high": "`priority: high`, and `sync run`"},
    "decision": {
        "fired": "a run was made",
        "skipped": "none, as a run of the sync was open or too many waited",
        "missed": "none, as the time had passed longer ago than `catch_up_window`",
        "coalesced": "none, as a later time that had passed as well was made up for instead",
    },
    "result": {"claimed": "the worker took it", "refused": "it was no longer to be had: taken, cancelled or ended meanwhile"},
    "ending": {
        "succeeded": "everything arrived",
        "partial": "all but the rows that were refused",
        "helper": "a helper of a big run, which has executed tasks of it",
        "failed": "for good, also when it was out of time: no attempt follows",
        "cancelled": "somebody asked for its end, or a later run took its place",
        "blocked": "a guard stopped it, or a dry run is done: it waits for a person",
        "retry": "a failure that may pass: queued for another attempt, or failed if it was the last",
        "back": "queued again without using an attempt: a drain, or room for others",
        "dropped": "the run was no longer this worker's, which wrote nothing more",
        "died": "its process died or was killed; what becomes of the run depends on why",
    },
    "signal": {"none": "it ended by itself", "9, 11, …": "the number of the signal; 9 where a limit of memory or time was enforced"},
    "kind": {
        "due": "what is due, executed or capped was not as Postgres has it",
        "orphan": "a run that waited for the end of another, which had ended",
    },
    "state": {
        "open": "none of its runs starts",
        "half_open": "one run at a time tries whether it answers",
        "closed": "it answered, nobody had to try it, or a person saw to it",
    },
    "pace": {
        "shared": "by the budget that all runs on the credential share",
        "own": "asked for while the index was away: each run kept to the rate by itself",
    },
    "shard": {"0, 1, …": "of the index: 0 on one server, to 15 on a cluster"},
}
"""By label its values and what each means; a number for those that are counted."""


def priority_name(priority: int) -> str:
    """As label."""
    return ("low", "medium", "high")[priority]


def serve(address: str) -> None:
    """Answer GET /metrics on `HOST:PORT`, from a thread of its own, until the process ends.

    :raises ConfigError: the address is none, or can't be listened on.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise ConfigError(f"`{address}` is no address", next_step="write --metrics HOST:PORT, for example 127.0.0.1:9464")
    try:
        start_http_server(int(port), addr=host.strip("[]"), registry=REGISTRY)
    except OSError as exc:
        raise ConfigError(f"metrics can't be served on {address}: {exc.strerror}", next_step="give another --metrics HOST:PORT") from None
