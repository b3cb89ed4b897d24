"""The reference source keeps the contract, with all capabilities and with none, and each rule finds the one thing that is wrong with its twin."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_twins import PLAIN_TWINS, TWINS
from toy_source import ALL, PlainSource, ToySource, ToySourceHarness

from wsync_sdk import SourceCapabilities
from wsync_sdk.testing import SourceContract, Verdict, rules_of, run_contract


class TestToySource(SourceContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> ToySourceHarness:
        return ToySourceHarness(tmp_path)


class TestPlainSource(SourceContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> ToySourceHarness:
        return ToySourceHarness(tmp_path, PlainSource, SourceCapabilities())


def broken_rules(folder: Path, twin: type[ToySource], capabilities: SourceCapabilities) -> dict[str, str]:
    """The rules that the twin breaks, with what each says."""
    outcomes = run_contract(SourceContract, lambda: ToySourceHarness(folder, twin, capabilities))
    return {outcome.rule: outcome.message for outcome in outcomes if outcome.verdict is Verdict.BROKEN}


@pytest.mark.parametrize("rule", TWINS)
def test_a_rule_and_no_other_finds_what_is_wrong_with_its_twin(tmp_path: Path, rule: str) -> None:
    broken = broken_rules(tmp_path, TWINS[rule], ALL)

    assert list(broken) == [rule], broken
    assert broken[rule].startswith("ContractViolation: "), "the message is advice, not what happened to escape"


@pytest.mark.parametrize("rule", PLAIN_TWINS)
def test_a_rule_finds_what_a_source_does_without_declaring_it(tmp_path: Path, rule: str) -> None:
    broken = broken_rules(tmp_path, PLAIN_TWINS[rule], SourceCapabilities())

    assert list(broken) == [rule], broken
    assert broken[rule].startswith("ContractViolation: ")


def test_every_rule_has_a_twin() -> None:
    assert set(TWINS) == set(rules_of(SourceContract))


def test_every_rule_says_why_it_is_there() -> None:
    assert [rule for rule in rules_of(SourceContract) if not getattr(SourceContract, rule).__doc__] == []
