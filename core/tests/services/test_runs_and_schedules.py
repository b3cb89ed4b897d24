from __future__ import annotations

import json
from uuid import UUID

import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.model.run import RunState
from wsync_engine.scheduler.janitor import Retention, tidy
from wsync_engine.services.runs import approve_run, cancel_run, discard_run, find_run, list_runs, retry_run, show_run
from wsync_engine.services.schedules import list_schedules, pause_schedule, resume_schedule, trigger_schedule
from wsync_engine.services.syncs import adopt_sync, resync_sync, trigger_sync
from wsync_sdk.errors import ConfigError

from .conftest import Store, with_schedule, with_sync


@pytest.fixture
def applied(store: Store) -> Store:
    store.apply()
    return store


def triggered(store: Store, *, dry_run: bool = False) -> UUID:
    return trigger_sync(store.api, store.tenant_id, "customers", actor="test", dry_run=dry_run).run_id


def blocked(store: Store, *, dry_run: bool = False, base_version: int = 0) -> UUID:
    run_id = triggered(store, dry_run=dry_run)
    store.engine.execute(
        "UPDATE wsync.run SET state = 'blocked', guards = '[\"too many deletes\"]', base_version = %s WHERE run_id = %s",
        [base_version, run_id],
    )
    return run_id


def state_of(store: Store, run_id: UUID) -> str:
    return str(store.rows("SELECT state::text FROM wsync.run WHERE run_id = %s", run_id)[0]["state"])


def kinds_of(store: Store, run_id: UUID) -> list[str]:
    return [event["kind"] for event in show_run(store.api, store.tenant_id, run_id).events]


def test_a_second_trigger_while_a_run_is_open_makes_none(applied: Store) -> None:
    first = trigger_sync(applied.api, applied.tenant_id, "customers", actor="test")

    second = trigger_sync(applied.api, applied.tenant_id, "customers", actor="test")

    assert (second.run_id, second.run, second.is_new) == (first.run_id, None, False)


def test_a_sync_that_is_not_there_is_refused_by_name(applied: Store) -> None:
    with pytest.raises(ConfigError, match="no sync `nobody`"):
        trigger_sync(applied.api, applied.tenant_id, "nobody", actor="test")


def test_runs_are_listed_newest_first_by_sync_and_state(applied: Store) -> None:
    older = triggered(applied, dry_run=True)
    newer = triggered(applied)

    assert [row["run_id"] for row in list_runs(applied.api, applied.tenant_id)] == [newer, older]
    with pytest.raises(ConfigError, match="there is no sync `nobody`"):
        list_runs(applied.api, applied.tenant_id, sync="nobody")
    assert list_runs(applied.api, applied.tenant_id, states=[RunState.FAILED]) == []


def test_a_run_is_found_by_the_first_digits_of_its_id(applied: Store) -> None:
    run_id = triggered(applied)

    assert find_run(applied.api, applied.tenant_id, run_id.hex[:14]) == run_id
    with pytest.raises(ConfigError):
        find_run(applied.api, applied.tenant_id, "ffffffff")
    with pytest.raises(ConfigError):
        find_run(applied.api, applied.tenant_id, "%%%%%")


def test_a_queued_run_is_cancelled_at_once_and_only_once(applied: Store) -> None:
    run_id = triggered(applied)

    assert cancel_run(applied.api, applied.tenant_id, run_id, reason="wrong", actor="test") == RunState.CANCELLED
    with pytest.raises(ConfigError, match="has ended"):
        cancel_run(applied.api, applied.tenant_id, run_id, reason="wrong", actor="test")


def test_an_approved_run_is_queued_and_tells_who_approved_it(applied: Store) -> None:
    run_id = blocked(applied)

    ready = approve_run(applied.api, applied.tenant_id, run_id, actor="ann")

    shown = show_run(applied.api, applied.tenant_id, run_id).run
    assert (ready.run_id, shown["state"], shown["approved_by"]) == (run_id, "queued", "ann")
    assert kinds_of(applied, run_id) == ["run.queued", "run.approved"]


def test_a_dry_run_is_not_approved_while_another_run_is_open(applied: Store) -> None:
    dry = blocked(applied, dry_run=True)
    other = triggered(applied)

    with pytest.raises(ConfigError, match="another run"):
        approve_run(applied.api, applied.tenant_id, dry, actor="ann")
    cancel_run(applied.api, applied.tenant_id, other, reason="", actor="test")
    approve_run(applied.api, applied.tenant_id, dry, actor="ann")

    assert applied.rows("SELECT exclusive FROM wsync.run WHERE run_id = %s", dry) == [{"exclusive": True}]


def test_a_plan_whose_base_has_moved_on_is_not_approved(applied: Store) -> None:
    run_id = blocked(applied)
    applied.engine.execute(
        "INSERT INTO wsync.snapshot (sync_id, tenant_id, version, manifest) SELECT sync_id, tenant_id, 1, '{}' FROM wsync.sync"
    )

    with pytest.raises(ConfigError, match="stale plan"):
        approve_run(applied.api, applied.tenant_id, run_id, actor="ann")

    assert state_of(applied, run_id) == "blocked"


def test_a_run_is_not_approved_after_its_sync_was_changed(applied: Store) -> None:
    run_id = blocked(applied)
    applied.apply(with_sync(stream="other_people"))

    with pytest.raises(ConfigError, match="the sync was changed"):
        approve_run(applied.api, applied.tenant_id, run_id, actor="ann")


def test_a_discarded_run_ends_and_can_not_be_approved_any_more(applied: Store) -> None:
    run_id = blocked(applied)

    discard_run(applied.api, applied.tenant_id, run_id, actor="ann")

    assert state_of(applied, run_id) == "cancelled"
    with pytest.raises(ConfigError, match="not blocked"):
        approve_run(applied.api, applied.tenant_id, run_id, actor="ann")


def test_a_run_of_another_tenant_is_not_there(applied: Store) -> None:
    with pytest.raises(ConfigError):
        show_run(applied.api, applied.tenant_id, uuid7())


def test_a_schedule_is_paused_resumed_and_triggered_by_name(applied: Store) -> None:
    pause_schedule(applied.api, applied.tenant_id, "customers", note="holiday", actor="ann")
    paused = list_schedules(applied.api, applied.tenant_id)[0]
    made = trigger_schedule(applied.api, applied.tenant_id, "customers", actor="ann")
    resume_schedule(applied.api, applied.tenant_id, "customers", actor="ann")
    resumed = list_schedules(applied.api, applied.tenant_id)[0]

    assert (paused["paused"], paused["pause_note"], paused["next_due_at"]) == (True, "holiday", None)
    assert made.is_new
    assert (resumed["paused"], resumed["next_due_at"] is not None) == (False, True)


def test_a_resync_is_counted_so_that_a_second_request_is_not_lost(applied: Store) -> None:
    for _ in range(2):
        asked = resync_sync(applied.api, applied.tenant_id, "customers", actor="test")

    assert (asked.entries, asked.deletes) == (0, True)
    assert applied.rows("SELECT resync FROM wsync.sync") == [{"resync": 2}]
    assert len(applied.rows("SELECT 1 FROM wsync.run_event WHERE kind = 'sync.resync_requested'")) == 2


def test_an_adoption_is_a_run_of_its_own_and_waits_for_no_other(applied: Store) -> None:
    adopted = adopt_sync(applied.api, applied.tenant_id, "customers", actor="test")

    assert applied.rows("SELECT adopt, exclusive FROM wsync.run") == [{"adopt": True, "exclusive": True}]
    with pytest.raises(ConfigError, match=f"run {adopted.run_id} of the sync is open"):
        adopt_sync(applied.api, applied.tenant_id, "customers", actor="test")


def test_a_run_that_once_waited_for_a_terminated_one_can_be_hastened_when_it_waits_for_an_attempt(applied: Store) -> None:
    run_id = triggered(applied)
    applied.engine.execute("UPDATE wsync.run SET waits_for = %s, ready_at = now() + interval '1 hour' WHERE run_id = %s", [uuid7(), run_id])
    with pytest.raises(ConfigError, match="queued"):
        retry_run(applied.api, applied.tenant_id, run_id, actor="ann")
    applied.engine.execute("UPDATE wsync.run SET epoch = 1, attempt = 1 WHERE run_id = %s", [run_id])

    assert retry_run(applied.api, applied.tenant_id, run_id, actor="ann").run_id == run_id


def test_a_run_that_failed_long_ago_or_of_a_deleted_schedule_is_made_anew(applied: Store) -> None:
    schedule_id = applied.rows("SELECT schedule_id FROM wsync.schedule")[0]["schedule_id"]
    run_id = trigger_schedule(applied.api, applied.tenant_id, "customers", actor="ann").run_id
    applied.engine.execute(
        "UPDATE wsync.run SET state = 'failed', finished_at = now() - interval '25 hours' WHERE run_id = %s RETURNING run_id", [run_id]
    )
    tidy(applied.engine, Retention())
    assert applied.rows("SELECT run_id FROM wsync.run") == []

    archived = retry_run(applied.api, applied.tenant_id, run_id, actor="ann")
    with pytest.raises(ConfigError, match="the run has ended: failed"):
        cancel_run(applied.api, applied.tenant_id, run_id, reason="late", actor="ann")
    cancel_run(applied.api, applied.tenant_id, archived.run_id, reason="again", actor="ann")
    applied.apply(with_schedule(None))
    unscheduled = retry_run(applied.api, applied.tenant_id, archived.run_id, actor="ann")

    ids = {row["run_id"]: row["schedule_id"] for row in applied.rows("SELECT run_id, schedule_id FROM wsync.run")}
    assert ids == {archived.run_id: schedule_id, unscheduled.run_id: None}


@pytest.mark.parametrize(
    ("counts", "after"), [('{"unsure": 0, "not_sent": 0}', "60"), ('{"unsure": 1}', "30"), ('{"not_sent": 1}', "30"), ("{}", "60")]
)
def test_a_run_that_reads_what_changed_shows_where_its_cursor_came_to(applied: Store, counts: str, after: str) -> None:
    run_id = triggered(applied)
    cursors = [{"last_sync_at": "2026-03-01T00:00:00+00:00", "cursor": {"kind": "integer", "value": value}} for value in ("30", "60")]
    log = {"part": {"former": cursors[0], "settled": cursors[1], "is_whole": False}}
    applied.engine.execute("UPDATE wsync.run SET change_log = %s, counts = %s WHERE run_id = %s", [json.dumps(log), counts, run_id])

    shown = show_run(applied.api, applied.tenant_id, run_id).run

    assert (shown["cursor"], "part" in shown) == ({"before": "30", "after": after}, False)


def test_a_run_that_reads_everything_shows_no_cursor(applied: Store) -> None:
    assert "cursor" not in show_run(applied.api, applied.tenant_id, triggered(applied)).run
