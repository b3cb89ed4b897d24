"""The destination's table: what the catalog says of it, whether it can take a sync, and its making where it is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa

from wsync_postgres.driver import Row, RowConnection, identifier, literal, table_identifier
from wsync_postgres.keys import TableColumn, key_check
from wsync_postgres.problems import prepare_error
from wsync_sdk import ConfigError, Nulls, Target, nulls_of

__all__ = [
    "check_columns",
    "check_key",
    "check_nulls",
    "check_unique_key",
    "key_checks",
    "make_table",
    "missing_privileges",
    "require_privileges",
    "table_columns",
]

_BEGINNING = partial(prepare_error, "begin")

# Types without typmod: CAST(x AS varchar(5)) would cut silently, the assignment of a varchar refuses.
_COLUMNS = """
WITH RECURSIVE under AS (
    SELECT a.attnum, a.attname, a.atttypid AS declared, a.atttypmod, a.attcollation, a.atttypid AS oid
    FROM pg_attribute a
    WHERE a.attrelid = to_regclass({table}) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT u.attnum, u.attname, u.declared, u.atttypmod, u.attcollation, d.typbasetype
    FROM under u
    JOIN pg_type d ON d.oid = u.oid AND d.typtype = 'd')
SELECT u.attname::text, format_type(u.declared, -1), format_type(u.declared, u.atttypmod), format_type(u.oid, -1), t.typtype = 'e',
       coalesce(c.collisdeterministic, true)
FROM under u
JOIN pg_type t ON t.oid = u.oid AND t.typtype <> 'd'
LEFT JOIN pg_collation c ON c.oid = u.attcollation
ORDER BY u.attnum"""

_PRIVILEGES = """
SELECT p.name
FROM (VALUES (1, 'TEMPORARY on the database', has_database_privilege(current_database(), 'TEMPORARY')),
             (2, 'SELECT', has_table_privilege(to_regclass({table}), 'SELECT')),
             (3, 'INSERT', has_table_privilege(to_regclass({table}), 'INSERT')),
             (4, 'UPDATE', has_table_privilege(to_regclass({table}), 'UPDATE')),
             (5, 'DELETE', has_table_privilege(to_regclass({table}), 'DELETE'))) AS p (place, name, has_it)
WHERE NOT p.has_it
ORDER BY p.place"""

_UNIQUE_KEYS = """
SELECT array_agg(a.attname::text),
       (SELECT coalesce(bool_and(c.collisdeterministic), true) FROM pg_collation c WHERE c.oid = ANY (i.indcollation)),
       i.indimmediate
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
WHERE i.indrelid = to_regclass({table}) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid, i.indcollation, i.indimmediate"""


def table_columns(session: RowConnection, stream: str) -> dict[str, TableColumn]:
    """By name; empty if there is no such table."""
    rows = session.rows(_COLUMNS.format(table=_regclass(stream)), translate=_BEGINNING)
    return {
        str(name): TableColumn(cast=cast, declared=declared, base=base, kind="enum" if is_enum else "base", deterministic=deterministic)
        for name, cast, declared, base, is_enum, deterministic in rows
    }


def make_table(session: RowConnection, target: Target, types: Mapping[str, str]) -> None:
    """Make it with the key as primary key; only under the lock that `begin` takes, since IF NOT EXISTS alone races."""
    columns = ", ".join(f"{identifier(name)} {type_name}" for name, type_name in types.items())
    key = ", ".join(identifier(name) for name in target.key)
    statement = f"CREATE TABLE IF NOT EXISTS {table_identifier(target.stream)} ({columns}, PRIMARY KEY ({key}))"
    session.rows(statement, translate=_BEGINNING)


def missing_privileges(stream: str) -> str:
    """The statement whose rows are the names of the privileges that the login lacks."""
    return _PRIVILEGES.format(table=_regclass(stream))


def require_privileges(stream: str, missing: Sequence[Row]) -> None:
    """
    :raises ConfigError: some are missing.
    """
    if missing:
        names = ", ".join(str(name) for (name,) in missing)
        raise ConfigError(
            f"permission denied for table `{stream}`: the login lacks {names}", next_step=f"GRANT {names} ON the table to the login"
        )


def check_key(target: Target) -> None:
    """
    :raises ConfigError: there is no key, or a column of it is not mapped.
    """
    if not target.key:
        raise ConfigError("the sync has no key", next_step="name the key's columns under `key:`")
    if missing := [name for name in target.key if name not in target.schema.names]:
        raise ConfigError(f"the key's column `{missing[0]}` is not mapped", next_step=f"map `{missing[0]}`")


def check_nulls(target: Target) -> None:
    """
    :raises ConfigError: a NULL inside a structure is to be left out: a column holds the whole structure.
    """
    for field in target.schema:
        for path in _omitted_inside(field, field.name):
            raise ConfigError(
                f"`nulls: omit` of `{path}`: it is a part of the column `{field.name}`, which is written whole",
                next_step=f"remove `nulls` there, or map `{path}` to a column of its own",
            )


def _omitted_inside(field: pa.Field, path: str) -> Iterator[str]:
    for child in field.type if pa.types.is_struct(field.type) else ():
        if nulls_of(child) is Nulls.OMIT:
            yield f"{path}.{child.name}"
        yield from _omitted_inside(child, f"{path}.{child.name}")


def check_columns(target: Target, columns: Mapping[str, TableColumn]) -> None:
    """
    :raises ConfigError: a column is missing.
    """
    if missing := [name for name in target.schema.names if name not in columns]:
        raise ConfigError(
            f"the table `{target.stream}` has no column `{missing[0]}`", next_step=f"add the column, or do not map `{missing[0]}`"
        )


def check_unique_key(session: RowConnection, target: Target) -> None:
    """
    :raises ConfigError: no unique index tells the target's keys apart.
    """
    rows = session.rows(_UNIQUE_KEYS.format(table=_regclass(target.stream)), translate=_BEGINNING)
    ours = [(is_deterministic, is_immediate) for key, is_deterministic, is_immediate in rows if set(key) == set(target.key)]
    names = ", ".join(f"`{name}`" for name in target.key)
    if not ours:
        raise ConfigError(
            f"the table `{target.stream}` has no unique index on exactly {names}",
            next_step=f"make a unique index or primary key on {names}",
        )
    # ON CONFLICT takes every unique index on these columns, so one that does not do is enough.
    if not all(is_immediate for _, is_immediate in ours):
        raise ConfigError(
            f"a unique key of `{target.stream}` on {names} is deferrable, and Postgres takes no upsert by such a key",
            next_step=f"make a constraint that is NOT DEFERRABLE on {names} in its place",
        )
    if not all(is_deterministic for is_deterministic, _ in ours):
        raise ConfigError(
            f"a unique index of `{target.stream}` on {names} has a collation that calls different texts equal",
            next_step="make the index with a deterministic collation",
        )


def key_checks(target: Target, columns: Mapping[str, TableColumn]) -> Sequence[str]:
    """What a staged row `s` must fulfil for the table to keep its key as it is.

    :raises ConfigError: a column of the key calls different keys equal.
    """
    checks = (key_check(target.stream, target.schema.field(name), columns[name], quoted=identifier(name)) for name in target.key)
    return [check for check in checks if check]


def _regclass(stream: str) -> str:
    return literal(table_identifier(stream))
