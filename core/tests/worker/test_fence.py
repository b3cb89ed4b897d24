"""The right to write: open until a time, renewed, lost."""

from __future__ import annotations

import threading

import pytest

from wsync_engine.worker.fence import Fence, boot_time_s
from wsync_sdk import StateError


def test_before_its_time_is_over_nobody_waits() -> None:
    Fence(boot_time_s() + 60).wait()


def test_past_its_time_a_caller_waits_until_it_is_renewed() -> None:
    fence = Fence(boot_time_s() - 1)
    passed = threading.Event()
    threading.Thread(target=lambda: (fence.wait(), passed.set()), daemon=True).start()

    assert not passed.wait(0.05)
    fence.renew(boot_time_s() + 60)
    assert passed.wait(5)


def test_an_older_renewal_that_comes_late_takes_nothing_away() -> None:
    fence = Fence(boot_time_s() + 60)
    fence.renew(boot_time_s() - 1)
    fence.wait()


def test_a_lost_right_is_refused_even_before_its_time_is_over() -> None:
    fence = Fence(boot_time_s() + 60)
    fence.lose()
    with pytest.raises(StateError):
        fence.wait()
