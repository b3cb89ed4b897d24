"""Real processes under load, killed, stopped, cut off and lied to about the time, by a seed: nothing is lost, nothing is done twice.

`make chaos` goes on for two minutes with a new seed; `--chaos-s` and `--chaos-seed` choose.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from wsync_engine.index.due_index import connect as connect_index
from wsync_engine.index.shards import Shards
from wsync_engine.scheduler.loop import Scheduler
from wsync_engine.scheduler.rows import select
from wsync_engine.services.syncs import trigger_sync
from wsync_engine.state.database import connect

from . import chaos_checks as checks
from .chaos_endpoint import Endpoint
from .chaos_faults import KINDS, Faults, drawn_faults
from .chaos_producers import SCHEDULES, Plan, Producer, Step, change_rows
from .chaos_world import World

TIMELY = (
    "SELECT count(*) FROM wsync.schedule_clock c JOIN wsync.schedule s USING (schedule_id)"
    " WHERE s.deleted_at IS NULL AND c.next_due_at < wsync.clock() - interval '1.5 s'"
)
BEGUN = "SELECT EXISTS (SELECT FROM wsync.run WHERE state = 'succeeded')"
UNEXPECTED = ("scheduler.failed", "worker.failed", "run.ending_failed", "Traceback")


class Chaos:
    """One world's life: load and faults, rest, a last run of everything."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.faults = Faults(world)
        self.witness = checks.Witness(world)
        self.producers = [Producer(world, name, f"{seed} {name}") for name in ("ann", "ben")]

    @property
    def plans(self) -> list[Plan]:
        return [plan for producer in self.producers for plan in producer.plans]

    def load(self, length_s: float, kinds: dict[str, int]) -> None:
        """Two producers, changing tables and a witness, while the faults strike."""
        for producer in self.producers:
            for _ in range(SCHEDULES // 2):
                producer.create()
        self.world.wait_for(lambda: self.world.rows(BEGUN) == [(True,)], "no run succeeds")
        stop = threading.Event()
        threads = [threading.Thread(target=producer.run, args=(stop,)) for producer in self.producers]
        threads += [threading.Thread(target=change_rows, args=(self.world, f"{self.seed} rows", stop))]
        threads += [threading.Thread(target=self.witness.run, args=(stop,))]
        for thread in threads:
            thread.start()
        try:
            self.faults.strike(drawn_faults(self.seed, length_s, kinds))
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert [producer.errors for producer in self.producers] == [[], []]

    def come_to_rest(self) -> None:
        """All is well again and on time; then nothing fires any more, and what is open ends."""
        self.world.revive()
        self.world.wait_for(lambda: self.world.rows(TIMELY) == [(0,)], "schedules are late")
        for producer in self.producers:
            for plan in producer.plans:
                if not plan.is_deleted and not plan.is_paused:
                    producer.pause(plan)
        self.world.wait_for(lambda: not checks.open_runs(self.world), "runs do not end")
        self.witness.look()

    def run_everything(self) -> None:
        """A last run of each sync."""
        with self.world.api() as api:
            for name in self.world.syncs:
                trigger_sync(api, self.world.tenant_id, name, actor="test", idem_key=f"last {name}", index=self.world.index)
        last = "SELECT state, count(*) FROM wsync.run WHERE idem_key LIKE 'last %%' GROUP BY 1"
        self.world.wait_for(lambda: not checks.open_runs(self.world), "the last runs do not end")
        assert self.world.rows(last) == [("succeeded", len(self.world.syncs))], self.world.log_tail()

    def ends(self) -> dict[object, Step]:
        """A last look at each clock, as if somebody changed it now."""
        with self.world.api() as api, api.transaction():
            api.execute("SELECT set_config('wsync.tenant_id', %s, true)", (str(self.world.tenant_id),))
            rows = select(api, b"SELECT *, wsync.clock() AS at FROM wsync.schedule_clock", {})
        return {row["schedule_id"]: Step(kind="end", at=row["at"], spec=None, clock=row, following=None) for row in rows}

    def wrong(self) -> dict[str, list[object]]:
        """Everything that does not hold."""
        ends = self.ends()
        found: dict[str, list[object]] = {
            "I1": list(checks.disordered_runs(self.world)),
            "I2": [x for plan in self.plans for x in checks.wrong_decisions(plan, ends[plan.schedule_id])],
            "I5": list(checks.runs_while_paused(self.world, self.plans)),
            "I6, I8": list(self.witness.wrong),
            "I7": list(checks.wrong_epochs(self.world)),
            "I20": list(checks.wrong_counts(self.world, self.plans)),
            "ended twice": list(checks.ended_twice(self.world)),
            "open": list(checks.open_runs(self.world)),
            "lost triggers": list(checks.lost_triggers(self.world, self.producers)),
            "destinations": list(checks.differing_destinations(self.world)),
            "applied twice": list(checks.applied_twice(self.world)),
            "keys": list(checks.keys_of_repeated_chunks(self.world)),
            "log": self.unexpected(),
        }
        return {name: wrong for name, wrong in found.items() if wrong}

    def unexpected(self) -> list[object]:
        lines = (self.world.folder / "log").read_text().splitlines()
        return [line for line in lines if any(word in line for word in UNEXPECTED)][:5]

    def repairs_after_a_sweep(self) -> int:
        """Schedules go on without the index being told, one sweep, and what a second one finds."""
        for producer in self.producers:
            for plan in producer.plans:
                if not plan.is_deleted:
                    producer.resume(plan, is_announced=False)
        client = connect_index(self.world.ends.redis_url)
        scheduler = Scheduler(
            indexes=Shards(client),
            wakes=Scheduler.wakes_of(client),
            connect=lambda: connect(self.world.ends.database_url_engine, application_name="test"),
        )
        try:
            scheduler.sweep()
            return scheduler.sweep()
        finally:
            scheduler.close()

    def close(self) -> None:
        for producer in self.producers:
            producer.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("HERE_URL", "")  # the world sets it, the fixture takes it back
    with capture_logs(), Endpoint() as endpoint:  # what this process says of its announcements is no news
        made = World(tmp_path, endpoint)
        yield made
        made.close()


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_done_twice_whatever_dies(world: World, request: pytest.FixtureRequest) -> None:
    length_s = request.config.getoption("--chaos-s")
    seed = request.config.getoption("--chaos-seed") or random.randrange(1, 1_000_000)
    print(f"chaos: repeat with --chaos-seed={seed} --chaos-s={length_s:g}")  # noqa: T201  shown when it fails, and by `make chaos`
    chaos = Chaos(world, seed)

    try:
        chaos.load(length_s, KINDS)
        chaos.come_to_rest()
        chaos.run_everything()
        world.drain()

        assert chaos.wrong() == {}, (seed, chaos.faults.done)
        assert chaos.repairs_after_a_sweep() == 0
        assert world.left_over() == []
    finally:
        chaos.close()
        print(summary(chaos))  # noqa: T201


def summary(chaos: Chaos) -> str:
    """How much happened."""
    runs = chaos.world.rows("SELECT state::text, count(*) FROM wsync.run GROUP BY 1 ORDER BY 1")
    claims = chaos.world.rows("SELECT count(*), count(*) FILTER (WHERE epoch > 1) FROM wsync.run_event WHERE kind = 'run.claimed'")
    counts = chaos.world.rows("SELECT sum(fired), sum(skipped), sum(missed), sum(coalesced) FROM wsync.schedule_clock")
    requests = chaos.world.endpoint.requests
    repeated = len(requests) - len({key for _, key, _ in requests})
    return (
        f"chaos: seed {chaos.seed}, {len(chaos.faults.done)} faults, {len(chaos.plans)} schedules, runs {runs}, claims {claims},"
        f" decisions {counts}, requests {len(requests)}, of which repeated {repeated}"
    )
