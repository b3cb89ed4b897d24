"""A wall clock that is wrong, for tests: Python runs this module at its start where this folder is in PYTHONPATH, in every process of that family.

`CLOCK_OFFSET_S` is how wrong it is, `CLOCK_JUMP_AFTER_S` after how many seconds of the process it becomes so. Nothing of the engine knows of it. What
is changed is what Python code asks: `time.time` and `time.time_ns`. `datetime.now` is left alone: no scheduler, worker or child calls it, and a
stand-in for the type would confuse the drivers. Monotonic and boot time stay right, as they do when a machine's wall clock is set.
"""

from __future__ import annotations

import os
import time

_offset_s = float(os.environ.get("CLOCK_OFFSET_S", "0"))
_right_until_s = time.monotonic() + float(os.environ.get("CLOCK_JUMP_AFTER_S", "0"))
_time, _time_ns = time.time, time.time_ns


def _wrong_by_s() -> float:
    return _offset_s if time.monotonic() >= _right_until_s else 0.0


time.time = lambda: _time() + _wrong_by_s()
time.time_ns = lambda: _time_ns() + int(_wrong_by_s() * 1e9)
