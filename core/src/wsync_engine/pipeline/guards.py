"""Guards: what stops a run before it harms."""

from __future__ import annotations

from collections.abc import Sequence

from wsync_engine.model.sync import Guards
from wsync_engine.pipeline.diff import DiffCounts

__all__ = ["tripped"]


def tripped(guards: Guards, counts: DiffCounts, *, read_rows: int, is_part: bool, schema_changes: Sequence[str] = ()) -> list[str]:
    """In words, each guard that these totals trip; empty: go on. A first run, without a snapshot, trips none that compares with it, nor does
    one that read a part of the result: that part may be empty.

    :param schema_changes: how the result's columns changed since the snapshot, in words.
    """
    reasons = []
    before = 0 if is_part else counts.snapshot_rows
    deletes = counts.deletes + counts.departed
    if before and read_rows == 0 and not guards.allow_empty:
        reasons.append(f"the result is empty, {before} subscribers are in the snapshot (guard `allow_empty`)")
    if schema_changes and counts.snapshot_rows and counts.upserts and not guards.allow_schema_change:
        reasons.append(f"the mapped columns changed: {', '.join(schema_changes)} (guard `allow_schema_change`)")
    if counts.snapshot_rows and guards.max_delete_percent is not None:
        percent = 100 * deletes / counts.snapshot_rows
        if percent > guards.max_delete_percent:
            reasons.append(
                f"{deletes} of {counts.snapshot_rows} subscribers would be deleted ({percent:.1f} %, guard at {guards.max_delete_percent:g} %)"
            )
    if guards.max_deletes is not None and deletes > guards.max_deletes:
        reasons.append(f"{deletes} subscribers would be deleted (guard at {guards.max_deletes})")
    if before and guards.max_shrink_percent is not None:
        percent = 100 * (before - min(before, read_rows)) / before
        if percent > guards.max_shrink_percent:
            reasons.append(
                f"the result shrank from {before} to {read_rows} rows ({percent:.1f} %, guard at {guards.max_shrink_percent:g} %)"
            )
    if read_rows and guards.max_rejection_percent is not None:
        percent = 100 * counts.refused / read_rows
        if percent > guards.max_rejection_percent:
            reasons.append(
                f"{counts.refused} of {read_rows} rows were refused ({percent:.1f} %, guard at {guards.max_rejection_percent:g} %)"
            )
    return reasons
