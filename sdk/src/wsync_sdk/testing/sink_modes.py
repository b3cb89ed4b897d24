"""Rules of a sink whose streams take more than changes by key: rows that are appended, and versions that replace all there is.

A rule is left out where the stream's `write_modes` do not have the mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsync_sdk.sink import Inspection, Sink, Target, WriteMode
from wsync_sdk.testing.harness import SinkHarness
from wsync_sdk.testing.rules import absent, require, require_quiet
from wsync_sdk.testing.sink_delivery import Delivery, differing_contents, people, target_of

__all__ = ["SinkModeRules"]


@contextmanager
def _sink_for(harness: SinkHarness, mode: WriteMode) -> Iterator[tuple[Sink, Target]]:
    """A sink and a new target whose stream takes rows in this mode."""
    target = harness.version_target() if mode is WriteMode.REPLACE else target_of(harness)
    if target is None:
        absent(f"the harness has no stream for the mode {mode}")
    with harness.sink() as sink:
        if mode not in sink.stream(target.stream).write_modes:
            absent(f"the stream does not declare {mode}")
        yield sink, target


def _rows(target: Target, ids: list[int]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in target.schema.names} for row in people(ids)]


def _version(sink: Sink, target: Target, ids: list[int], *, after: Delivery | None = None) -> Delivery:
    """A version that holds these rows, not switched to. `after`: the sync's run before."""
    sync_id, number = ("", 1) if after is None else (after.run.sync_id, after.run.delivery + 1)
    delivery = Delivery(sink, target, sync_id=sync_id, number=number, write_mode=WriteMode.REPLACE)
    delivery.write(_rows(target, ids))
    return delivery


class SinkModeRules:
    """What has to be true of `append` and `replace`."""

    def test_appended_rows_stay(self, harness: SinkHarness) -> None:
        """An `append` sync sends a row once and never again: what was appended before is not touched by the next chunk or run."""
        with _sink_for(harness, WriteMode.APPEND) as (sink, target):
            first = Delivery(sink, target, write_mode=WriteMode.APPEND)
            first.write(people([1, 2]))
            first.write(people([3]))
            first.commit()
            second = Delivery(sink, target, sync_id=first.run.sync_id, number=2, write_mode=WriteMode.APPEND)
            second.write(people([4]))
            second.commit()
            difference = differing_contents(harness, target, people([1, 2, 3, 4]))
        require(not difference, f"append: add the rows to those that are there ({difference})")

    def test_a_version_takes_the_place_of_what_was_there_at_its_commit(self, harness: SinkHarness) -> None:
        """Readers see one whole result or the other: none that is half written, and none of the former one's rows after it."""
        with _sink_for(harness, WriteMode.REPLACE) as (sink, target):
            former = _version(sink, target, [1, 2])
            former.commit()
            following = _version(sink, target, [2, 3], after=former)
            before = differing_contents(harness, target, _rows(target, [1, 2]))
            following.commit()
            after = differing_contents(harness, target, _rows(target, [2, 3]))
        require(not before, f"replace: show nothing of a version before its `commit` ({before})")
        require(not after, f"replace: show exactly the version's rows after its `commit` ({after})")

    def test_an_aborted_version_leaves_what_was_there(self, harness: SinkHarness) -> None:
        """A version that lacks rows is dropped: who was there before still is."""
        with _sink_for(harness, WriteMode.REPLACE) as (sink, target):
            former = _version(sink, target, [1, 2])
            former.commit()
            sink.abort(_version(sink, target, [3], after=former).token)
            difference = differing_contents(harness, target, _rows(target, [1, 2]))
        require(not difference, f"abort: drop the version, and leave what is seen as it is ({difference})")

    def test_a_version_that_was_switched_to_stays_when_it_is_committed_again(self, harness: SinkHarness) -> None:
        """A switch whose answer was lost is asked for again, by another process: it does nothing, or what is seen would be lost."""
        with _sink_for(harness, WriteMode.REPLACE) as (sink, target), harness.sink() as other:
            version = _version(sink, target, [1, 2])
            version.commit()
            require_quiet(lambda: other.commit(version.token, version.totals), what="a second `commit` of a version")
            difference = differing_contents(harness, target, _rows(target, [1, 2]))
        require(not difference, f"a second `commit` of a version: leave what is seen as it is ({difference})")

    def test_a_version_that_nobody_finished_is_told_and_found(self, harness: SinkHarness) -> None:
        """A run may die between `begin` and the record of its token: the sync's next run has it dropped, and must not take it for one that is seen."""
        with _sink_for(harness, WriteMode.REPLACE) as (sink, target):
            former = _version(sink, target, [1])
            former.commit()
            forgotten = _version(sink, target, [2], after=former)
            standing = sink.inspect(forgotten.token)
            following = Delivery(sink, target, sync_id=former.run.sync_id, number=3, write_mode=WriteMode.REPLACE)
            found = list(sink.find_open(following.run))
            sink.abort(forgotten.token)
            dropped = sink.inspect(forgotten.token)
            left = list(sink.find_open(following.run))
        require(standing in {Inspection.OPEN, Inspection.UNKNOWN}, "inspect: say OPEN (or UNKNOWN) of a version that was not switched to")
        require(forgotten.token in found, "find_open: list the versions that earlier runs of the sync left open")
        require(dropped in {Inspection.GONE, Inspection.UNKNOWN}, "inspect: say GONE (or UNKNOWN) of a version that was aborted")
        require(forgotten.token not in left, "find_open: do not list a version that was aborted")
