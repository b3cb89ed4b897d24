"""Which of the SDK's errors a Postgres error is. Pure: knows SQLSTATE codes and libpq's words, no driver.

Codes: PostgreSQL 18, appendix A. The server's words may quote values of rows, and a trigger may say anything under any code: they are passed on for
the classes that speak of the session, the statement or the schema, and only where no function was running. Else the condition's name, and whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsync_sdk import ConfigError, FatalError, RetryableError, RowError, WsyncError

__all__ = ["LOCK_TIMEOUT", "Problem", "apply_error", "connect_error", "prepare_error", "read_error", "write_error"]

LOCK_TIMEOUT = "55P03"
_LOGIN_WORDS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "is not permitted to log in",
    "permission denied",
    "does not exist",
    "certificate",
    "does not support SSL",
)
_URL_WORDS = ("for connection option", "invalid percent-encoded", "invalid URI", "invalid connection option", "missing ", "invalid sslmode")
_GONE_WORDS = ("terminating connection due to administrator command",)
_TIMEOUT_WORDS = ("statement timeout", "transaction timeout")
_CANCEL_WORDS = ("canceling statement due to user request",)
_SHOWN_CLASSES = frozenset({"08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58"})
_ROW_CLASSES = ("21", "22", "23", "54", "P0")
_AGAIN_CLASSES = ("08", "40", "53", "55", "58")
# Of the session, the statement or the whole table, whatever the rows hold.
_TABLE_CLASSES = frozenset({*_AGAIN_CLASSES, "0A", "25", "28", "3D", "3F", "42", "57", "HV", "XX"})
# Said of a statement by the parser, which gives a position, and of a value by a type that reads it (tsvector, regclass), which gives none.
_VALUE_CODES = frozenset({"42601", "42602", "42622", "42704", "42725", "42883", "42P01", "3F000"})
_NO_UTF8 = frozenset({"22021", "22P05"})
_AGAIN_CODES = frozenset({"57P02", "57P03", "57P05"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error of either driver.

    :param sqlstate: None where there is none: the line was cut, or an Arrow stream broke off. :param words: the server's main message.
    :param condition: name of the code, e.g. `not_null_violation`. :param position: 0-based, in the statement that was sent; -1 if unknown.
    :param is_nested: raised inside something that the statement called, such as a trigger. :param constraint: whose condition it is; or `column`.
    """

    sqlstate: str | None
    words: str
    condition: str = ""
    position: int = -1
    is_nested: bool = False
    constraint: str = ""
    column: str = ""

    @property
    def is_of_a_value(self) -> bool:
        """True if a type could not read a value, though the code speaks of statements."""
        return self.sqlstate in _VALUE_CODES and self.position < 0 and not self.is_nested

    @property
    def may_quote(self) -> bool:
        """True if the server's words may hold a value of a row."""
        is_shown = self.sqlstate is None or self.sqlstate[:2] in _SHOWN_CLASSES
        return self.is_nested or self.is_of_a_value or not is_shown

    def shown(self) -> str:
        """The server's words as far as they may be shown."""
        if self.may_quote:
            return f"{self.condition} ({self.sqlstate}){self._whose()}" if self.sqlstate else "the server ended the statement"
        return self.words.strip().splitlines()[0] if self.words.strip() else "connection lost"

    def _whose(self) -> str:
        """Which constraint or column; a trigger's RAISE may name anything there."""
        if self.is_nested or self.sqlstate is None or self.sqlstate[:2] != "23":
            return ""
        if self.constraint:
            return f", constraint `{self.constraint}`"
        return f", column `{self.column}`" if self.column else ""


def connect_error(words: str) -> WsyncError:
    """The error of a connection that was not made. libpq gives no code here, only words."""
    if any(word in words for word in _URL_WORDS):
        # libpq repeats pieces of the URL, perhaps of the password.
        return ConfigError(
            "the connection's `url` is not a valid Postgres URL", next_step="write postgresql://user:password@host:port/database"
        )
    said = words.rsplit("FATAL:", 1)[-1] if "FATAL:" in words else words.rsplit("failed:", 1)[-1]
    said = " ".join(said.split())
    if any(word in said for word in _LOGIN_WORDS):
        return ConfigError(
            f"the server refuses the login: {said}", next_step="correct user, password or database in the connection's `url`"
        )
    return RetryableError(f"the server can't be reached: {said}", next_step="check host, port and network; it is tried again by itself")


def read_error(doing: str, problem: Problem, *, place: str = "") -> WsyncError:
    """The error of a statement that reads; `place` is where in the query the server points."""
    if why := _ended(problem):
        return FatalError(
            f"{doing}: {why}", next_step="narrow the query or raise its time limit; start the run again if nobody meant to end it"
        )
    code = problem.sqlstate or ""
    message = f"{doing}: {problem.shown()}" + (f" ({place})" if place else "")
    if not code or code[:2] in _AGAIN_CLASSES or code in _AGAIN_CODES:
        return RetryableError(message, next_step="nothing to do: it is tried again")
    if code[:2] == "XX":
        return FatalError(message, next_step="look into the server's log")
    if code in _NO_UTF8:
        return ConfigError(
            f"{doing}: a text, a text in an array or a column's name has no form in UTF-8 ({problem.shown()})",
            next_step="correct it where it is stored, or decode it in the query: convert_from(convert_to(x, 'SQL_ASCII'), 'LATIN1')",
        )
    if code == "25006":
        return ConfigError(f"{doing}: the query would write, and a source only reads", next_step="select without functions that write")
    return ConfigError(message, next_step="correct the query, or grant the login what it lacks")


def _ended(problem: Problem) -> str:
    """Why somebody ended the statement; empty if nobody did."""
    if problem.sqlstate == "57P01" or any(word in problem.words for word in _GONE_WORDS):
        return "ended by an administrator or by a cancel"
    if any(word in problem.words for word in _TIMEOUT_WORDS):
        return "out of time"
    if problem.sqlstate == "57014" or any(word in problem.words for word in _CANCEL_WORDS):
        return "cancelled"
    return ""


def apply_error(doing: str, problem: Problem) -> WsyncError:
    """The error of a statement that applies rows to the table.

    What can be one row's doing is a RowError: the engine cuts the chunk until it knows the row, and the others arrive. That takes in every class
    that no other move belongs to, since a trigger may raise any code. A missing privilege looks like a row's (row-level security): ask the server.
    """
    code = problem.sqlstate or ""
    if code and (code == "42501" or problem.is_of_a_value or code[:2] not in _TABLE_CLASSES):
        return _row_error(doing, problem)
    return write_error(doing, problem)


def _row_error(doing: str, problem: Problem) -> RowError:
    return RowError(
        f"{doing}: {problem.shown()}",
        code=problem.condition,
        next_step="correct the row where it comes from, or the table's constraint or trigger",
    )


def write_error(doing: str, problem: Problem) -> WsyncError:
    """The error of a statement that writes; the transaction was rolled back, or its outcome is not known."""
    code = problem.sqlstate or ""
    message = f"{doing}: {problem.shown()}"
    if code[:2] in _ROW_CLASSES:
        return _row_error(doing, problem)
    if not code or code[:2] in (*_AGAIN_CLASSES, "57") or code == "25006":
        return RetryableError(message, next_step="nothing to do: it is tried again")
    if code in {"42P01", "3F000"} or code[:2] == "XX":
        return FatalError(message, next_step="see whether the table was dropped, then start the run again")
    return ConfigError(message, next_step="correct the mapping or the table, or grant the login what it lacks")


def prepare_error(doing: str, problem: Problem) -> WsyncError:
    """The error of a statement that carries no rows, so what looks like a refused row is two that made the same thing at once."""
    error = write_error(doing, problem)
    return RetryableError(error.message, next_step="nothing to do: it is tried again") if isinstance(error, RowError) else error
