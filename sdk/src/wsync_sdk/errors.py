"""What can go wrong, named by what the caller can do about it.

    WsyncError
    ├── ConfigError       a setting, mapping, query or credential is wrong      → no run, shown where it was typed
    ├── PluginError       a plugin broke the contract or leaked an exception    → the run fails, naming the plugin
    ├── RetryableError    the same call may be repeated, and may then work      → wait, then again
    │   └── PlanExpired   splits can't be read any more                         → drop what was staged, plan again
    ├── FatalError        no repetition helps: table dropped, permission gone   → the run fails, acks are kept
    ├── RowError          one row is refused, by mapping or sink                → a rejection, the run goes on
    └── StateError        our lease is old, or stored state is impossible       → drop the work, write nothing more

No message holds a secret or a row's value: messages are logged, shown and mailed. They may quote a destination, so what no database stores is
replaced in them: NUL characters, halves of surrogate pairs, and all beyond 4,000 letters.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "FatalError",
    "PlanExpired",
    "PluginError",
    "RetryableError",
    "RowError",
    "StateError",
    "WsyncError",
    "storable",
]


MOST_LETTERS = 4_000


def storable(text: object) -> str:
    """A text as every database can store it: see above."""
    plain = str(text).replace("\0", "\ufffd")
    plain = plain if plain.isascii() else plain.encode("utf-8", "replace").decode("utf-8")
    return plain if len(plain) <= MOST_LETTERS else f"{plain[: MOST_LETTERS - 1]}…"


class WsyncError(Exception):
    """Root of all errors that a connector or the engine raises on purpose.

    :param message: what is wrong and where, in one line, lower case, without a full stop.
    :param next_step: what a person does now; a command in backticks runs as printed.
    """

    def __init__(self, message: str, *, next_step: str) -> None:
        self.message = storable(message)
        self.next_step = storable(next_step)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class ConfigError(WsyncError, ValueError):
    """A setting, mapping, query or credential is wrong: a person must change it, repeating does not help."""


class PluginError(WsyncError):
    """A plugin broke the contract, or let an exception escape that is not a WsyncError."""


class RetryableError(WsyncError):
    """The same call may be repeated and may then work.

    For a write this is a promise: the repetition carries the same chunk key, and the sink may meet rows it has already applied.

    :param retry_after_s: seconds that the other side asked for; None: the caller backs off by its own rule.
    """

    def __init__(self, message: str, *, next_step: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.retry_after_s = retry_after_s


class PlanExpired(RetryableError):
    """The plan's splits can't be read any more; what was staged from it is dropped and the query is planned again."""


class FatalError(WsyncError):
    """No repetition helps: table dropped, permission gone, query out of time. What was acknowledged stays acknowledged."""


class RowError(WsyncError):
    """At least one row was refused for what it holds, and nothing of the call was applied.

    From `Sink.write` on a chunk of several rows the engine cuts the chunk in two and tries each; on one row, that row becomes a rejection.

    :param code: short stable word for the kind of refusal, e.g. `not_null` or `http_422`; groups rejections in lists.
    """

    def __init__(self, message: str, *, code: str, next_step: str) -> None:
        super().__init__(message, next_step=next_step)
        self.code = storable(code)


class StateError(WsyncError):
    """The lease or epoch is old, or stored state is impossible: the holder drops its work and writes nothing more."""
