"""Runs to load the index with, and what must be true of its contents after every call."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import redis

from wsync_engine.index.entries import ReadyRun
from wsync_engine.index.layout import key
from wsync_engine.model.ids import uuid7

__all__ = ["NOON", "assert_sound", "ready_run", "resources_of", "runs_in"]

NOON = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def ready_run(
    tenant_id: UUID,
    *,
    connection: int | None = None,
    sync: int | None = None,
    credential: int | None = None,
    priority: int = 1,
    queue: int = 0,
    due_at: datetime = NOON,
    ready_at: datetime | None = None,
) -> ReadyRun:
    """A run whose resources are its own where they are not named."""
    resources = [UUID(int=x) if x is not None else uuid7() for x in (sync, connection, credential)]
    return ReadyRun(
        tenant_id=tenant_id,
        run_id=uuid7(),
        sync_id=resources[0],
        connection_id=resources[1],
        credential_id=resources[2],
        priority=priority,
        due_at=due_at,
        ready_at=ready_at or due_at,
        queue=queue,
    )


def runs_in(client: redis.Redis, *, shard: int = 0) -> dict[str, list[str]]:
    """Members by the place they are in."""
    return _places(_read(client, shard))


def resources_of(member: str) -> list[str]:
    """The four resources of a member, the tenant first."""
    return ["T" + member[3:35], *member[83:].split(",")]


def assert_sound(client: redis.Redis, *, shard: int = 0) -> None:
    """Each run is in one place, every count is what it counts, and whoever may be served is in line."""
    found = _read(client, shard)
    places = _places(found)
    members = [member for place in places.values() for member in place]
    assert len(members) == len(set(members))
    used: Counter[str] = Counter(resource for member in places["held"] for resource in resources_of(member))
    waiting: Counter[str] = Counter(entry[:33] for entry in found["wait"])
    assert {resource: int(count) for resource, count in found["used"].items()} == used
    assert {resource: int(count) for resource, count in found["waiting"].items()} == waiting
    assert set(found["lease"]) == set(found["held"])

    active = {entry[:3] + entry[24:] for entry in found["act"]}
    assert active == {field for field, value in found["pass"].items() if value[0] == "a"}
    outs = {f"{group}|{tenant}" for tenant, groups in found["out"].items() for group in groups.split(",") if group}
    assert not active & outs
    assert {member[:35] for member in places["rq"]} <= active | outs

    waits = {entry[-184:][50:82]: entry[0] for entry in found["wait"]}
    assert {run: value[0] for run, value in found["parked"].items() if value[0] != "-"} == waits
    assert set(found["parked"]) <= {member[50:82] for member in places["rq"] + places["wait"]}
    assert set(found["urgent"].values()) <= set(places["rq"] + places["wait"])
    _assert_no_one_waits_for_nothing(found, places["rq"], used)


def breaker_of(resource: str) -> str:
    """Of a credential, the resource under which a breaker's cap is stored; of any other, itself."""
    return f"B{resource[1:]}" if resource[0] == "K" else resource


def _assert_no_one_waits_for_nothing(found: dict[str, Any], queued: list[str], used: Counter[str]) -> None:
    """Where a resource has room and a group waits for it, one of the group that needs it is in line."""
    caps = {resource: int(cap.split("|")[0]) for resource, cap in found["cap"].items()}
    urgent = {tenant: resources_of(member) for tenant, member in found["urgent"].items()}
    for entry in found["wait"]:
        resource, member = entry[:33], entry[-184:]
        kept = resource in urgent.get(member[3:35], ())
        most = min(caps.get(name, 10**9) for name in (resource, breaker_of(resource)))
        if used[resource] + kept < most:
            assert any(other[:35] == member[:35] and resource in resources_of(other) for other in queued)


def _read(client: redis.Redis, shard: int) -> dict[str, Any]:
    sets, hashes = ("rq", "wait", "delay", "lease", "act"), ("held", "used", "pass", "out", "parked", "urgent", "cap", "waiting")
    with client.pipeline(transaction=True) as pipeline:
        for name in sets:
            pipeline.zrange(key(shard, name), 0, -1)
        for name in hashes:
            pipeline.hgetall(key(shard, name))
        replies = pipeline.execute()
    found: dict[str, Any] = {name: [x.decode() for x in reply] for name, reply in zip(sets, replies[: len(sets)], strict=True)}
    for name, reply in zip(hashes, replies[len(sets) :], strict=True):
        found[name] = {field.decode(): value.decode() for field, value in reply.items()}
    return found


def _places(found: dict[str, Any]) -> dict[str, list[str]]:
    places = {name: [entry[-184:] for entry in found[name]] for name in ("rq", "wait", "delay")}
    return {**places, "held": [value[:184] for value in found["held"].values()]}
