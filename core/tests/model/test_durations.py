from __future__ import annotations

import pytest

from wsync_engine.model.durations import duration_text


@pytest.mark.parametrize(("ms", "text"), [
    (0, "0s"), (1, "1ms"), (1_000, "1s"), (90_000, "90s"), (900_000, "15m"), (5_400_000, "90m"), (86_400_000, "1d"), (1_500, "1500ms"),
])  # fmt: skip
def test_a_duration_is_the_shortest_whole_number_with_its_unit(ms: int, text: str) -> None:
    assert duration_text(ms) == text
