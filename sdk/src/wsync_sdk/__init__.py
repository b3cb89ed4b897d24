"""wsync_sdk: the contract between the wsync engine and its connectors.

Read `wsync_sdk.source` or `wsync_sdk.sink` first, then `wsync_sdk.hooks` for how a package is found, and hold it to `wsync_sdk.testing`.

A name is imported from its module at its first use: whoever needs the errors only, as schedulers do, loads no Arrow (37 MiB a process).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsync_sdk.batch import batches_from_rows
    from wsync_sdk.errors import (
        ConfigError,
        FatalError,
        PlanExpired,
        PluginError,
        RetryableError,
        RowError,
        StateError,
        WsyncError,
    )
    from wsync_sdk.hooks import SinkSpec, SourceSpec, hookimpl
    from wsync_sdk.network import AddressPolicy, SocketAddress
    from wsync_sdk.nulls import Nulls, nulls_of, with_nulls
    from wsync_sdk.secret import Secret
    from wsync_sdk.sink import (
        BEFORE,
        OP,
        Chunk,
        Fence,
        FieldSpec,
        Inspection,
        Operation,
        Rejection,
        RowRange,
        RunRef,
        Sink,
        SinkCapabilities,
        StreamLimits,
        StreamSpec,
        Target,
        TransactionalSink,
        WriteMode,
        WriteResult,
        before_type,
    )
    from wsync_sdk.source import (
        REFUSED_COLUMNS,
        CheckReport,
        Durable,
        Estimate,
        Finding,
        Held,
        Lifetime,
        ParameterValue,
        PlanContext,
        Preview,
        Query,
        ReadLimits,
        ReadPlan,
        Source,
        SourceCapabilities,
        Split,
    )

__all__ = [
    "BEFORE",
    "OP",
    "REFUSED_COLUMNS",
    "AddressPolicy",
    "CheckReport",
    "Chunk",
    "ConfigError",
    "Durable",
    "Estimate",
    "FatalError",
    "Fence",
    "FieldSpec",
    "Finding",
    "Held",
    "Inspection",
    "Lifetime",
    "Nulls",
    "Operation",
    "ParameterValue",
    "PlanContext",
    "PlanExpired",
    "PluginError",
    "Preview",
    "Query",
    "ReadLimits",
    "ReadPlan",
    "Rejection",
    "RetryableError",
    "RowError",
    "RowRange",
    "RunRef",
    "Secret",
    "Sink",
    "SinkCapabilities",
    "SinkSpec",
    "SocketAddress",
    "Source",
    "SourceCapabilities",
    "SourceSpec",
    "Split",
    "StateError",
    "StreamLimits",
    "StreamSpec",
    "Target",
    "TransactionalSink",
    "WriteMode",
    "WriteResult",
    "WsyncError",
    "batches_from_rows",
    "before_type",
    "hookimpl",
    "nulls_of",
    "with_nulls",
]

_NAMES = {
    "batch": ("batches_from_rows",),
    "errors": (
        "ConfigError",
        "FatalError",
        "PlanExpired",
        "PluginError",
        "RetryableError",
        "RowError",
        "StateError",
        "WsyncError",
    ),
    "hooks": (
        "SinkSpec",
        "SourceSpec",
        "hookimpl",
    ),
    "network": (
        "AddressPolicy",
        "SocketAddress",
    ),
    "secret": ("Secret",),
    "nulls": (
        "Nulls",
        "nulls_of",
        "with_nulls",
    ),
    "sink": (
        "BEFORE",
        "OP",
        "Chunk",
        "Fence",
        "FieldSpec",
        "Inspection",
        "Operation",
        "Rejection",
        "RowRange",
        "RunRef",
        "Sink",
        "SinkCapabilities",
        "StreamLimits",
        "StreamSpec",
        "Target",
        "TransactionalSink",
        "WriteMode",
        "WriteResult",
        "before_type",
    ),
    "source": (
        "REFUSED_COLUMNS",
        "CheckReport",
        "Durable",
        "Estimate",
        "Finding",
        "Held",
        "Lifetime",
        "ParameterValue",
        "PlanContext",
        "Preview",
        "Query",
        "ReadLimits",
        "ReadPlan",
        "Source",
        "SourceCapabilities",
        "Split",
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
