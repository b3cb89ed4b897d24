"""wsync_sdk.testing: the conformance kit that holds a connector to the contract. Needs `wsync-sdk[testing]`.

Write a harness (`SourceHarness` or `SinkHarness`: how to reach a real or faithful other side), subclass the contract, run pytest.
"""

from wsync_sdk.testing.harness import (
    Context,
    Refusal,
    SinkHarness,
    SourceHarness,
    Unrepresentable,
    sink_from_plugin,
    source_from_plugin,
)
from wsync_sdk.testing.rules import ContractViolation
from wsync_sdk.testing.runner import Outcome, Verdict, rules_of, run_contract
from wsync_sdk.testing.sink import SinkContract, TransactionalSinkContract
from wsync_sdk.testing.sink_rows import SAMPLE_VALUES
from wsync_sdk.testing.source import SourceContract
from wsync_sdk.testing.source_rows import SAMPLE_TYPES

__all__ = [
    "SAMPLE_TYPES",
    "SAMPLE_VALUES",
    "Context",
    "ContractViolation",
    "Outcome",
    "Refusal",
    "SinkContract",
    "SinkHarness",
    "SourceContract",
    "SourceHarness",
    "TransactionalSinkContract",
    "Unrepresentable",
    "Verdict",
    "rules_of",
    "run_contract",
    "sink_from_plugin",
    "source_from_plugin",
]
