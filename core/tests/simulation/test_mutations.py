"""A simulation that finds nothing proves nothing: each of these faults, put into the engine on purpose, is found within some dozen histories, or a hundred where it takes three coincidences."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from wsync_engine.index import scripts
from wsync_engine.scheduler import fire, runs, sweeper
from wsync_engine.state import holding
from wsync_engine.worker import endings, fence

from .play import plan_of, play
from .world import Ground

MOST_SEEDS = 150
Apply = Callable[[pytest.MonkeyPatch, Ground], None]


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"the engine has changed: {old!r} is not there any more"
    return text.replace(old, new)


def in_script(old: str, new: str) -> Apply:
    """In every Lua script that has it."""

    def apply(patch: pytest.MonkeyPatch, ground: Ground) -> None:
        sources = {name: scripts._source(name)[0] for name in set(ground.script_by_digest.values())}
        assert any(old in source for source in sources.values())
        changed = {name: source.replace(old, new) for name, source in sources.items()}
        patch.setattr(scripts, "_source", lambda name: (changed[name], scripts.sha1(changed[name].encode()).hexdigest()))
        ground.load_scripts()

    return apply


def in_statement(module: ModuleType, name: str, old: str, new: str, *, of: str = "_SQL") -> Apply:
    def apply(patch: pytest.MonkeyPatch, ground: Ground) -> None:
        statements = getattr(module, of)
        patch.setitem(statements, name, replaced(statements[name].decode(), old, new).encode())

    return apply


def in_function(owner: Any, name: str, old: str, new: str) -> Apply:
    def apply(patch: pytest.MonkeyPatch, ground: Ground) -> None:
        module = inspect.getmodule(owner)
        assert module is not None
        source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
        names = dict(vars(module))
        exec("from __future__ import annotations\n" + replaced(source, old, new), names)
        patch.setattr(owner, name, names[name])

    return apply


def together(*several: Apply) -> Apply:
    def apply(patch: pytest.MonkeyPatch, ground: Ground) -> None:
        for one in several:
            one(patch, ground)

    return apply


def drain_counts(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    in_function(runs, "give_back_run", '"used_attempts": 0', '"used_attempts": 1')(patch, ground)
    patch.setattr(endings, "give_back_run", runs.give_back_run)


def without_trigger(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    ground.owner.execute("ALTER TABLE wsync.run DISABLE TRIGGER run_closed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    title: str
    apply: Apply
    found_by: tuple[str, ...]
    points: tuple[str, ...] = ()

    def seeds(self) -> list[int]:
        """Histories in which it could show: those of the crash points that it concerns, if it concerns some."""
        seeds = range(1, 3_000)
        return [seed for seed in seeds if not self.points or not set(self.points).isdisjoint(plan_of(seed))][:MOST_SEEDS]


MUTATIONS = (
    Mutation(title="the index takes older revs", apply=in_script("if rev[id] > (tonumber(stored[at]) or 0) then", "if true then"), found_by=("I3",), points=("C4",)),
    Mutation(title="a release keeps the hold", apply=in_script("write('HDEL', HELD, ended)", ""), found_by=("I10", "I13")),
    Mutation(title="an end promotes nobody", apply=without_trigger, found_by=("I8",)),
    Mutation(title="a claim takes a run in any state", apply=in_statement(runs, "run_claim", "state = 'queued' AND ", ""), found_by=("I7", "I8", "I9", "I13"), points=("C16", "C17", "C30")),
    Mutation(title="the reaper does not look at the lease", apply=together(in_statement(runs, "run_expired", "lease_until <= wsync.clock()", "true"), in_statement(runs, "run_reap", "r.lease_until <= wsync.clock()", "true")), found_by=("I9", "I7", "I13")),
    Mutation(title="a fire leaves the clock where it is", apply=in_statement(fire, "clock_advance", "d.next_nominal_at", "c.next_nominal_at"), found_by=("I1", "I2", "Stuck")),
    Mutation(title="the sweep repairs nothing", apply=in_function(sweeper, "_repair", 'if x.kind == "older"]', "if False]"), found_by=("I2", "I4"), points=("C2",)),
    Mutation(title="a child writes past its lease", apply=in_function(fence.Fence, "is_passable", "self._clock() < self._write_until_s", "True"), found_by=("I9",), points=("C23",)),
    Mutation(title="a drain uses up an attempt", apply=drain_counts, found_by=("I19",), points=("C35",)),
    Mutation(title="acks are not fenced", apply=in_function(holding.HeldRun, "fenced", "row is None or not row[0]", "row is None"), found_by=("I7", "I8", "I9"), points=("C21", "C22", "C23")),
)  # fmt: skip


@pytest.fixture
def restored(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    ground.owner.execute("ALTER TABLE wsync.run ENABLE TRIGGER run_closed")
    ground.load_scripts()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.title.replace(" ", "-"))
def test_a_fault_that_was_put_in_is_found(ground: Ground, restored: pytest.MonkeyPatch, mutation: Mutation) -> None:
    mutation.apply(restored, ground)

    found: tuple[str, ...] = ()
    for seed in mutation.seeds():
        found = play(ground, seed).violations
        if found:
            break

    assert any(violation.startswith(mutation.found_by) for violation in found), found
