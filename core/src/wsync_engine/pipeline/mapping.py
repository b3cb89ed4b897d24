"""From a source's columns to a stream's fields, as one SQL projection over batches: no Python per row.

`compile_mapping` checks a sync's mapping against the schema a plan promises and gives the projection. What a single row gets wrong (a required
field that is NULL, a value that a cast refuses, a value the source could not represent) becomes its refusal, a text `code:place`, in the column
REFUSAL of the staged row; the row itself is staged, so that its key counts as present and is never deleted for it.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import duckdb
import pyarrow as pa

from wsync_engine.model.sync import MappingEntry, SyncSpec
from wsync_engine.pipeline.canonical import HashedField, canonical_value, hash_of_row, partition_of_key
from wsync_engine.pipeline.casts import cast_of
from wsync_engine.pipeline.local_database import arrow_table
from wsync_engine.pipeline.refusal_text import RefusalText
from wsync_engine.pipeline.shape import KeyColumn, Shape, kind_of, shape_of
from wsync_engine.pipeline.source_columns import SourceColumns
from wsync_engine.pipeline.sql import identifier, text
from wsync_sdk import ConfigError, Nulls, with_nulls

__all__ = ["HASH", "PARTITION", "REFUSAL", "CompiledMapping", "compile_mapping"]

HASH = "wsync_hash"
PARTITION = "wsync_partition"
REFUSAL = "wsync_refusal"

_JSON_METADATA = {b"wsync.logical": b"json"}
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_RENAME = "name it by AS in the query, or map the column by name"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledMapping:
    """A mapping made ready for one source schema.

    :param select: SQL over the relation `source`, whose columns are named by their places (`source_columns.placed`): the stream's fields, then HASH,
        PARTITION and REFUSAL.
    :param schema: Arrow schema of the stream's fields, JSON fields marked in their metadata.
    :param key: names of the key's fields, top-level. :param key_types: their DuckDB types. :param shape: what a later run compares its own with.
    """

    select: str
    schema: pa.Schema
    key: tuple[str, ...]
    key_types: tuple[str, ...]
    shape: Shape

    @property
    def key_columns(self) -> tuple[KeyColumn, ...]:
        """The key's fields with their types."""
        return tuple(KeyColumn(name=name, type=kind) for name, kind in zip(self.key, self.key_types, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """One mapped field: where it goes, its SQL, its type, and what refuses a row because of it."""

    path: str
    expression: str
    type: str
    refusals: tuple[tuple[str, RefusalText], ...]
    is_json: bool
    nulls: Nulls | None = None


def compile_mapping(
    spec: SyncSpec, source: pa.Schema, *, seed: str, partitions: int, casts: Mapping[str, str] | None = None
) -> CompiledMapping:
    """The projection for rows of `source`.

    :param seed: the tenant's, goes into every hash. :param casts: by field, of those that have none of their own.
    :raises ConfigError: a mapped column is not in the result, two fields are in each other's way, or the key is not mapped.
    """
    connection = duckdb.connect()
    try:
        columns = SourceColumns(connection, source)
        entries = [
            replace(entry, cast=entry.cast or (casts or {}).get(entry.target))
            for entry in spec.mapping or [MappingEntry(target=name, column=name) for name in columns.names]
        ]
        leaves = [_leaf(entry, columns) for entry in entries]
        leaves = [_asked(leaf, entry, spec) for leaf, entry in zip(leaves, entries, strict=True)]
        _check_paths([leaf.path for leaf in leaves])
        keys = [_key_leaf(name, leaves, is_mapped=bool(spec.mapping)) for name in spec.key]
        fields = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in _tree(leaves))
        select = ", ".join(
            [
                fields,
                f"{hash_of_row(seed, [_hashed(leaf) for leaf in leaves])} AS {HASH}",
                f"{partition_of_key([_key_text(leaf) for leaf in keys], partitions)} AS {PARTITION}",
                f"{_refusal(leaves, keys)} AS {REFUSAL}",
            ]
        )
        schema = arrow_table(connection, f"SELECT {fields} FROM source").schema
    finally:
        connection.close()
    marked = _with_marks(schema, leaves)
    return CompiledMapping(
        select=f"SELECT {select} FROM source",
        schema=marked,
        key=spec.key,
        key_types=tuple(leaf.type for leaf in keys),
        shape=shape_of(spec, {leaf.path: kind_of(leaf.type, is_json=leaf.is_json) for leaf in leaves}),
    )


def _asked(leaf: _Leaf, entry: MappingEntry, spec: SyncSpec) -> _Leaf:
    """The leaf with what is asked of its NULLs; a key has none, nor has a list."""
    return leaf if leaf.path in spec.key or entry.columns else replace(leaf, nulls=entry.nulls or spec.nulls)


def _leaf(entry: MappingEntry, columns: SourceColumns) -> _Leaf:
    if entry.columns:
        return _list_leaf(entry, [_column_leaf(entry, name, columns) for name in entry.columns])
    if entry.column is None:
        return _constant_leaf(entry)
    leaf = _column_leaf(entry, entry.column, columns)
    return _required(leaf, f"{leaf.expression} IS NULL", entry) if entry.required else leaf


def _column_leaf(entry: MappingEntry, name: str, columns: SourceColumns) -> _Leaf:
    column = columns.find(name, doing=f"mapping of `{entry.target}`")
    expression, kind, refusals = column.sql, column.type, []
    if column.refused is not None:
        refusals.append((column.refused, RefusalText(code="unrepresentable", field=entry.target, column=name, detail=column.out_of_range)))
    if entry.cast is not None:
        cast = cast_of(entry.cast, column.sql, column.type)
        expression, kind = cast.expression, cast.type
        refusals.append((cast.refused, RefusalText(code="cast", field=entry.target, column=name, detail=entry.cast)))
    is_json = entry.cast == "json" or (entry.cast is None and column.is_json)
    return _Leaf(path=entry.target, expression=expression, type=kind, refusals=tuple(refusals), is_json=is_json)


def _list_leaf(entry: MappingEntry, items: Sequence[_Leaf]) -> _Leaf:
    """The values of several columns, in their order and without NULLs, as one list."""
    kinds = {item.type for item in items}
    if len(kinds) > 1:
        found = ", ".join(f"`{name}` {item.type}" for name, item in zip(entry.columns, items, strict=True))
        raise ConfigError(f"mapping of `{entry.target}`: its columns are of different types: {found}", next_step="add a `cast`")
    if any(item.is_json for item in items):
        raise ConfigError(
            f"mapping of `{entry.target}`: a list can't be made of JSON columns",
            next_step="make the JSON array in the query, as one column",
        )
    expression = f"list_filter([{', '.join(item.expression for item in items)}], lambda x: x IS NOT NULL)"
    refusals = tuple(refusal for item in items for refusal in item.refusals)
    leaf = _Leaf(path=entry.target, expression=expression, type=f"{kinds.pop()}[]", refusals=refusals, is_json=False)
    return _required(leaf, f"len({expression}) = 0", entry) if entry.required else leaf


def _required(leaf: _Leaf, is_missing: str, entry: MappingEntry) -> _Leaf:
    refusal = RefusalText(code="required", field=leaf.path, column=entry.column or ", ".join(entry.columns))
    return replace(leaf, refusals=(*leaf.refusals, (is_missing, refusal)))


def _hashed(leaf: _Leaf) -> HashedField:
    return HashedField(path=leaf.path, expression=leaf.expression, type=leaf.type, is_json=leaf.is_json, nulls=leaf.nulls)


def _constant_leaf(entry: MappingEntry) -> _Leaf:
    match entry.constant:
        case None:
            expression, kind = "CAST(NULL AS VARCHAR)", "VARCHAR"
        case bool():
            expression, kind = str(entry.constant).lower(), "BOOLEAN"
        case int():
            expression, kind = f"CAST({entry.constant} AS BIGINT)", "BIGINT"
        case float():
            expression, kind = f"CAST({entry.constant!r} AS DOUBLE)", "DOUBLE"
        case _:
            expression, kind = f"CAST({text(str(entry.constant))} AS VARCHAR)", "VARCHAR"
    return _Leaf(path=entry.target, expression=expression, type=kind, refusals=(), is_json=False)


def _check_paths(given: Sequence[str]) -> None:
    """Each field has a place of its own, in the files of a run too: DuckDB knows no difference of upper and lower case in names."""
    for path in given:
        if not all(path.split(".")):
            raise ConfigError(f"mapping: `{path}` has an empty name before or after a dot", next_step=f"rename the field: {_RENAME}")
        if path.lower().startswith("wsync_"):
            raise ConfigError(
                f"mapping: `{path}` begins with `wsync_`, which is kept for the engine", next_step=f"rename the field: {_RENAME}"
            )
    paths = sorted(given, key=lambda path: (_folded(path), path))
    for before, after in pairwise(paths):
        if before == after:
            raise ConfigError(f"mapping: `{after}` is mapped twice", next_step="remove one of the two")
    spellings: dict[str, str] = {}
    for path in paths:
        if any(_folded(other).startswith(_folded(path) + ".") for other in paths):
            raise ConfigError(f"mapping: `{path}` is a field and also holds fields", next_step=f"rename one of them: {_RENAME}")
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            if (other := spellings.setdefault(_folded(name), name)) != name:
                raise ConfigError(
                    f"mapping: `{other}` and `{name}` differ in upper and lower case only", next_step=f"rename one of them: {_RENAME}"
                )


def _folded(path: str) -> str:
    """As DuckDB compares names: of ASCII letters only."""
    return path.translate(_LOWER)


def _key_leaf(name: str, leaves: Sequence[_Leaf], *, is_mapped: bool) -> _Leaf:
    for leaf in leaves:
        if leaf.path == name and "." not in name:
            if leaf.type.endswith("[]"):
                raise ConfigError(f"key `{name}` is a list", next_step="identify a subscriber by single values")
            return leaf
    paths = ", ".join(leaf.path for leaf in leaves)
    if not is_mapped:
        raise ConfigError(f"key: the query has no column `{name}`", next_step=f"the query's columns are: {paths}")
    raise ConfigError(f"key `{name}` is not a top-level field of the mapping", next_step=f"choose one of: {paths}")


def _key_text(leaf: _Leaf) -> str:
    return f"coalesce({canonical_value(leaf.expression, leaf.type)}, '')"


def _refusal(leaves: Sequence[_Leaf], keys: Sequence[_Leaf]) -> str:
    """First what makes the key unreadable, which also blocks deletes, then a NULL key, then the rest."""
    cases = [
        (condition, replace(refusal, code=f"key_{refusal.code}"))
        for leaf in keys
        for condition, refusal in leaf.refusals
        if refusal.code != "required"
    ]
    cases += [(f"{leaf.expression} IS NULL", RefusalText(code="key_null", field=leaf.path)) for leaf in keys]
    cases += [case for leaf in leaves if leaf not in keys for case in leaf.refusals]
    branches = " ".join(f"WHEN {condition} THEN {text(refusal.to_text())}" for condition, refusal in cases)
    return f"CASE {branches} END"


def _tree(leaves: Sequence[_Leaf]) -> list[tuple[str, str]]:
    """Top-level fields with their SQL; dotted paths become structs."""
    grouped: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        grouped.setdefault(leaf.path.split(".")[0], []).append(leaf)
    return [(name, _field_sql(members, depth=1)) for name, members in grouped.items()]


def _field_sql(members: Sequence[_Leaf], *, depth: int) -> str:
    first = members[0].path.split(".")
    if len(first) == depth:
        return members[0].expression
    grouped: dict[str, list[_Leaf]] = {}
    for leaf in members:
        grouped.setdefault(leaf.path.split(".")[depth], []).append(leaf)
    parts = [f"{identifier(name)} := {_field_sql(inner, depth=depth + 1)}" for name, inner in grouped.items()]
    return f"struct_pack({', '.join(parts)})"


def _with_marks(schema: pa.Schema, leaves: Sequence[_Leaf]) -> pa.Schema:
    """The schema with what its leaves' metadata says: which are JSON, and what is asked of NULLs."""
    by_path = {leaf.path: leaf for leaf in leaves}
    return pa.schema([_marked(field, field.name, by_path) for field in schema])


def _marked(field: pa.Field, path: str, leaves: Mapping[str, _Leaf]) -> pa.Field:
    leaf = leaves.get(path)
    if leaf is None and pa.types.is_struct(field.type):
        inner = [_marked(field.type.field(i), f"{path}.{field.type.field(i).name}", leaves) for i in range(field.type.num_fields)]
        return pa.field(field.name, pa.struct(inner), nullable=True)
    plain = pa.field(field.name, field.type)
    if leaf is None:
        return plain
    marked = plain.with_metadata(_JSON_METADATA) if leaf.is_json else plain
    return marked if leaf.nulls is None else with_nulls(marked, leaf.nulls)
