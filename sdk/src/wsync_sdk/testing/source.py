"""SourceContract: all that a source is held to, as pytest tests.

    class TestMySource(SourceContract):
        @pytest.fixture
        def harness(self) -> SourceHarness:
            return MyHarness(...)

Each test is a rule; its docstring says why the rule is there, its failure what to change.
"""

from __future__ import annotations

import pytest

from wsync_sdk.testing.harness import SourceHarness
from wsync_sdk.testing.source_plans import SourcePlanRules
from wsync_sdk.testing.source_refusals import SourceRefusalRules
from wsync_sdk.testing.source_rows import SourceRowRules

__all__ = ["SourceContract"]


class SourceContract(SourceRowRules, SourcePlanRules, SourceRefusalRules):
    """Subclass it in a test module under a name that starts with `Test`, and give the fixture `harness`."""

    @pytest.fixture
    def harness(self) -> SourceHarness:
        """The connector's way to a warehouse; a fresh one for each test."""
        raise NotImplementedError("give your test class a fixture `harness` that returns your SourceHarness")
