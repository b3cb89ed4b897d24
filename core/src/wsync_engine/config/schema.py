"""The words of `wsync.yaml`: one pydantic model per block, checked once, turned into our own values."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from wsync_engine.model.calendar import is_in_calendar
from wsync_engine.model.declaration import ConnectionSpec, Declaration, ScheduleDeclaration, SyncDeclaration
from wsync_engine.model.durations import LONGEST_MS, duration_text
from wsync_engine.model.reading import reading_mistake
from wsync_engine.model.run import OverlapPolicy, Priority
from wsync_engine.model.sync import Cursor, Duplicates, FromRun, Guards, MappingEntry, Mode, Read, SyncSpec
from wsync_sdk.nulls import Nulls

__all__ = ["ConnectionBlock", "CursorBlock", "FileBlock", "GuardsBlock", "ScheduleBlock", "SyncBlock"]

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}$"
Name = Annotated[str, Field(pattern=NAME)]
Constant = bool | int | float | str | None
MOST_RUNS = 1_000_000_000
_DURATION = re.compile(r"(\d+)\s*(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def _milliseconds(value: Any) -> Any:
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration is a whole number with its unit: 30s, 15m, 6h, 1d")
    return int(match[1]) * _UNIT_MS[match[2]]


DurationMs = Annotated[int, BeforeValidator(_milliseconds, json_schema_input_type=Annotated[str, Field(pattern=f"^{_DURATION.pattern}$")])]


def _from_to(least_ms: int, most_ms: int = LONGEST_MS) -> AfterValidator:
    """The bounds of a duration, said as a person writes one."""

    def check(value: int) -> int:
        if not least_ms <= value <= most_ms:
            raise ValueError(f"it must be from {duration_text(least_ms)} to {duration_text(most_ms)}")
        return value

    return AfterValidator(check)


def _instant(value: Any, handler: ValidatorFunctionWrapHandler) -> datetime:
    try:
        found: datetime = handler(value)
    except ValidationError:
        raise ValueError("an instant has a date that there is, a time and an offset: 2027-01-31T08:00:00+01:00") from None
    if not is_in_calendar(found):
        raise ValueError("the calendar does not reach this instant")
    return found


Instant = Annotated[AwareDatetime, WrapValidator(_instant)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise ValueError("a value is a text, a number, true, false or null")  # noqa: TRY004  pydantic's contract
    return value


def _plain_or_from_run(value: Any) -> Any:
    if isinstance(value, list) or (isinstance(value, dict) and value != {"from": "nominal_at"}):
        raise ValueError("a value is a text, a number, true, false, null or `{from: nominal_at}`")
    return value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def misplaced(field: str, what: str, next_step: str) -> PydanticCustomError:
    """The refusal of one field of a block for what another one says; shown where that field was typed."""
    context = {"field": field, "what": what, "next_step": next_step}
    return PydanticCustomError("misplaced", "{what}", context)


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ConnectionBlock(_Block):
    """A configured source or sink."""

    plugin: str = Field(description="Name of the source or sink; `wsync-engine plugins list` shows them.")
    config: dict[str, Any] = Field(default_factory=dict, description="The plugin's own settings; secrets are `env:NAME` or `file:PATH`.")


class ScheduleBlock(_Block):
    """When the sync runs, and what happens when that meets a run that is still open, an outage or a failure."""

    cron: str | None = Field(default=None, description="Five fields, or @hourly, @daily, @weekly, @monthly, @yearly.")
    timezone: str = Field(default="UTC", description="IANA name, e.g. Europe/Berlin; for `cron` only.")
    every: Annotated[DurationMs, _from_to(1_000)] | None = Field(default=None, description="Instead of `cron`: 30s, 15m, 6h, 1d.")
    anchor: Instant | None = Field(
        default=None, description="For `every`: the instant that all others are counted from; by default when the schedule is made."
    )
    at: Instant | None = Field(default=None, description="Instead of `cron`: once, at this instant, e.g. 2027-01-31T08:00:00+01:00.")
    start: Instant | None = Field(default=None, description="No run before this instant.")
    end: Instant | None = Field(default=None, description="No run after this instant.")
    max_runs: int | None = Field(default=None, ge=1, le=MOST_RUNS, description="No run after this many.")
    priority: Literal["low", "medium", "high"] = Field(default="medium", description="Share of the workers where runs compete.")
    jitter: Annotated[DurationMs, _from_to(0, 3_600_000)] = Field(
        default=0, description="Spreads the start over this time, at most 1h, the same at each run.", validate_default=False
    )
    overlap: OverlapPolicy = Field(
        default=OverlapPolicy.SKIP,
        description="What a fire does while a run of the sync is open: `skip` it; let the first (`buffer_one`) or each (`buffer_all`) wait;"
        " end the open one in order (`cancel_other`) or at once (`terminate_other`); run beside it (`allow_all`).",
    )
    max_buffer: int = Field(default=100, ge=1, le=1_000, description="How many may wait, with `buffer_all`.")
    catch_up: Literal["latest", "all"] = Field(
        default="latest", description="After an outage: only the latest of the times that passed, or all of them."
    )
    catch_up_window: Annotated[DurationMs, _from_to(10_000)] = Field(
        default=3_600_000, description="Times that passed longer ago are counted as missed.", validate_default=False
    )
    max_attempts: int = Field(default=3, ge=1, le=100, description="Executions of a run that fails.")
    attempt_timeout: Annotated[DurationMs, _from_to(1_000)] = Field(
        default=21_600_000,
        description="An execution that takes longer is ended; at most `timeout`, which is the default where that is shorter.",
        validate_default=False,
    )
    timeout: Annotated[DurationMs, _from_to(1_000)] = Field(
        default=86_400_000,
        description="A run with all its attempts and waits that takes longer is ended.",
        validate_default=False,
    )
    stall_timeout: Annotated[DurationMs, _from_to(10_000, 20 * 86_400_000)] = Field(
        default=600_000, description="An execution whose counters stand still for this long is ended.", validate_default=False
    )
    pause_after_failures: int | None = Field(
        default=None, ge=1, le=MOST_RUNS, description="So many failed runs in a row pause the schedule."
    )
    parameters: dict[str, Annotated[Constant, BeforeValidator(_plain)]] = Field(
        default_factory=dict, description="Values of `:name` in the query, over the sync's own."
    )

    @model_validator(mode="after")
    def _one_timing(self) -> ScheduleBlock:
        if sum(timing is not None for timing in (self.cron, self.every, self.at)) != 1:
            raise ValueError("one of `cron`, `every` and `at` says when")
        if self.anchor is not None and self.every is None:
            raise misplaced("anchor", "`anchor` goes with `every`", "remove `anchor`, or write `every`")
        if "timezone" in self.model_fields_set and self.cron is None:
            other = "every" if self.at is None else "at"
            raise misplaced("timezone", f"`timezone` goes with `cron`: `{other}` knows no zone", "remove `timezone`, or write `cron`")
        return self

    @model_validator(mode="after")
    def _attempts_fit(self) -> ScheduleBlock:
        if "attempt_timeout" in self.model_fields_set and self.attempt_timeout > self.timeout:
            what = f"`attempt_timeout` ({duration_text(self.attempt_timeout)}) is longer than `timeout` ({duration_text(self.timeout)})"
            raise misplaced("attempt_timeout", what, "shorten `attempt_timeout`, or raise `timeout`")
        return self

    def to_declaration(self) -> ScheduleDeclaration:
        """As ours."""
        return ScheduleDeclaration(
            cron=self.cron,
            timezone=self.timezone,
            every_ms=self.every,
            anchor_at=self.anchor,
            once_at=self.at,
            start_at=self.start,
            end_at=self.end,
            max_runs=self.max_runs,
            priority=Priority[self.priority.upper()],
            jitter_ms=self.jitter,
            overlap=self.overlap,
            max_buffer=self.max_buffer,
            catchup_ms=self.catch_up_window,
            catchup_mode=self.catch_up,
            max_attempts=self.max_attempts,
            attempt_timeout_ms=min(self.attempt_timeout, self.timeout),
            total_timeout_ms=self.timeout,
            stall_ms=self.stall_timeout,
            pause_after_failures=self.pause_after_failures,
            params=self.parameters,
        )


def _names(value: Any) -> Any:
    if isinstance(value, list) and not (value and all(isinstance(name, str) and name for name in value)):
        raise ValueError("a list has the names of one or more columns")
    return value


class FieldBlock(_Block):
    """The long form of one field of the mapping."""

    column: str | None = Field(default=None, description="Column of the query.")
    columns: Annotated[tuple[str, ...] | None, BeforeValidator(_names, json_schema_input_type=list[str] | None)] = Field(
        default=None,
        min_length=1,
        description="Several columns of one type: a list of their values is sent, in this order and without NULLs.",
    )
    constant: Constant = Field(default=None, description="Instead of a column: this value for every row.")
    cast: Literal["text", "integer", "number", "boolean", "date", "timestamp", "json"] | None = Field(
        default=None, description="A value that can't be cast refuses the row."
    )
    required: bool = Field(default=False, description="NULL, or a list without values, refuses the row.")
    nulls: Nulls | None = Field(
        default=None,
        description="What is said of a NULL. send: the destination holds none from now on; omit: the field is left out, and the destination keeps what it"
        " has. By default what the sync's `nulls` says.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> FieldBlock:
        if [self.column is not None, self.columns is not None, "constant" in self.model_fields_set].count(True) != 1:
            raise ValueError("one of `column`, `columns` and `constant` says what is sent")
        if self.columns is not None and self.cast == "json":
            raise misplaced("cast", "a list of columns can't be cast to `json`", "make the JSON array in the query, or use another `cast`")
        if self.columns is not None and self.nulls is not None:
            raise misplaced("nulls", "a list of columns is never NULL: without values it is empty", "remove `nulls`")
        return self

    def to_entry(self, target: str) -> MappingEntry:
        """As ours."""
        return MappingEntry(target=target, **{**self.model_dump(), "columns": self.columns or ()})


def _long_form(value: Any) -> Any:
    match value:
        case str():
            return {"column": value}
        case list():
            return {"columns": value}
    return value


FieldEntry = Annotated[FieldBlock, BeforeValidator(_long_form, json_schema_input_type=str | list[str] | FieldBlock)]


class DuplicatesBlock(_Block):
    """What happens to rows of one key."""

    rule: Literal["refuse", "first", "last"] = Field(
        default="refuse", description="refuse all of them, or send the first or the last by the field `by`; a tie is refused."
    )
    by: str | None = Field(default=None, description="Field of the mapping that orders them; for first and last.")

    @model_validator(mode="after")
    def _ordered(self) -> DuplicatesBlock:
        if (self.rule == "refuse") != (self.by is None):
            raise ValueError("`by` goes with `first` and `last`, and only with these")
        return self


class GuardsBlock(_Block):
    """What stops a run before it delivers; null: no such guard."""

    max_delete_percent: float | None = Field(
        default=20.0, ge=0, le=100, description="More deletes than this share of the subscribers delivered."
    )
    max_deletes: int | None = Field(default=None, ge=0, description="More deletes than this.")
    allow_empty: bool = Field(default=False, description="true: a result without rows is no reason to stop.")
    max_shrink_percent: float | None = Field(
        default=None, ge=0, le=100, description="A result smaller by more than this than what was delivered."
    )
    max_rejection_percent: float | None = Field(
        default=None, ge=0, le=100, description="More than this share of the rows refused by the mapping."
    )
    allow_schema_change: bool = Field(
        default=False,
        description="true: rows are sent again without asking when a mapped column changes its type, or, without a mapping, one comes or goes.",
    )


def _duration_or_number(value: Any) -> Any:
    """Milliseconds as `(ms,)`, a number as itself."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("an overlap is a duration (10m, 1d) or a number")  # noqa: TRY004  pydantic's contract
    if isinstance(value, str):
        overlap_ms = _milliseconds(value)
        if overlap_ms > LONGEST_MS:
            raise ValueError(f"it must be at most {duration_text(LONGEST_MS)}")
        return (overlap_ms,)
    if not 0 <= value < float("inf"):
        raise ValueError("an overlap is no less than 0")
    return value


def _initial(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a value to begin at is a number, a date or time, or a text")  # noqa: TRY004  pydantic's contract
    return value


Overlap = Annotated[
    tuple[int] | int | float,
    BeforeValidator(_duration_or_number, json_schema_input_type=Annotated[str, Field(pattern=f"^{_DURATION.pattern}$")] | float),
]


class CursorBlock(_Block):
    """Where an incremental read begins: at the highest value that was read before, less an overlap."""

    column: str = Field(min_length=1, description="Of the result, mapped or not; whoever changes a row raises its value.")
    overlap: Overlap | None = Field(
        default=None,
        description="How far before the highest value is read again, for rows that were committed late: a duration for times and dates, a number for"
        " numbers. By default 10m for times, 1d for dates, else nothing.",
    )
    initial: Annotated[int | float | str, BeforeValidator(_initial)] | None = Field(
        default=None, description="Where the first run begins; by default everything is read."
    )

    def to_cursor(self) -> Cursor:
        """As ours."""
        overlap_ms = self.overlap[0] if isinstance(self.overlap, tuple) else None
        overlap_by = None if isinstance(self.overlap, tuple) else self.overlap
        return Cursor(column=self.column, overlap_ms=overlap_ms, overlap_by=overlap_by, initial=self.initial)


class FromRunBlock(_Block):
    """A parameter whose value is the run's own."""

    source: Literal["nominal_at"] = Field(alias="from", description="The time that the run stands for.")


class SyncBlock(_Block):
    """A query, where its result goes, and how."""

    source: str = Field(description="A connection.")
    sink: str = Field(description="A connection.")
    query: str | None = Field(
        default=None,
        min_length=1,
        description="SQL; instead of `table`. `:last_sync_time`, with `mode: upsert` or `append`: when the last run whose every change was settled began to read,"
        " a timestamp with zone; 1970-01-01T00:00:00Z at first.",
    )
    table: str | None = Field(default=None, min_length=1, description="A whole table; instead of `query`.")
    parameters: dict[str, Annotated[Constant | FromRunBlock, BeforeValidator(_plain_or_from_run)]] = Field(
        default_factory=dict,
        description="Values of `:name` in the query; a schedule's `parameters` and `--param` go over them."
        " `{from: nominal_at}`: the time that the run stands for, in a backfill one of the past, as a timestamp with zone."
        " A text given over it stays a text: write `:name::timestamptz` where both shall do.",
    )
    split_by: str | None = Field(
        default=None,
        description="A column of the result with an order, best an indexed one: up to 16 ranges of it, of 500,000 rows or more, are read side by side.",
    )
    key: Annotated[tuple[str, ...], BeforeValidator(_one_or_more, json_schema_input_type=str | list[str])] = Field(
        min_length=1, description="Fields that identify a subscriber."
    )
    stream: str = Field(min_length=1, description="Of the sink: profiles, a table …")
    mode: Mode = Field(
        description="upsert: new and changed rows; mirror: also deletes what left the result; append: each key once, and never again;"
        " replace: the result takes the place of all that is there, in one step."
    )
    read: Read = Field(
        default=Read.FULL,
        description="full: the whole result at each run; incremental: what lies at the cursor or behind it, with `mode: upsert` or `append`. The query says"
        " `WHERE updated_at >= :cursor`.",
    )
    cursor: CursorBlock | None = Field(default=None, description="For `read: incremental`.")
    mapping: dict[str, FieldEntry] = Field(
        default_factory=dict,
        description="field: column, field: [column, …] for a list, or field: {…} as below; dots nest."
        " Without it every column goes under its own name.",
    )
    nulls: Nulls | None = Field(
        default=None,
        description="What is said of NULLs in fields that do not say it themselves: `send` or `omit`, as there. By default the sink's own way.",
    )
    duplicates: DuplicatesBlock = Field(default=DuplicatesBlock(), description="Rows with the same key.")
    guards: GuardsBlock = Field(default=GuardsBlock(), description="What stops a run.")
    queue: Name = Field(default="default", description="Of the workers that execute it; `wsync-engine worker --queue NAME` serves one.")
    schedule: ScheduleBlock | None = Field(default=None, description="Without it the sync runs when it is told to.")

    @model_validator(mode="after")
    def _one_query(self) -> SyncBlock:
        if (self.query is None) == (self.table is None):
            raise ValueError("either `query` or `table` says what is read")
        return self

    @model_validator(mode="after")
    def _one_reading(self) -> SyncBlock:
        column = None if self.cursor is None else self.cursor.column
        mistake = reading_mistake(read=self.read, mode=self.mode, query=self.query, cursor_column=column, declared=self.parameters.keys())
        if mistake is not None:
            raise misplaced(*mistake)
        return self

    def to_declaration(self, name: str) -> SyncDeclaration:
        """As ours."""
        mapping = tuple(block.to_entry(target) for target, block in self.mapping.items())
        spec = SyncSpec(
            name=name,
            source=self.source,
            sink=self.sink,
            query=self.query,
            table=self.table,
            parameters={name: FromRun(name=x.source) if isinstance(x, FromRunBlock) else x for name, x in self.parameters.items()},
            split_by=self.split_by,
            key=_targets(self.key, mapping),
            stream=self.stream,
            mode=self.mode,
            mapping=mapping,
            duplicates=Duplicates(**self.duplicates.model_dump()),
            guards=Guards(**self.guards.model_dump()),
            read=self.read,
            nulls=self.nulls,
            cursor=None if self.cursor is None else self.cursor.to_cursor(),
        )
        return SyncDeclaration(spec=spec, queue=self.queue, schedule=None if self.schedule is None else self.schedule.to_declaration())


class FileBlock(_Block):
    """Everything of one tenant: connections, syncs and their schedules that the file no longer declares are deleted by `apply`."""

    version: Literal[1] = Field(description="Of this format.")
    tenant: Name = Field(description="Whose connections, syncs and schedules these are.")
    connections: dict[Name, ConnectionBlock] = Field(default_factory=dict, description="By name.")
    syncs: dict[Name, SyncBlock] = Field(default_factory=dict, description="By name; a sync's schedule bears the sync's name.")

    def to_declaration(self) -> Declaration:
        """As ours."""
        return Declaration(
            tenant=self.tenant,
            connections=tuple(
                ConnectionSpec(name=name, plugin=block.plugin, config=block.config) for name, block in self.connections.items()
            ),
            syncs=tuple(block.to_declaration(name) for name, block in self.syncs.items()),
        )


def _targets(key: tuple[str, ...], mapping: tuple[MappingEntry, ...]) -> tuple[str, ...]:
    """The key in the mapping's words: a key that names a column means the field that the column goes to."""
    names = {entry.target for entry in mapping}
    by_column = {entry.column: entry.target for entry in reversed(mapping) if entry.column is not None}
    return tuple(part if part in names else by_column.get(part, part) for part in key)
