"""UUIDv7: valid, in order, and different in every process."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

from wsync_engine.model import ids
from wsync_engine.model.ids import created_s, uuid7, uuid7s


def test_an_id_is_a_version_7_uuid_of_this_millisecond() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = uuid7()
    after_ms = time.time_ns() // 1_000_000

    assert (made.version, made.variant) == (7, RFC_4122)
    assert before_ms <= made.int >> 80 <= after_ms + 1
    assert before_ms <= created_s(made) * 1_000 <= after_ms + 1


def test_ids_of_one_process_only_grow() -> None:
    made = [uuid7() for _ in range(20_000)]

    assert made == sorted(set(made))


def test_many_ids_at_once_are_in_order_among_the_others() -> None:
    before, made, after = uuid7(), uuid7s(5_000), uuid7()

    assert [before, *made, after] == sorted({before, *made, after})
    assert len(made) == 5_000
    assert {(x.version, x.variant) for x in made} == {(7, RFC_4122)}
    assert uuid7s(0) == []


def test_ids_grow_when_the_clock_is_set_back_and_when_a_millisecond_is_full() -> None:
    state = (ids._last_ms, ids._last_tail)
    try:
        ids._last_ms, ids._last_tail = 4_000_000_000_000, (1 << 74) - 1  # the year 2096: the clock stands behind

        first, second = uuid7(), uuid7()

        assert UUID(int=4_000_000_000_000 << 80) < first < second
        assert first.int >> 80 == 4_000_000_000_001
        assert second.version == 7
    finally:
        ids._last_ms, ids._last_tail = state


def test_threads_never_make_the_same_id() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = [each for part in pool.map(lambda _: [uuid7() for _ in range(2_000)], range(4)) for each in part]

    assert len(set(made)) == len(made)


def test_a_forked_child_makes_other_ids_than_its_parent() -> None:
    ids._last_ms += 10_000  # ahead of the clock: without fresh bits, both would go on counting from the same place
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"".join(uuid7().bytes for _ in range(100)))
        os._exit(0)
    os.waitpid(child, 0)
    data = os.read(reading, 1600)
    os.close(reading)
    os.close(writing)

    theirs = {data[start : start + 16] for start in range(0, 1600, 16)}
    assert not theirs & {uuid7().bytes for _ in range(100)}
