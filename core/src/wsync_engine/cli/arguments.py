"""Options that several commands take, and how their text is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsync_engine.model.calendar import is_in_calendar
from wsync_engine.model.run import OverlapPolicy
from wsync_sdk.errors import ConfigError

if TYPE_CHECKING:
    from wsync_engine.scheduler.schedules import Triggered

__all__ = ["Json", "Keys", "Overlap", "Parameters", "Tenant", "instant", "parameters", "told"]

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Default: the tenant of ./wsync.yaml.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="A value of `:NAME` in the query; a number, true, false or null is taken as such."),
]
Keys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="VALUE", help="Only this key; may be repeated. Of a key with several columns: `a=1,b=2`."),
]
Overlap = Annotated[OverlapPolicy | None, typer.Option("--overlap", help="What happens beside an open run; default: as the schedule says.")]


def parameters(given: Sequence[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` as a mapping.

    :raises ConfigError: one of them is not of this form.
    """
    found = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ConfigError(f"`{text}` is no parameter", next_step="write --param NAME=VALUE")
        found[name] = _scalar(value)
    return found


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def instant(text: str, option: str) -> datetime:
    """An ISO instant; without an offset it is meant in UTC.

    :raises ConfigError: it is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: `{text}` is no instant", next_step="write 2026-01-31, or 2026-01-31T08:00:00+01:00") from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if not is_in_calendar(found):
        raise ConfigError(f"{option}: the calendar does not reach `{text}`", next_step="write an instant of our times")
    return found


def told(made: Triggered) -> str:
    """What became of a trigger, in words."""
    if made.is_refused:
        return f"skipped: too many runs of the sync wait for {made.run_id}"
    if not made.is_new:
        return f"skipped: run {made.run_id} of the sync is open"
    return "waits for the sync's open run to end" if made.is_waiting else "queued"
