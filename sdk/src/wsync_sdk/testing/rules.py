"""What every rule of the kit is made of: a requirement with advice, and a refusal that is expected."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from time import monotonic
from typing import Any, NoReturn

import pytest

from wsync_sdk.errors import WsyncError
from wsync_sdk.source import CheckReport

__all__ = [
    "ContractViolation",
    "absent",
    "checked",
    "differing_rows",
    "no_secret_in",
    "refusal",
    "require",
    "require_quiet",
    "texts_raised",
    "wait_for",
]

POLL_S = 0.02


class ContractViolation(AssertionError):
    """A connector broke a rule; the message says what its author has to change."""


def require(condition: object, advice: str) -> None:
    """Hold the connector to a rule.

    :raises ContractViolation: the condition is not true; with `advice` as message.
    """
    if not condition:
        raise ContractViolation(advice)


def absent(reason: str) -> NoReturn:
    """Leave a rule out, visibly: the harness says that there is nothing to try it on."""
    pytest.skip(reason)


def refusal(call: Callable[[], object], *allowed: type[WsyncError], what: str) -> WsyncError:
    """The error that `call` raises, which has to be one of `allowed` and has to say what to do next.

    :param what: what was tried, for the message: `bad SQL in plan`.
    """
    names = " or ".join(kind.__name__ for kind in allowed)
    try:
        call()
    except allowed as exc:
        require(exc.message.strip() and exc.next_step.strip(), f"{what}: give the {type(exc).__name__} a message and a `next_step`")
        return exc
    except Exception as exc:
        raise ContractViolation(f"{what}: raise {names} instead of letting {type(exc).__name__} escape") from exc
    raise ContractViolation(f"{what}: raise {names}; it was taken as if nothing were wrong")


def require_quiet(call: Callable[[], object], *, what: str) -> None:
    """Hold the connector to raising nothing."""
    try:
        call()
    except Exception as exc:
        raise ContractViolation(f"{what}: do nothing; {type(exc).__name__} was raised") from exc


def checked(check: Callable[[], CheckReport], *, what: str) -> CheckReport:
    """The report of a `check`, which never raises and which a person can use."""
    try:
        report = check()
    except Exception as exc:
        raise ContractViolation(
            f"{what}: make {type(exc).__name__} a finding of `check`; it never raises for what a person can fix"
        ) from exc
    _require_sane(report)
    return report


def texts_raised(call: Callable[[], object]) -> list[str]:
    """All that a log might print of the error that `call` raises; nothing if it raises none."""
    try:
        call()
    except Exception as exc:
        return _texts_of(exc)
    return []


def _require_sane(report: CheckReport) -> None:
    """A report that a person can use: something was looked at, and what failed says what to do."""
    require(report.findings, "check: report at least one finding, e.g. `reachable`")
    for finding in report.findings:
        require(finding.name.strip() and finding.message.strip(), "check: give every finding a name and a message")
        require(finding.ok or finding.next_step.strip(), f"check: say in `next_step` what to do about the finding `{finding.name}`")


def _texts_of(exc: BaseException) -> list[str]:
    """All that a log might print of an error: its text, its next step and its causes."""
    texts: list[str] = []
    seen: set[int] = set()
    pending: list[BaseException | None] = [exc]
    while pending:
        error = pending.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        texts += [str(error), repr(error), str(getattr(error, "next_step", ""))]
        # A cause that was cut off by `from None` is printed by nobody.
        pending += [error.__cause__, None if error.__suppress_context__ else error.__context__]
    return texts


def no_secret_in(texts: Iterable[str], secrets: Iterable[str], *, where: str) -> None:
    """Hold texts to the rule that no secret is ever shown; the message does not show it either."""
    shown = "\n".join(texts)
    require(not any(secret in shown for secret in secrets), f"{where}: a secret is shown; leave it out of messages, reprs and causes")


def differing_rows(found: Iterable[Mapping[str, Any]], expected: Iterable[Mapping[str, Any]]) -> str:
    """How two bags of rows differ, in numbers; empty if they don't."""
    ours, theirs = Counter(map(_row_text, found)), Counter(map(_row_text, expected))
    missing, extra = (theirs - ours).total(), (ours - theirs).total()
    return f"{missing} rows are missing and {extra} are too many" if missing or extra else ""


def _row_text(row: Mapping[str, Any]) -> str:
    return repr([(name, _plain(value)) for name, value in sorted(row.items())])


def _plain(value: Any) -> Any:
    """The same for equal values: the name of a zone and the zeros after a decimal's last digit do not count."""
    if isinstance(value, datetime):
        return value if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, Decimal):
        return value.normalize()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in sorted(value.items())}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def wait_for(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Wait until a condition is true.

    :returns: whether it came true in time.
    """
    give_up_at_s = monotonic() + timeout_s
    while not condition():
        if monotonic() > give_up_at_s:
            return False
        threading.Event().wait(POLL_S)
    return True
