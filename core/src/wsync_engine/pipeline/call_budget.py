"""What a run asks of whoever knows how often others call its destination. Imports nothing, so that a supervisor may know it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["CallBudget", "NoBudget", "Turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a budget says: go in `wait_s`, or, with `ask_again`, nothing yet: ask then. `held_s`: so long the destination wants to be left alone."""

    wait_s: float = 0.0
    ask_again: bool = False
    held_s: float = 0.0


class CallBudget(Protocol):
    """The calls that all runs on one credential share. Any thread; never waits."""

    def next_turn(self, calls_per_s: float | None) -> Turn:
        """A place for one call, taken with this; None: there is no rate to share, only what the destination asked for."""
        ...

    def asked_to_wait(self, wait_s: float) -> None:
        """The destination told this run to leave it alone for so long: the others are to do so too."""
        ...


class NoBudget:
    """Nobody else calls."""

    def next_turn(self, calls_per_s: float | None) -> Turn:
        """Now."""
        return Turn()

    def asked_to_wait(self, wait_s: float) -> None:
        """Nobody is to be told."""
