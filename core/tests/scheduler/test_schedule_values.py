"""What a schedule can't be declared as is refused, with its name, its field and what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.scheduler.backfill import create_backfill
from wsync_engine.scheduler.caps import set_cap
from wsync_engine.scheduler.runs import request_cancel
from wsync_engine.scheduler.schedules import (
    change_schedule,
    create_schedule,
    create_schedules,
    delete_schedule,
    pause_schedule,
    resume_schedule,
    trigger_run,
)
from wsync_engine.scheduler.spec import check_params
from wsync_sdk.errors import ConfigError

from .conftest import START, spec


@pytest.mark.parametrize("field", ["once_at", "anchor_at", "start_at", "end_at"])
def test_an_instant_without_a_zone_is_refused_by_its_name(world: Any, field: str) -> None:
    wrong = spec(world, **{field: datetime(2027, 1, 1)})  # noqa: DTZ001
    stored = world.write(create_schedule, spec(world, sync_id=wrong.sync_id), actor="ann")

    with pytest.raises(ConfigError, match=f"`nightly`: `{field}` has no zone"):
        world.write(create_schedule, wrong, actor="ann")
    with pytest.raises(ConfigError, match=f"`nightly`: `{field}` has no zone"):
        world.write(change_schedule, stored.schedule_id, wrong, actor="ann")


def test_what_can_never_fire_or_is_not_available_is_refused(world: Any) -> None:
    for options in ({"cron": "61 * * * *"}, {"overlap": "sometimes"}, {"sync_id": uuid7()}, {"end_at": world.now}):
        with pytest.raises(ConfigError):
            world.write(create_schedule, spec(world, **options), actor="ann")


@pytest.mark.parametrize(("options", "message"), [
    ({"kind": "interval", "cron": None, "every_ms": 60_000}, "`zone` goes with `cron`"),
    ({"total_timeout_ms": 3_600_000}, r"`attempt_timeout_ms` \(6h\) is longer than `total_timeout_ms` \(1h\)"),
])  # fmt: skip
def test_a_value_that_another_one_contradicts_is_refused_and_does_not_block_what_was_stored_with_it(
    world: Any, options: dict[str, Any], message: str
) -> None:
    declared = spec(world, **options)
    with pytest.raises(ConfigError, match=message):
        world.write(create_schedule, declared, actor="ann")

    stored = world.write(create_schedule, spec(world, sync_id=declared.sync_id), actor="ann")
    with pytest.raises(ConfigError, match=message):
        world.write(change_schedule, stored.schedule_id, declared, actor="ann")
    older = {**options, **({"anchor_at": world.now} if "every_ms" in options else {})}  # what an engine before this rule stored
    world.engine.execute(f"UPDATE wsync.schedule SET {', '.join(f'{name} = %({name})s' for name in older)}", older)

    assert world.write(change_schedule, stored.schedule_id, replace(declared, priority=2), actor="ann").spec_version == 2


WRONG_VALUES: list[tuple[str, Any]] = [
    *(("priority", value) for value in (-1, 3, True, 1.0, "1", None)),
    *(("jitter_ms", value) for value in (-1, 3_600_001)),
    *(("catchup_ms", value) for value in (9_999, 10**18)),
    *(("max_buffer", value) for value in (0, 1_001)),
    *(("max_runs", value) for value in (0, 2**31)),
    *(("max_attempts", value) for value in (0, 2**31)),
    *((name, value) for name in ("backoff_base_ms", "backoff_cap_ms") for value in (-1, 2**31)),
    *((name, value) for name in ("stall_ms", "pause_after_failures") for value in (0, 2**31)),
    *((name, value) for name in ("attempt_timeout_ms", "total_timeout_ms") for value in (0, 2**63)),
    ("catchup_mode", "sometimes"),
    ("catchup_mode", []),
    ("kind", "weekly"),
    *((name, datetime(1, 1, 1, tzinfo=zone)) for name in ("start_at", "end_at") for zone in (UTC, timezone(timedelta(hours=2)))),
    ("start_at", datetime(9999, 12, 31, tzinfo=UTC)),
    ("start_at", "2027-01-01"),
    ("end_at", datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=2)))),
]


@pytest.mark.parametrize(("field", "value"), WRONG_VALUES, ids=repr)
def test_a_value_that_a_field_cannot_have_is_refused_with_schedule_and_field(world: Any, field: str, value: Any) -> None:
    declared = spec(world)
    wrong = replace(declared, **{field: value})

    for specs in ([wrong], [replace(declared, name="other", priority=2, jitter_ms=7), wrong]):
        with pytest.raises(ConfigError, match=f"schedule `nightly`: `{field}`") as refused:
            world.write(create_schedules, specs, actor="ann")
        assert refused.value.next_step
    stored = world.write(create_schedule, declared, actor="ann")
    with pytest.raises(ConfigError, match=f"schedule `nightly`: `{field}`"):
        world.write(change_schedule, stored.schedule_id, wrong, actor="ann")


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", None, "x" * 201], ids=lambda name: repr(name)[:9])
def test_a_name_that_cannot_be_stored_is_refused(world: Any, name: Any) -> None:
    wrong = spec(world, name=name)

    for specs in ([wrong], [replace(wrong, name="good"), wrong]):
        with pytest.raises(ConfigError, match="can't be named"):
            world.write(create_schedules, specs, actor="ann")


@pytest.mark.parametrize("value", ["a\0b", "\ud800", float("nan"), 2**63], ids=repr)
def test_a_schedules_parameter_that_cannot_be_stored_is_refused(world: Any, value: Any) -> None:
    declared = spec(world, sync_id=world.new_sync("x"))
    stored = world.write(create_schedule, declared, actor="ann")
    wrong = replace(declared, name="other", params={"x": value})

    for specs in ([wrong], [replace(wrong, name="good", params={"x": 1}), wrong]):
        with pytest.raises(ConfigError, match="parameter `x`"):
            world.write(create_schedules, specs, actor="ann")
    with pytest.raises(ConfigError, match="parameter `x`"):
        world.write(change_schedule, stored.schedule_id, wrong, actor="ann")


CRON: dict[str, Any] = {"kind": "cron", "cron": "* * * * *", "zone": "UTC", "every_ms": None, "once_at": None}
INTERVAL: dict[str, Any] = {"kind": "interval", "cron": None, "zone": None, "every_ms": 60_000, "once_at": None}
ONCE: dict[str, Any] = {"kind": "once", "cron": None, "zone": None, "every_ms": None, "once_at": START + timedelta(days=1)}


@pytest.mark.parametrize(("kind", "extra"), [
    *((CRON, name) for name in ("every_ms", "anchor_at", "once_at")),
    *((INTERVAL, name) for name in ("cron", "zone", "once_at")),
    *((ONCE, name) for name in ("cron", "zone", "every_ms", "anchor_at")),
], ids=lambda x: x if isinstance(x, str) else x["kind"])  # fmt: skip
def test_a_field_that_the_kind_has_no_use_for_is_refused(world: Any, kind: dict[str, Any], extra: str) -> None:
    declared = spec(world, **kind)
    wrong = replace(declared, **{extra: {**CRON, "every_ms": 60_000, "anchor_at": START, "once_at": START + timedelta(days=1)}[extra]})

    with pytest.raises(ConfigError, match=f"schedule `nightly`: `{extra}` goes with"):
        world.write(create_schedule, wrong, actor="ann")
    stored = world.write(create_schedule, declared, actor="ann")
    with pytest.raises(ConfigError, match=f"schedule `nightly`: `{extra}` goes with"):
        world.write(change_schedule, stored.schedule_id, wrong, actor="ann")


@pytest.mark.parametrize("older", [{"every_ms": 60_000}, {"max_attempts": 0}, {"backoff_cap_ms": -1}], ids=repr)
def test_what_an_older_engine_stored_is_no_reason_to_refuse_another_change(world: Any, older: dict[str, Any]) -> None:
    declared = spec(world)
    stored = world.write(create_schedule, declared, actor="ann")
    world.engine.execute(f"UPDATE wsync.schedule SET {', '.join(f'{name} = %({name})s' for name in older)}", older)

    changed = world.write(change_schedule, stored.schedule_id, replace(declared, cron="0 * * * *", **older), actor="ann")

    assert changed.spec_version == 2


@pytest.mark.parametrize("value", [float("nan"), 2**63, "a\0b", "\ud800", [1], {}], ids=repr)
def test_a_parameters_value_that_cannot_be_stored_is_refused_with_its_name(value: object) -> None:
    with pytest.raises(ConfigError, match="parameter `since`") as refused:
        check_params({"since": None}, {"since": value})

    assert refused.value.next_step
    check_params({"since": None}, {"since": -(2**63)})


BAD_TEXTS = ["", "a\0b", "\ud800", "x" * 3_000]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: repr(text[:5]))
def test_an_actor_a_note_or_a_key_that_cannot_be_stored_is_refused_and_nothing_is_written(world: Any, text: str) -> None:
    declared = spec(world)
    stored = world.write(create_schedule, declared, actor="ann")
    run_id = world.write(trigger_run, sync_id=declared.sync_id, actor="ann").run_id
    before = world.rows("SELECT count(*) FROM wsync.run_event")
    cap = {"max_running": 1, "actor": text}
    backfill = {"from_at": world.now - timedelta(hours=2), "to_at": world.now - timedelta(hours=1)}

    for field, call in (
        ("actor", lambda: world.write(create_schedule, replace(declared, name="other"), actor=text)),
        ("actor", lambda: world.write(change_schedule, stored.schedule_id, declared, actor=text)),
        ("actor", lambda: world.write(resume_schedule, stored.schedule_id, actor=text)),
        ("actor", lambda: world.write(delete_schedule, stored.schedule_id, actor=text)),
        ("actor", lambda: world.write(trigger_run, sync_id=declared.sync_id, actor=text)),
        ("actor", lambda: world.write(create_backfill, stored.schedule_id, **backfill, actor=text)),
        ("actor", lambda: world.write(set_cap, "T", world.tenant_id, **cap)),
        ("actor", lambda: request_cancel(world.engine, run_id, reason="no need", actor=text)),
        ("reason", lambda: request_cancel(world.engine, run_id, reason=text, actor="ann")),
        ("note", lambda: world.write(pause_schedule, stored.schedule_id, note=text, actor="ann")),
        ("note", lambda: world.write(create_backfill, stored.schedule_id, **backfill, actor="ann", note=text)),
        ("idem_key", lambda: world.write(trigger_run, sync_id=declared.sync_id, actor="ann", idem_key=text)),
    ):
        if text or field in ("actor", "idem_key"):
            with pytest.raises(ConfigError, match=f"`{field}` can't be"):
                call()
    assert world.rows("SELECT count(*) FROM wsync.run_event") == before


@pytest.mark.parametrize("params", [None, [1], "x"], ids=repr)
def test_parameters_that_are_no_mapping_are_refused(world: Any, params: Any) -> None:
    declared = spec(world)
    stored = world.write(create_schedule, declared, actor="ann")
    wrong = replace(declared, name="other", params=params)

    with pytest.raises(ConfigError, match="parameters are no mapping"):
        world.write(create_schedules, [wrong], actor="ann")
    with pytest.raises(ConfigError, match="parameters are no mapping"):
        world.write(change_schedule, stored.schedule_id, wrong, actor="ann")
    if params is not None:
        with pytest.raises(ConfigError, match="parameters are no mapping"):
            world.write(trigger_run, sync_id=declared.sync_id, actor="ann", params=params)
