"""What `wsync.yaml` declares: connections, syncs and schedules of one tenant; and the form in which a sync is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from wsync_engine.model.run import OverlapPolicy, Priority
from wsync_engine.model.sync import Cursor, Duplicates, FromRun, Guards, MappingEntry, Mode, Read, Scalar, SyncSpec
from wsync_sdk.errors import StateError
from wsync_sdk.nulls import Nulls

__all__ = ["ConnectionSpec", "Declaration", "ScheduleDeclaration", "SyncDeclaration", "sync_spec_from_json", "sync_spec_to_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSpec:
    """A configured source or sink, as declared: secrets are references (`env:NAME`, `file:PATH`)."""

    name: str
    plugin: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDeclaration:
    """When a sync runs: `cron` in `timezone`, every `every_ms` from `anchor_at` on, or once at `once_at`."""

    cron: str | None = None
    timezone: str = "UTC"
    every_ms: int | None = None
    anchor_at: datetime | None = None
    once_at: datetime | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None
    max_runs: int | None = None
    priority: Priority = Priority.MEDIUM
    jitter_ms: int = 0
    overlap: OverlapPolicy = OverlapPolicy.SKIP
    max_buffer: int = 100
    catchup_ms: int = 3_600_000
    catchup_mode: Literal["latest", "all"] = "latest"
    max_attempts: int = 3
    attempt_timeout_ms: int = 21_600_000
    total_timeout_ms: int = 86_400_000
    stall_ms: int = 600_000
    pause_after_failures: int | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncDeclaration:
    """A sync and, if it has one, its schedule, which bears the sync's name. `queue`: whose workers execute it."""

    spec: SyncSpec
    queue: str = "default"
    schedule: ScheduleDeclaration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """Everything that one file declares."""

    tenant: str
    connections: tuple[ConnectionSpec, ...] = ()
    syncs: tuple[SyncDeclaration, ...] = ()


def sync_spec_to_json(spec: SyncSpec) -> dict[str, Any]:
    """The sync as plain JSON values, as stored in `wsync.sync.spec`; equal specs give equal values.

    Every field is there but what engines before do not know, where it is not used: they go on reading it.
    """
    stored = asdict(spec)
    reading = {name: stored.pop(name) for name in ("read", "cursor")}
    nulls = stored.pop("nulls")
    return {
        **stored,
        "guards": _guards_to_json(spec.guards),
        **({} if spec.read is Read.FULL else {**reading, "read": spec.read.value}),
        **({} if nulls is None else {"nulls": nulls.value}),
        "mode": spec.mode.value,
        "key": list(spec.key),
        "mapping": [_entry_to_json(entry) for entry in spec.mapping],
        "parameters": {name: {"from": x.name} if isinstance(x, FromRun) else x for name, x in spec.parameters.items()},
    }


def _guards_to_json(guards: Guards) -> dict[str, Any]:
    """Without what engines before do not know, where it is not used."""
    stored = asdict(guards)
    if not guards.allow_schema_change:
        del stored["allow_schema_change"]
    return stored


def _entry_to_json(entry: MappingEntry) -> dict[str, Any]:
    """Without what engines before do not know, where it is not used: they go on reading it."""
    stored = asdict(entry)
    columns, nulls = stored.pop("columns"), stored.pop("nulls")
    return {**stored, **({"columns": list(columns)} if columns else {}), **({} if nulls is None else {"nulls": nulls.value})}


def _entry_from_json(stored: Mapping[str, Any]) -> MappingEntry:
    nulls = Nulls(stored["nulls"]) if stored.get("nulls") else None
    return MappingEntry(**{**stored, "columns": tuple(stored.get("columns", ())), "nulls": nulls})


def sync_spec_from_json(stored: Mapping[str, Any]) -> SyncSpec:
    """The sync that `sync_spec_to_json` was given, also one stored by an older engine that knew fewer fields.

    :raises StateError: what is stored is no sync that this engine knows.
    """
    try:
        return SyncSpec(
            **{
                **stored,
                "mode": Mode(stored["mode"]),
                "key": tuple(stored["key"]),
                "mapping": tuple(_entry_from_json(entry) for entry in stored.get("mapping", ())),
                "duplicates": Duplicates(**stored.get("duplicates", {})),
                "guards": Guards(**stored.get("guards", {})),
                "nulls": Nulls(stored["nulls"]) if stored.get("nulls") else None,
                "read": Read(stored.get("read", Read.FULL)),
                "cursor": Cursor(**stored["cursor"]) if stored.get("cursor") else None,
                "parameters": {
                    name: FromRun(name=x["from"]) if isinstance(x, Mapping) else x for name, x in stored.get("parameters", {}).items()
                },
            }
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise StateError("the stored sync can't be read by this engine", next_step="upgrade wsync-engine, or apply the file again") from exc
