"""The canonical text of a mapped row, and its hash: definition `wsync-row-1`.

A row's hash decides whether a row is sent again, so this definition never changes; another one gets another name, stored in the manifest.

    row     prefix, then every leaf field in byte order of its dotted path
    prefix  the first 16 hexadecimal digits of the MD5 of: seed, then for each path its length in bytes, ":", the path, ":", its kind and ";"
    kind    boolean, integer, float, decimal, date, time, timestamp, instant, binary, uuid, text, json or nested: what a sink's wire form may depend on
    field   of text, list or structure: length in bytes (NULL: -1) ":" text;  of every other type: text (NULL: "~") ";"
            a NULL that the mapping asks to send or to omit: length -2 or -3;  of every other type "~send" or "~omit"
    text    boolean   true | false
            integer   decimal digits
            float     shortest digits that read back the same; -0.0 as 0.0
            decimal   digits at the column's scale
            date      YYYY-MM-DD
            time      HH:MM:SS with the fraction's digits, if any
            timestamp microseconds since 1970-01-01T00:00:00 (UTC for instants, else of the wall clock)
            binary    upper-case hexadecimal
            text      itself
            list      compact JSON
    hash    MD5 of the row's UTF-8 bytes, the digest's last byte first, as a UUID: 128 bits, equal on every platform and release

Golden tests pin it. The hash finds changes, it does not protect secrets; the seed is the tenant's, so equal rows of two tenants differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from wsync_engine.pipeline.sql import text
from wsync_sdk import Nulls

__all__ = ["ALGORITHM", "HashedField", "canonical_value", "hash_of_row", "partition_of_key"]

ALGORITHM = "wsync-row-1"

_DELIMITED = frozenset(
    [
        "BOOLEAN",
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "HUGEINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
        "UHUGEINT",
        "FLOAT",
        "DOUBLE",
        "DECIMAL",
        "DATE",
        "TIME",
        "UUID",
        "BLOB",
        "TIMESTAMP",
        "TIMESTAMP_S",
        "TIMESTAMP_MS",
        "TIMESTAMP_NS",
    ]
) | {"TIMESTAMP WITH TIME ZONE"}


_KINDS = {
    **dict.fromkeys(
        ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"), "integer"
    ),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "float"),
    "TIMESTAMP WITH TIME ZONE": "instant",
    "BLOB": "binary",
    "VARCHAR": "text",
}

_NULL_LENGTHS = {None: -1, Nulls.SEND: -2, Nulls.OMIT: -3}


def canonical_value(expression: str, duckdb_type: str) -> str:
    """SQL for the text of one leaf value; NULL stays NULL.

    :param duckdb_type: as DESCRIBE prints it.
    """
    if duckdb_type == "VARCHAR":
        return expression
    if duckdb_type in ("DOUBLE", "FLOAT"):
        return f"CASE WHEN {expression} = 0 THEN '0.0' ELSE CAST({expression} AS VARCHAR) END"
    if _is_nested(duckdb_type):
        return f"CASE WHEN {expression} IS NOT NULL THEN CAST(to_json({expression}) AS VARCHAR) END"
    if duckdb_type.startswith("TIMESTAMP"):
        return f"CAST(epoch_us({expression}) AS VARCHAR)"
    if duckdb_type == "BLOB":
        return f"hex({expression})"
    return f"CAST({expression} AS VARCHAR)"


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedField:
    """A leaf of the mapped row: its dotted path, the SQL of its value, and the value's DuckDB type; `is_json`: text that is JSON.

    :param nulls: what the mapping asks of NULLs: only rows that have one are other rows when that changes.
    """

    path: str
    expression: str
    type: str
    is_json: bool = False
    nulls: Nulls | None = None


def hash_of_row(seed: str, fields: Sequence[HashedField]) -> str:
    """SQL for a row's hash, a UUID, of all its leaf fields, given in any order."""
    ordered = sorted(fields, key=lambda field: field.path.encode())
    parts = [text(_prefix(seed, ordered))]
    for field in ordered:
        expression, duckdb_type = field.expression, field.type
        value = canonical_value(expression, duckdb_type)
        if _is_delimited(duckdb_type):
            parts += [f"coalesce({value}, {text('~' + (field.nulls or ''))})", "';'"]
        else:
            parts += [f"coalesce(strlen({value}), {_NULL_LENGTHS[field.nulls]})", "':'", value]
    # As a number, which DuckDB makes of the digest's bytes from the last to the first: the way through hexadecimal text costs a fifth more.
    return f"CAST(md5_number(concat({', '.join(parts)})) AS UUID)"


def _prefix(seed: str, fields: Sequence[HashedField]) -> str:
    named = seed + "".join(f"{len(field.path.encode())}:{field.path}:{_kind(field)};" for field in fields)
    return hashlib.md5(named.encode(), usedforsecurity=False).hexdigest()[:16]


def _kind(field: HashedField) -> str:
    if field.is_json:
        return "json"
    if _is_nested(field.type):
        return "nested"
    name = field.type.partition("(")[0]
    return _KINDS.get(name) or ("timestamp" if name.startswith("TIMESTAMP") else name.lower())


def _is_nested(duckdb_type: str) -> bool:
    return duckdb_type.endswith("]") or duckdb_type.startswith(("STRUCT(", "MAP(", "UNION("))


def _is_delimited(duckdb_type: str) -> bool:
    """True where no text of the type can hold the delimiter, so that no length is needed."""
    return not _is_nested(duckdb_type) and duckdb_type.partition("(")[0] in _DELIMITED


def partition_of_key(key_texts: Sequence[str], partitions: int) -> str:
    """SQL for the partition a key belongs to, 0..partitions-1; `partitions` is a power of two, so a grown number splits each partition."""
    if partitions == 1:
        return "0"  # a hash that nobody needs would be a third of the mapping's cost
    joined = key_texts[0] if len(key_texts) == 1 else "concat(" + ", ".join(f"strlen({value}), ':', {value}" for value in key_texts) + ")"
    return f"CAST(md5_number({joined}) & {partitions - 1}::UHUGEINT AS INTEGER)"
