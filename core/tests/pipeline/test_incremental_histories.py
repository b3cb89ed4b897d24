"""Random histories of an incremental sync: the warehouse changes, commits late, runs die, are cancelled and refused; in the end the sink has every row.

A seed is always the same history; `FIRST=100 SEEDS=40` before the command plays others.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from wsync_engine.model.sync import Cursor
from wsync_engine.pipeline.context import Cancelled, no_faults
from wsync_engine.pipeline.finish import conclude
from wsync_engine.pipeline.run import execute
from wsync_sdk import Chunk, Rejection, RetryableError, WriteResult, WsyncError

from .ledger import Ledger
from .test_run import STEPS
from .world import Crash, crash_at

KEYS, OVERLAP = 2_000, 3
FIRST, SEEDS = int(os.environ.get("FIRST", "0")), int(os.environ.get("SEEDS", "6"))


class History:
    """One seed's story. Rows get their position when somebody begins to write them, and are seen when that is committed."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.chance = random.Random(seed)
        self.open: dict[int, tuple[str, int]] = {}
        self.told: list[str] = []
        self.highest = -1
        ledger.spec = replace(ledger.spec, cursor=Cursor(column="seen", overlap_by=OVERLAP))

    # -- the warehouse

    def write(self) -> None:
        """Nobody's transaction is open while more than OVERLAP rows are committed."""
        for _ in range(self.chance.choice([1, 3, 30])):
            key = self.chance.randrange(KEYS)
            self.commit(older_than=self.ledger.at - OVERLAP)
            if self.chance.random() < 0.3:
                self.ledger.at += 1
                self.open[key] = (f"late {key} at {self.ledger.at}", self.ledger.at)
            else:
                self.ledger.put(key)
                self.open.pop(key, None)

    def commit(self, *, older_than: int) -> None:
        for key, (_, at) in list(self.open.items()):
            if at <= older_than or self.chance.random() < 0.02:
                self.ledger.source.entries[key] = self.open.pop(key)

    def delete(self) -> None:
        if self.ledger.source.entries:
            self.ledger.source.entries.pop(self.chance.choice(list(self.ledger.source.entries)))

    # -- the sink

    def trouble(self) -> None:
        """Until the next time: some keys are refused, some get no verdict, and may be applied none the less."""
        sink = self.ledger.sink
        odds = self.chance.choice([0, 0.1])
        refused = {key for key in range(KEYS) if self.chance.random() < 0.15}
        lost = {key for key in range(KEYS) if self.chance.random() < odds}

        def verdict(chunk: Chunk) -> WriteResult:
            rejections, unknown = [], []
            for place, row in enumerate(chunk.to_rows()):
                if row["id"] in refused:
                    rejections.append(Rejection(row=place, code="no", message="no"))
                    continue
                if row["id"] in lost:
                    unknown.append(place)
                if row["id"] not in lost or self.chance.random() < 0.5:
                    sink.contents[row["id"]] = row["name"]
            accepted = chunk.rows - len(rejections) - len(unknown)
            return WriteResult(accepted_rows=accepted, rejections=tuple(rejections), unknown=tuple(unknown))

        sink.verdict = verdict
        sink.lose_replies = self.chance.choice([0, 0, 1])

    def calm(self) -> None:
        self.ledger.sink.verdict = None
        self.ledger.sink.lose_replies = 0

    # -- runs

    def run(self) -> None:
        step, occurrence = self.chance.choice([*STEPS, "", "", ""]), self.chance.randint(1, 3)
        run_id = self.ledger.new_run(dry_run=self.chance.random() < 0.15)
        if not self.attempt(run_id, crash_at(step, occurrence) if step else no_faults):
            self.after_a_crash(run_id)
        if self.state(run_id) == "blocked":
            self.approve(run_id)
        self.look()

    def attempt(self, run_id: UUID, faults: Callable[[str], None] = no_faults) -> bool:
        """False: the process died."""
        job = self.ledger.job(run_id, faults)
        try:
            self.told.append(f"{execute(job).state} from {self.ledger.last_asked()}")
        except RetryableError as exc:
            self.told.append(exc.message)
            conclude(self.ledger.job(run_id), exc)
        except WsyncError as exc:
            self.told.append(exc.message)
            conclude(job, exc)
        except Crash as exc:
            self.told.append(f"died at {exc}")
            return False
        return True

    def after_a_crash(self, run_id: UUID) -> None:
        if self.state(run_id) not in ("running", "queued"):
            return
        match self.chance.choice(["again", "cancelled", "given up"]):
            case "again":
                self.attempt(run_id)
            case "cancelled":
                conclude(self.ledger.job(run_id), Cancelled("cancelled", next_step=""), outcome="cancelled")
            case _:
                self.ledger.engine.execute("UPDATE wsync.run SET state = 'failed', finished_at = now() WHERE run_id = %s", (run_id,))

    def approve(self, run_id: UUID) -> None:
        if self.chance.random() < 0.5:
            self.ledger.run_beside()
        if self.chance.random() < 0.3:
            self.ledger.engine.execute("UPDATE wsync.run SET state = 'cancelled', finished_at = now() WHERE run_id = %s", (run_id,))
            return
        self.ledger.engine.execute(
            "UPDATE wsync.run SET state = 'queued', dry_run = false, exclusive = true, approved_by = 'ann' WHERE run_id = %s", (run_id,)
        )
        self.attempt(run_id)

    def state(self, run_id: UUID) -> str:
        return str(self.ledger.scalar("SELECT state::text FROM wsync.run WHERE run_id = %s", run_id))

    def look(self) -> None:
        stored = self.ledger.stored()
        assert stored is None or int(stored) >= self.highest, self.told
        self.highest = int(stored) if stored is not None else -1

    def resync(self) -> None:
        self.ledger.ask_for_resync()
        self.highest = -1

    def other_query(self) -> None:
        self.ledger.spec = replace(self.ledger.spec, query=f"{self.ledger.spec.query} ")
        self.highest = -1

    def end(self) -> None:
        """Everybody commits, the sink takes everything, and what was refused is offered again."""
        self.commit(older_than=self.ledger.at)
        self.calm()
        self.ledger.run()
        self.ledger.end_backoff()
        self.told.append(f"{self.ledger.run().state} in the end")


@pytest.fixture
def ledger(database: Any, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, tmp_path)
    yield made
    made.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_whatever_happens_the_sink_has_every_row_of_the_query_in_the_end(ledger: Ledger, seed: int) -> None:
    history = History(ledger, seed)
    happenings = (
        [history.write] * 7 + [history.run] * 9 + [history.trouble, history.trouble, history.calm, history.delete, ledger.end_backoff]
    )
    happenings += [history.resync] if seed % 3 == 0 else []
    happenings += [history.other_query] if seed % 4 == 0 else []

    for _ in range(history.chance.randint(10, 35)):
        history.chance.choice(happenings)()
    history.end()

    missing = {key: name for key, name in ledger.names().items() if ledger.sink.contents.get(key) != name}  # type: ignore[call-overload]
    assert missing == {}, history.told
    assert history.told[-1] == "succeeded in the end", history.told
