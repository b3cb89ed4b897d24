"""SinkContract and TransactionalSinkContract: all that a sink is held to, as pytest tests.

    class TestMySink(SinkContract):
        @pytest.fixture
        def harness(self) -> SinkHarness:
            return MyHarness(...)

Each test is a rule; its docstring says why the rule is there, its failure what to change.
"""

from __future__ import annotations

import pytest

from wsync_sdk.testing.harness import SinkHarness
from wsync_sdk.testing.sink_life import SinkLifeRules
from wsync_sdk.testing.sink_modes import SinkModeRules
from wsync_sdk.testing.sink_rows import SinkRowRules
from wsync_sdk.testing.sink_transactions import SinkTransactionRules
from wsync_sdk.testing.sink_verdicts import SinkVerdictRules

__all__ = ["SinkContract", "TransactionalSinkContract"]


class SinkContract(SinkRowRules, SinkVerdictRules, SinkLifeRules, SinkModeRules):
    """Subclass it in a test module under a name that starts with `Test`, and give the fixture `harness`."""

    @pytest.fixture
    def harness(self) -> SinkHarness:
        """The connector's way to a destination; a fresh one for each test."""
        raise NotImplementedError("give your test class a fixture `harness` that returns your SinkHarness")


class TransactionalSinkContract(SinkContract, SinkTransactionRules):
    """The same for a TransactionalSink, with the rules of exactly once."""
