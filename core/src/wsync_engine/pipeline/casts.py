"""The casts of a mapping as SQL: what a value becomes, and which values would become another one and so refuse their row."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASTS", "Cast", "cast_of"]

CASTS = {
    "text": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
    "json": "VARCHAR",
}
_WHOLE_TEXT = "regexp_full_match(trim({0}), '[+-]?[0-9]+')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """A cast of one expression: its SQL, the DuckDB type of that, and SQL that is true for a value that it can't bring over unchanged."""

    expression: str
    type: str
    refused: str


def cast_of(name: str, expression: str, type_: str) -> Cast:
    """What `cast: name` makes of an expression of the DuckDB type `type_`."""
    kind = CASTS[name]
    made = f"TRY_CAST({expression} AS {kind})"
    refused = f"{expression} IS NOT NULL AND {made} IS NULL"
    if altered := _altered(name, expression, made, type_.partition("(")[0]):
        refused = f"({refused}) OR coalesce({altered}, false)"
    return Cast(expression=made, type=kind, refused=refused)


def _altered(name: str, expression: str, made: str, type_: str) -> str:
    """SQL that is true where digits would be lost in silence; empty where none can be."""
    if name == "integer":  # DuckDB rounds
        exact = {
            "VARCHAR": f"TRY_CAST({expression} AS DECIMAL(38, 18))",
            "DOUBLE": expression,
            "FLOAT": expression,
            "DECIMAL": expression,
        }.get(type_)
        return f"{exact} <> {made}" if exact else ""
    if name == "number":  # a double has whole numbers up to 2^53, and some of those beyond
        whole = f"TRY_CAST({made} AS HUGEINT)"
        if type_ in ("BIGINT", "UBIGINT", "HUGEINT", "UHUGEINT"):
            return f"{whole} IS DISTINCT FROM {expression}"
        if type_ == "DECIMAL":
            return f"abs({expression}) > 9007199254740992 AND {whole} IS DISTINCT FROM {expression}"
        if type_ == "VARCHAR":
            return f"{_WHOLE_TEXT.format(expression)} AND abs({made}) > 9007199254740991 AND {whole} IS DISTINCT FROM TRY_CAST({expression} AS HUGEINT)"
    return ""
