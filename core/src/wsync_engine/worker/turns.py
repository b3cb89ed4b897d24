"""The supervisor's half of the rate budgets: what its children want is asked of the index, and what a destination asks for is told to all of them."""

from __future__ import annotations

from collections.abc import Callable

from wsync_engine.index.turns import LONGEST_HOLD_S, Places, Turns
from wsync_engine.telemetry import metrics
from wsync_engine.worker.host import Clocks
from wsync_engine.worker.messages import TurnsGiven, TurnsWanted
from wsync_engine.worker.slot_pool import SlotPool
from wsync_engine.worker.slots import Slot, Tenure

__all__ = ["give_turns"]

TellIndex = Callable[[Callable[[], object]], None]


def give_turns(pool: SlotPool, turns: Turns, tell_index: TellIndex, clocks: Clocks) -> None:
    """Answer what children want, in order. Where the index can't be asked they are told so, at once.

    :param tell_index: calls, unless the index did not answer a moment ago, and survives that it does not.
    """
    wanted, pool.wanted = pool.wanted, []
    for slot, want in wanted:
        tenure = slot.tenure
        if tenure is None or (tenure.assignment.run_id, tenure.assignment.epoch) != (want.run_id, want.epoch):
            continue  # its run has ended since
        places = _asked(turns, tenure, want, tell_index)
        now_s = clocks.boot_time_s()
        if want.hold_s > 0:
            metrics.DESTINATION_HOLDS.inc()
            held_s = min(want.hold_s, LONGEST_HOLD_S) if places is None else places.held_s
            _hold_others(pool, slot, tenure, now_s + held_s)
        else:
            metrics.CALL_PLACES.labels("own" if places is None else "shared").inc(want.calls if places is None else places.count)
            slot.tell(_answer(want, places, now_s))


def _asked(turns: Turns, tenure: Tenure, want: TurnsWanted, tell_index: TellIndex) -> Places | None:
    found: list[Places] = []
    credential = tenure.assignment.rate_credential
    tell_index(lambda: found.append(turns.take(credential, want.calls, want.calls_per_s, hold_s=want.hold_s)))
    return found[0] if found else None


def _answer(want: TurnsWanted, places: Places | None, now_s: float) -> TurnsGiven:
    if places is None:
        return TurnsGiven(run_id=want.run_id, epoch=want.epoch, is_shared=False)
    return TurnsGiven(
        run_id=want.run_id,
        epoch=want.epoch,
        count=places.count,
        first_s=now_s + places.first_s,
        apart_s=1 / want.calls_per_s if want.calls_per_s else 0.0,
        ask_from_s=now_s + places.again_s,
        held_until_s=now_s + places.held_s if places.held_s > 0 else 0.0,
    )


def _hold_others(pool: SlotPool, asked: Slot, tenure: Tenure, until_s: float) -> None:
    """The other runs of this worker on the same credential hear of it at once; those of other workers when they next ask."""
    for slot, other in pool.held():
        if slot is not asked and other.assignment.rate_credential == tenure.assignment.rate_credential:
            run = other.assignment
            slot.tell(TurnsGiven(run_id=run.run_id, epoch=run.epoch, is_reply=False, held_until_s=until_s))
