"""The canonical text of a mapped row, and its hash: definition `wsync-row-1`.

A row's hash decides whether a row is sent again, so this definition never changes; another one gets another name, stored in the manifest.

    row     seed, then every leaf field in byte order of its dotted path: path "=" value ";"
    value   "~" for NULL, else <length in bytes> ":" <text>
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
    hash    MD5 of the row's UTF-8 bytes, as a UUID: 128 bits, equal on every platform and release

Golden tests pin it. The hash finds changes, it does not protect secrets; the seed is the tenant's, so equal rows of two tenants differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from wsync_engine.pipeline.sql import text

__all__ = ["ALGORITHM", "canonical_value", "hash_of_row", "partition_of_key"]

ALGORITHM = "wsync-row-1"

_AS_IS = ("VARCHAR", "UUID", "DATE", "TIME", "BOOLEAN", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")


def canonical_value(expression: str, duckdb_type: str) -> str:
    """SQL for the text of one leaf value; NULL stays NULL.

    :param duckdb_type: as DESCRIBE prints it.
    """
    if duckdb_type == "VARCHAR":
        return expression
    if duckdb_type in ("DOUBLE", "FLOAT"):
        return f"CASE WHEN {expression} = 0 THEN '0.0' ELSE CAST({expression} AS VARCHAR) END"
    if duckdb_type.startswith("TIMESTAMP"):
        return f"CAST(epoch_us({expression}) AS VARCHAR)"
    if duckdb_type == "BLOB":
        return f"hex({expression})"
    if duckdb_type in _AS_IS or duckdb_type in _INTEGERS or duckdb_type.startswith(("DECIMAL", "ENUM")):
        return f"CAST({expression} AS VARCHAR)"
    return f"CASE WHEN {expression} IS NOT NULL THEN CAST(to_json({expression}) AS VARCHAR) END"


def hash_of_row(seed: str, leaves: Sequence[tuple[str, str]]) -> str:
    """SQL for a row's hash, a UUID.

    :param leaves: (dotted path, SQL of its canonical text) of every leaf field, in any order.
    """
    parts = [text(seed)]
    for path, value in sorted(leaves, key=lambda leaf: leaf[0].encode()):
        parts.append(text(f"{path}="))
        parts.append(f"coalesce(strlen({value}) || ':' || ({value}), '~')")  # concat() would pass over NULL
        parts.append("';'")
    return f"CAST(md5(concat({', '.join(parts)})) AS UUID)"


def partition_of_key(key_texts: Sequence[str], partitions: int) -> str:
    """SQL for the partition a key belongs to, 0..partitions-1; `partitions` is a power of two, so a grown number splits each partition."""
    joined = ", ".join(f"strlen({value}), ':', {value}" for value in key_texts)
    return f"CAST(md5_number_lower(concat({joined})) & {partitions - 1} AS INTEGER)"
