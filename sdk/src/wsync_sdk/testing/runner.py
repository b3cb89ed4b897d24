"""Runs a contract without pytest's collection: for the tests of the kit, and for a command that certifies a connector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

__all__ = ["Outcome", "Verdict", "rules_of", "run_contract"]

PREFIX = "test_"


class Verdict(StrEnum):
    """How a rule ended."""

    KEPT = "kept"
    BROKEN = "broken"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One rule and how it ended; `message` says what to change, or why the rule was left out."""

    rule: str
    verdict: Verdict
    message: str = ""


def rules_of(contract: type) -> tuple[str, ...]:
    """The names of a contract's rules, sorted."""
    return tuple(sorted(name for name in dir(contract) if name.startswith(PREFIX)))


def run_contract(contract: type, harness: Callable[[], Any]) -> tuple[Outcome, ...]:
    """Hold a connector to every rule, each with a harness of its own.

    :param contract: `SourceContract`, `SinkContract`, `TransactionalSinkContract` or a subclass.
    :param harness: makes what the pytest fixture of that name would give.
    """
    return tuple(_outcome(contract, name, harness()) for name in rules_of(contract))


def _outcome(contract: type, name: str, harness: Any) -> Outcome:
    try:
        getattr(contract(), name)(harness)
    except pytest.skip.Exception as exc:
        return Outcome(rule=name, verdict=Verdict.ABSENT, message=str(exc))
    except Exception as exc:
        return Outcome(rule=name, verdict=Verdict.BROKEN, message=f"{type(exc).__name__}: {exc}")
    return Outcome(rule=name, verdict=Verdict.KEPT)
