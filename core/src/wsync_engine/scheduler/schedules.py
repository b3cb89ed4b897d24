"""What producers do to schedules: create, change, pause, resume, delete, trigger. Any process, at any time.

Each function runs inside the caller's transaction of one tenant (`state.database.tenant_transaction`), so that it also fits into a
larger one. After the commit the caller hands the result to `announce`: best effort, a sweep makes up for it within 10 s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import psycopg
import structlog
from psycopg.types.json import Jsonb

from wsync_engine.index.due_index import Index
from wsync_engine.index.entries import DueEntry, ReadyRun
from wsync_engine.model.ids import uuid7s
from wsync_engine.model.run import OverlapPolicy, Trigger
from wsync_engine.scheduler.limits import INSTANTS, refuse_texts
from wsync_engine.scheduler.overdue import give_up, give_up_all
from wsync_engine.scheduler.overlap import Admission, RunRequest, admit
from wsync_engine.scheduler.rows import Event, Row, instant, ready_run, select, shard_of, statements, timing_of, write_events
from wsync_engine.scheduler.runs import drop_waiting
from wsync_engine.scheduler.spec import (
    ScheduleSpec,
    anchored,
    check_change,
    check_params,
    check_values,
    checked_timing,
    in_utc,
    is_declared,
    refuse_contradictions,
    refuse_new_contradictions,
    shared_and_own,
)
from wsync_engine.scheduler.timing import Nominal, Timing, first_nominal, is_same_rule
from wsync_sdk.errors import ConfigError, RetryableError, StateError

__all__ = [
    "ANNOUNCE_TIMEOUT_S",
    "StoredSchedule",
    "Triggered",
    "announce",
    "change_schedule",
    "create_schedule",
    "create_schedules",
    "delete_schedule",
    "keep_syncs",
    "pause_schedule",
    "resume_schedule",
    "trigger_run",
]

ANNOUNCE_TIMEOUT_S = 0.06
"""Reply timeout for a producer's index client: with connecting and attaching, an announcement then costs at most about 250 ms."""
_SQL = statements("schedule")
_RUN = statements("run")
_CLOCK_INSTANTS = ("next_nominal_at", "next_due_at")
_NO_PARAMETERS: Mapping[str, Any] = {}
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSchedule:
    """A schedule as it stands after a write; `entry` is for `announce`. `is_new` False: it was there already, nothing was written."""

    schedule_id: UUID
    spec_version: int
    entry: DueEntry
    next_nominal_at: datetime | None
    is_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered:
    """The run that a trigger made or found.

    :param is_new: False: it was there already, by its idem_key or because the open run `run_id` made this one skip.
    :param is_waiting: it starts when the open run has ended. :param is_refused: too many wait already; `run_id` is the open one.
    :param run: for `announce`. :param interrupted: for `announce`, the worker that has to end a run.
    """

    run_id: UUID
    run: ReadyRun | None
    is_new: bool
    is_waiting: bool = False
    is_refused: bool = False
    interrupted: UUID | None = None


def announce(index: Index, entries: Sequence[DueEntry] = (), runs: Sequence[ReadyRun] = (), interrupted: Sequence[UUID] = ()) -> bool:
    """Tell the index what was committed, and workers that they have to end a run. Never raises for an index that is away: False, and the
    sweep, or the worker's next heartbeat, makes up for it.
    """
    try:
        index.upsert_due(entries)
        if runs:
            index.commit_fire([], runs)
        index.interrupt(interrupted)
    except (RetryableError, StateError) as exc:
        _log.warning("announcement.failed", error=type(exc).__name__, schedules=len(entries), runs=len(runs))
        return False
    return True


def create_schedule(conn: psycopg.Connection[Any], tenant_id: UUID, spec: ScheduleSpec, *, actor: str) -> StoredSchedule:
    """Create a schedule, or return the one of that name if it is declared the same: from many processes at once, there is one.

    :raises ConfigError: the timing, the overlap policy or the sync is wrong, or the name is taken by another declaration.
    """
    return create_schedules(conn, tenant_id, [spec], actor=actor)[0]


def create_schedules(conn: psycopg.Connection[Any], tenant_id: UUID, specs: Sequence[ScheduleSpec], *, actor: str) -> list[StoredSchedule]:
    """As `create_schedule`, for many at once and all or none; some thousands per call are quickest. In the order of `specs`.

    :raises ConfigError: one of them is wrong, or its name is taken by another declaration or by another of `specs`.
    """
    refuse_texts(actor=actor)
    if not specs:
        return []
    now, shards = _time(conn)
    specs = [anchored(in_utc(spec), now) for spec in specs]
    _check_syncs(conn, specs)
    shared, own = shared_and_own(specs)
    check_values(specs, shared, own)
    for spec in specs:
        refuse_contradictions(spec)
    _refuse_twins(specs)
    timings = [checked_timing(spec, schedule_id) for spec, schedule_id in zip(specs, uuid7s(len(specs)), strict=True)]
    following = [first_nominal(timing, after=now, due_after=now) for timing in timings]
    columns = {**_wanted(shared, own, timings, following), "tenant_id": tenant_id, "shard": shard_of(tenant_id, shards), "actor": actor}
    there_before = {row["schedule_id"] for row in select(conn, _SQL["schedule_insert"], columns)}
    keep_syncs(conn, {spec.sync_id for spec, timing in zip(specs, timings, strict=True) if timing.schedule_id not in there_before})
    registered = _registered(conn, tenant_id, [x for x, timing in zip(specs, timings, strict=True) if timing.schedule_id in there_before])
    return [
        registered[spec.name] if timing.schedule_id in there_before else _created(timing.schedule_id, spec, x)
        for spec, timing, x in zip(specs, timings, following, strict=True)
    ]


def _wanted(
    shared: Mapping[str, Any], own: Mapping[str, Sequence[Any]], timings: Sequence[Timing], following: Sequence[Nominal | None]
) -> dict[str, str]:
    """The parameters `shared` and `own` of the insertion."""
    columns = {
        **own,
        "schedule_id": [timing.schedule_id for timing in timings],
        "next_nominal_at": [x.nominal_at if x else None for x in following],
        "next_due_at": [x.due_at if x else None for x in following],
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {name: orjson.dumps(value, default=dict).decode() for name, value in (("shared", shared), ("own", rows))}  # dict: of any mapping


def _created(schedule_id: UUID, spec: ScheduleSpec, following: Nominal | None) -> StoredSchedule:
    if following is None:
        raise ConfigError(f"schedule `{spec.name}` would never fire: its times are past", next_step="change its times or its end")
    return _stored(schedule_id, 1, rev=1, following=following, is_new=True)


def _refuse_twins(specs: Sequence[ScheduleSpec]) -> None:
    names = set()
    for spec in specs:
        if spec.name in names:
            raise ConfigError(f"schedule `{spec.name}` is given twice", next_step="give each schedule a name of its own")
        names.add(spec.name)


def change_schedule(
    conn: psycopg.Connection[Any], tenant_id: UUID, schedule_id: UUID, spec: ScheduleSpec, *, actor: str, if_version: int | None = None
) -> StoredSchedule:
    """Change everything but the name. New times repeat nothing; without new times next and phase stay as they are. What was due by now and
    undecided, and is not asked for any more, is counted as missed.

    :param if_version: refuse if the schedule is not at this spec_version any more.
    :raises ConfigError: as for `create_schedule`; there is no such schedule.
    :raises StateError: someone changed it meanwhile.
    """
    refuse_texts(actor=actor)
    spec = in_utc(spec)
    now, _ = _time(conn)
    clock = _locked_clock(conn, schedule_id)
    old = _definition(conn, schedule_id)
    if if_version is not None and old["spec_version"] != if_version:
        raise StateError("the schedule was changed by someone else", next_step="read it again, then repeat the change")
    if spec.kind == "interval" and spec.anchor_at is None:
        spec = replace(spec, anchor_at=old["anchor_at"] or now)
    check_change(spec, old)
    refuse_new_contradictions(spec, old)
    timing = checked_timing(spec, schedule_id)
    columns = {**asdict(spec), **_sync(conn, spec), "params": Jsonb(dict(spec.params)), "schedule_id": schedule_id}
    conn.execute(_SQL["version_keep"], {"schedule_id": schedule_id})
    version = select(conn, _SQL["schedule_change"], columns)[0]["spec_version"]
    keep_syncs(conn, {spec.sync_id})
    following = _kept(clock)
    if not old["paused"] and timing != timing_of(old):
        is_exhausted = spec.max_runs is not None and clock["fired"] >= spec.max_runs
        asked = None if is_exhausted else timing
        clock = give_up(conn, clock, timing_of(old), asked, now=now, reason="changed", actor=actor)
        following = None if is_exhausted else _following_of_change(timing, old, clock, now)
    rev = _set_clock(conn, schedule_id, following)
    write_events(conn, [Event(kind="schedule.changed", tenant_id=tenant_id, schedule_id=schedule_id, detail={"actor": actor})])
    return _stored(schedule_id, version, rev=rev, following=following)


def _following_of_change(timing: Timing, old: Row, clock: Row, now: datetime) -> Nominal | None:
    undecided_at = clock["next_nominal_at"]
    if undecided_at is not None and undecided_at <= now and is_same_rule(timing, timing_of(old)):
        # What the new declaration asks for as well stays due, however late it is: only a fire decides it.
        just_before = undecided_at - timedelta(microseconds=1)
        return first_nominal(timing, after=just_before, due_after=just_before)
    # Back by the jitter, so that a nominal time that is still waiting for its due time is not lost; never to before the schedule was.
    after = max(clock["last_nominal_at"] or old["created_at"], now - timedelta(milliseconds=timing.jitter_ms))
    return first_nominal(timing, after=after, due_after=now)


def pause_schedule(conn: psycopg.Connection[Any], tenant_id: UUID, schedule_id: UUID, *, note: str | None, actor: str) -> StoredSchedule:
    """No scheduled run is made after this commits, until resume; what was due before and undecided counts as missed. Pausing twice keeps the
    first note unless a new one is given.
    """
    refuse_texts(note=note, actor=actor)
    clock = _locked_clock(conn, schedule_id)
    old = _definition(conn, schedule_id)
    conn.execute(_SQL["schedule_pause"], {"schedule_id": schedule_id, "note": note, "actor": actor})
    give_up_all(conn, clock, reason="paused", actor=actor)
    rev = _set_clock(conn, schedule_id, None)
    drop_waiting(conn, schedule_id, actor=actor)
    kept = note if note is not None or not old["paused"] else old["pause_note"]
    detail = {"actor": actor} if kept is None else {"actor": actor, "note": kept}
    write_events(conn, [Event(kind="schedule.paused", tenant_id=tenant_id, schedule_id=schedule_id, detail=detail)])
    return _stored(schedule_id, old["spec_version"], rev=rev, following=None)


def resume_schedule(conn: psycopg.Connection[Any], tenant_id: UUID, schedule_id: UUID, *, actor: str) -> StoredSchedule:
    """Go on with the first nominal time after now; what lay in the pause is neither caught up nor counted. Without a pause: no change."""
    refuse_texts(actor=actor)
    now, _ = _time(conn)
    clock = _locked_clock(conn, schedule_id)
    old = _definition(conn, schedule_id)
    if not old["paused"]:
        return _stored(schedule_id, old["spec_version"], rev=clock["rev"], following=_kept(clock))
    conn.execute(_SQL["schedule_resume"], {"schedule_id": schedule_id})
    is_exhausted = old["max_runs"] is not None and clock["fired"] >= old["max_runs"]
    after = max(now, clock["last_nominal_at"] or now)  # the last one may have been decided a little early, see `decide`
    following = None if is_exhausted else first_nominal(timing_of(old), after=after, due_after=now)
    rev = _set_clock(conn, schedule_id, following, last_nominal_at=after)
    write_events(conn, [Event(kind="schedule.resumed", tenant_id=tenant_id, schedule_id=schedule_id, detail={"actor": actor})])
    return _stored(schedule_id, old["spec_version"], rev=rev, following=following)


def delete_schedule(conn: psycopg.Connection[Any], tenant_id: UUID, schedule_id: UUID, *, actor: str) -> StoredSchedule:
    """The schedule fires no more and its name is free again; runs that exist go on. What was due and undecided counts as missed."""
    refuse_texts(actor=actor)
    clock = _locked_clock(conn, schedule_id)
    old = _definition(conn, schedule_id)
    conn.execute(_SQL["schedule_delete"], {"schedule_id": schedule_id})
    give_up_all(conn, clock, reason="deleted", actor=actor)
    rev = _set_clock(conn, schedule_id, None)
    write_events(conn, [Event(kind="schedule.deleted", tenant_id=tenant_id, schedule_id=schedule_id, detail={"actor": actor})])
    stored = _stored(schedule_id, old["spec_version"], rev=rev, following=None)
    return replace(stored, entry=replace(stored.entry, is_gone=True))


def trigger_run(
    conn: psycopg.Connection[Any],
    tenant_id: UUID,
    *,
    sync_id: UUID,
    actor: str,
    schedule_id: UUID | None = None,
    priority: int = 2,
    idem_key: str | None = None,
    dry_run: bool = False,
    adopt: bool = False,
    offer_rejected: bool = False,
    replay: Mapping[str, Any] | None = None,
    overlap: OverlapPolicy | None = None,
    params: Mapping[str, Any] | None = None,
    nominal_at: datetime | None = None,
) -> Triggered:
    """Make a run now. It works while a schedule is paused and does not unpause it; a second call with `idem_key` returns the first run, as
    long as the store keeps that.

    :param offer_rejected: rows that are held back for an earlier rejection are offered again, whatever their backoff.
    :param replay: see `ReplayOrder`; with it the query is not asked.
    :param overlap: what happens while a run of the sync is open; None: the schedule's policy, `skip` without a schedule.
    :param params: values of `:name` in the query, over the schedule's and the sync's own. :param nominal_at: the time that the run stands
        for; None: now.
    :raises ConfigError: there is no such sync or schedule, or the sync declares no such parameter.
    """
    refuse_texts(actor=actor, idem_key=idem_key)
    schedule = _definition(conn, schedule_id) if schedule_id else None
    sync = {**_sync_of(conn, sync_id), **_other_sink(conn, replay)}
    given = _given(sync.pop("parameters"), schedule, params or {})
    if idem_key is not None and (known := _triggered_before(conn, tenant_id, idem_key)) is not None:
        return known
    request = replace(
        _manual_request(conn, tenant_id, sync, schedule),
        priority=priority,
        idem_key=idem_key,
        dry_run=dry_run,
        adopt=adopt,
        offer_rejected=offer_rejected,
        replay=replay,
        params=given,
        actor=actor,
    )
    request = request if nominal_at is None else replace(request, nominal_at=nominal_at)
    policy = overlap or OverlapPolicy(schedule["overlap"] if schedule else OverlapPolicy.SKIP)
    admission = admit(conn, request, policy)
    keep_syncs(conn, {sync_id} if admission.run_id else ())
    known = None if admission.run_id or idem_key is None else _triggered_before(conn, tenant_id, idem_key)
    return known or _triggered(admission)


def _given(declared: Mapping[str, Any], schedule: Row | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """The run's parameters over the schedule's; those are checked apart, so that a mistake is told where it was made."""
    check_params(declared, params)
    given = {**(schedule["params"] if schedule else {}), **params}
    check_params(declared, given)
    return given


def _other_sink(conn: psycopg.Connection[Any], replay: Mapping[str, Any] | None) -> Row:
    """The credential of the connection that a replay goes to, where that is not the sync's sink."""
    if replay is None or replay["sink"] is None:
        return {}
    found = select(conn, _SQL["sink_credential"], {"connection_id": replay["sink"]})
    if not found:
        raise ConfigError("the connection that the replay goes to was deleted", next_step="replay to another one")
    return found[0]


def _manual_request(conn: psycopg.Connection[Any], tenant_id: UUID, sync: Row, schedule: Row | None) -> RunRequest:
    now, shards = _time(conn)
    return RunRequest(
        tenant_id=tenant_id,
        shard=shard_of(tenant_id, shards),
        schedule_id=schedule["schedule_id"] if schedule else None,
        spec_version=schedule["spec_version"] if schedule else None,
        total_timeout_ms=schedule["total_timeout_ms"] if schedule else 86_400_000,
        max_buffer=schedule["max_buffer"] if schedule else 100,
        trigger=Trigger.MANUAL,
        nominal_at=now,
        due_at=now,
        priority=2,
        **sync,
    )


def _triggered(admission: Admission) -> Triggered:
    if admission.run_id is not None:
        return Triggered(
            run_id=admission.run_id,
            run=admission.ready,
            is_new=True,
            is_waiting=admission.is_waiting,
            interrupted=admission.interrupted,
        )
    if admission.open_run_id is None:
        raise RetryableError("a run of the sync was made at this very instant", next_step="trigger it again", retry_after_s=0.1)
    return Triggered(run_id=admission.open_run_id, run=None, is_new=False, is_refused=admission.reason == "buffer_full")


def _triggered_before(conn: psycopg.Connection[Any], tenant_id: UUID, idem_key: str) -> Triggered | None:
    found = select(conn, _RUN["run_by_idem_key"], {"tenant_id": tenant_id, "idem_key": idem_key})
    if not found:
        return None
    state = found[0]["state"]
    run = ready_run(found[0]) if state == "queued" else None
    return Triggered(run_id=found[0]["run_id"], run=run, is_new=False, is_waiting=state == "buffered")


def _time(conn: psycopg.Connection[Any]) -> tuple[datetime, int]:
    row = select(conn, _SQL["time_now"], {})[0]
    return instant(row, "now"), int(row["shards"] or 1)


def _check_syncs(conn: psycopg.Connection[Any], specs: Sequence[ScheduleSpec]) -> None:
    """The syncs exist, and have the parameters that are given."""
    ids = list({spec.sync_id for spec in specs})
    parameters = {row["sync_id"]: row["parameters"] for row in select(conn, _SQL["sync_find"], {"sync_ids": ids})}
    for spec in specs:
        if spec.sync_id not in parameters:
            _sync_of(conn, spec.sync_id)
        if spec.params != _NO_PARAMETERS:
            check_params(parameters[spec.sync_id], spec.params)


def keep_syncs(conn: psycopg.Connection[Any], sync_ids: Collection[UUID]) -> None:
    """Keep syncs from being deleted before we commit what was just made of them: then whoever deletes them sees it.

    :raises ConfigError: one of them was deleted meanwhile.
    """
    if sync_ids:
        kept = {row["sync_id"] for row in select(conn, _SQL["sync_keep"], {"sync_ids": list(sync_ids)})}
        for sync_id in set(sync_ids) - kept:
            raise _no_sync(sync_id)


def _no_sync(sync_id: UUID) -> ConfigError:
    return ConfigError(f"there is no sync {sync_id}", next_step="name a sync that wsync.yaml declares, after `wsync-engine apply`")


def _sync(conn: psycopg.Connection[Any], spec: ScheduleSpec) -> Row:
    sync = _sync_of(conn, spec.sync_id)
    check_params(sync.pop("parameters"), spec.params)
    return sync


def _sync_of(conn: psycopg.Connection[Any], sync_id: UUID) -> Row:
    found = select(conn, _SQL["sync_find"], {"sync_ids": [sync_id]})
    if not found:
        raise _no_sync(sync_id)
    return found[0]


def _definition(conn: psycopg.Connection[Any], schedule_id: UUID) -> Row:
    found = select(conn, _SQL["schedule_get"], {"schedule_id": schedule_id})
    if not found:
        raise ConfigError(f"there is no schedule {schedule_id}", next_step="`wsync-engine schedules list` shows those there are")
    return _in_utc(found[0], INSTANTS)


def _locked_clock(conn: psycopg.Connection[Any], schedule_id: UUID) -> Row:
    found = select(conn, _SQL["clock_lock"], {"schedule_id": schedule_id})
    if not found:
        raise ConfigError(f"there is no schedule {schedule_id}", next_step="`wsync-engine schedules list` shows those there are")
    return _in_utc(found[0], (*_CLOCK_INSTANTS, "last_nominal_at"))


def _in_utc(row: Row, names: Sequence[str]) -> Row:
    """Instants come in the session's zone, in which they neither compare nor add up."""
    return {**row, **{name: row[name].astimezone(UTC) for name in names if row[name] is not None}}


def _registered(conn: psycopg.Connection[Any], tenant_id: UUID, specs: Sequence[ScheduleSpec]) -> dict[str, StoredSchedule]:
    """By name, the schedules that are there already and are declared the same. Their clocks are read, not locked: an entry that is old by the
    time it is announced is refused by the index for its rev, or dropped at its fire.
    """
    params = [orjson.dumps(spec.params, default=dict).decode() for spec in specs]
    columns = {"tenant_id": tenant_id, "names": [spec.name for spec in specs], "params": params}
    old_by_name = {row["name"]: row for row in select(conn, _SQL["schedule_find"], columns)} if specs else {}
    for spec in specs:
        old = old_by_name.get(spec.name)
        if old is None:
            raise RetryableError(f"schedule `{spec.name}` was deleted meanwhile", next_step="create it again", retry_after_s=0.1)
        if not old["has_params"] or not is_declared(spec, old):
            raise ConfigError(f"schedule `{spec.name}` exists and is declared differently", next_step="change it instead of creating it")
    return {
        name: _stored(old["schedule_id"], old["spec_version"], rev=old["rev"], following=_kept(_in_utc(old, _CLOCK_INSTANTS)))
        for name, old in old_by_name.items()
    }


def _next_columns(following: Nominal | None) -> dict[str, datetime | None]:
    return {
        "next_nominal_at": following.nominal_at if following else None,
        "next_due_at": following.due_at if following else None,
    }


def _kept(clock: Row) -> Nominal | None:
    return Nominal(clock["next_nominal_at"], clock["next_due_at"]) if clock["next_nominal_at"] else None


def _set_clock(
    conn: psycopg.Connection[Any], schedule_id: UUID, following: Nominal | None, *, last_nominal_at: datetime | None = None
) -> int:
    columns = {"schedule_id": schedule_id, "last_nominal_at": last_nominal_at, **_next_columns(following)}
    return int(select(conn, _SQL["clock_set"], columns)[0]["rev"])


def _stored(schedule_id: UUID, version: int, *, rev: int, following: Nominal | None, is_new: bool = False) -> StoredSchedule:
    entry = DueEntry(schedule_id=schedule_id, rev=rev, due_at=following.due_at if following else None)
    next_nominal_at = following.nominal_at if following else None
    return StoredSchedule(schedule_id=schedule_id, spec_version=version, entry=entry, next_nominal_at=next_nominal_at, is_new=is_new)
