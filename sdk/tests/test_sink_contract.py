"""The reference sinks keep the contract, and each rule finds the one thing that is wrong with its twin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sink_twins import MISDECLARED, TWINS, harness_of
from toy_sink import DATABASE, PlainSink, PlainSinkHarness, ToyDatabase, ToySinkHarness, ToyVersions

from wsync_sdk.testing import SinkContract, TransactionalSinkContract, Verdict, rules_of, run_contract


class TestToySink(SinkContract):
    @pytest.fixture
    def harness(self) -> ToySinkHarness:
        return ToySinkHarness()


class TestToyVersions(SinkContract):
    @pytest.fixture
    def harness(self) -> ToySinkHarness:
        return ToySinkHarness(ToyVersions)


class TestPlainSink(SinkContract):
    @pytest.fixture
    def harness(self) -> PlainSinkHarness:
        return PlainSinkHarness()


class TestToyDatabase(TransactionalSinkContract):
    @pytest.fixture
    def harness(self) -> ToySinkHarness:
        return ToySinkHarness(ToyDatabase, DATABASE)


def broken_rules(contract: type, harness: Callable[[], ToySinkHarness]) -> dict[str, str]:
    """The rules that a sink breaks, with what each says."""
    return {outcome.rule: outcome.message for outcome in run_contract(contract, harness) if outcome.verdict is Verdict.BROKEN}


@pytest.mark.parametrize(("rule", "twin"), TWINS, ids=[twin.__name__ for _, twin in TWINS])
def test_a_rule_and_no_other_finds_what_is_wrong_with_its_twin(rule: str, twin: type[PlainSink]) -> None:
    contract = TransactionalSinkContract if issubclass(twin, ToyDatabase) else SinkContract

    broken = broken_rules(contract, harness_of(twin))

    assert list(broken) == [rule], broken
    assert broken[rule].startswith("ContractViolation: "), "the message is advice, not what happened to escape"


@pytest.mark.parametrize(("rule", "harness"), MISDECLARED)
def test_a_rule_finds_what_is_not_as_declared(rule: str, harness: Callable[[], ToySinkHarness]) -> None:
    broken = broken_rules(SinkContract, harness)

    assert list(broken) == [rule], broken
    assert broken[rule].startswith("ContractViolation: ")


def test_every_rule_has_a_twin() -> None:
    assert {rule for rule, _ in (*TWINS, *MISDECLARED)} == set(rules_of(TransactionalSinkContract))


def test_every_rule_says_why_it_is_there() -> None:
    assert [rule for rule in rules_of(TransactionalSinkContract) if not getattr(TransactionalSinkContract, rule).__doc__] == []
