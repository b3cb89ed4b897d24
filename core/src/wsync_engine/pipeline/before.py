"""Before-values: what a destination may hold of some fields of a row, for streams that have to take the old value away (`StreamSpec.needs_before`).

The snapshot keeps them sealed, in the column SEALED: they are people's addresses, where all else in it are keys and hashes. Opened it is a JSON object,
field → list of JSON texts. A list, because a change without a verdict leaves two values that may be there:

    accepted upsert → the new value       sent, no verdict → those known so far, and the new one
    rejected, not sent → as before        accepted delete → the entry goes

None is known of a row that was last sent before the stream asked for them; the column is NULL then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa
from duckdb.func import PythonUDFType

from wsync_engine.pipeline.sql import identifier, text
from wsync_engine.state.records import Sealer
from wsync_sdk import WsyncError

__all__ = ["SEALED", "BeforeField", "before_fields", "before_struct", "known_after_send", "known_when_accepted", "sealing"]

SEALED = "wsync_before"
_JSON = b"json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeField:
    """A field whose values are kept; dots nest. `is_json`: its text is JSON already."""

    path: str
    is_json: bool

    def json_of(self, table: str) -> str:
        """SQL of the field's value in a row of `table` as JSON text; NULL stays NULL."""
        parts = ".".join(identifier(part) for part in self.path.split("."))
        return f"{table}.{parts}" if self.is_json else f"CAST(to_json({table}.{parts}) AS VARCHAR)"


def before_fields(needed: Iterable[str], schema: pa.Schema) -> tuple[BeforeField, ...]:
    """Those of the needed fields that are mapped, in order of their names."""
    found = ((path, _field_at(path, schema)) for path in sorted(needed))
    return tuple(BeforeField(path=path, is_json=_is_json(field)) for path, field in found if field is not None)


def _field_at(path: str, schema: pa.Schema) -> pa.Field | None:
    first, *rest = path.split(".")
    place = schema.get_field_index(first)
    field = schema.field(place) if place >= 0 else None
    for part in rest:
        if field is None or not pa.types.is_struct(field.type):
            return None
        place = field.type.get_field_index(part)
        field = field.type.field(place) if place >= 0 else None
    return field


def _is_json(field: pa.Field) -> bool:
    return bool((field.metadata or {}).get(b"wsync.logical") == _JSON)


# -- SQL. `wsync_seal` and `wsync_unseal` are there inside `sealing`.


def before_struct(fields: Sequence[BeforeField], sealed: str) -> str:
    """What is known, as a struct of lists; NULL where nothing is."""
    shape = ", ".join(f'{_json_string(field.path)}: ["VARCHAR"]' for field in fields)
    return f"from_json(wsync_unseal({sealed}), {text('{' + shape + '}')})"


def known_when_accepted(fields: Sequence[BeforeField], row: str) -> str:
    """The sealed values of a row that the destination took."""
    return _sealed(fields, [f"list_filter([{field.json_of(row)}], lambda x: x IS NOT NULL)" for field in fields])


def known_after_send(fields: Sequence[BeforeField], row: str, sealed: str) -> str:
    """The sealed values of a row of which nobody knows whether the destination took it: what was known stays."""
    known = before_struct(fields, sealed)
    lists = [
        f"list_filter(list_distinct(list_append(coalesce(({known}).{identifier(field.path)}, []), {field.json_of(row)})),"
        " lambda x: x IS NOT NULL)"
        for field in fields
    ]
    return _sealed(fields, lists)


def _sealed(fields: Sequence[BeforeField], lists: Sequence[str]) -> str:
    packed = ", ".join(f"{text(field.path)}, {values}" for field, values in zip(fields, lists, strict=True))
    return f"wsync_seal(CAST(json_object({packed}) AS VARCHAR))"


def _json_string(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextmanager
def sealing(connection: duckdb.DuckDBPyConnection, fields: Sequence[BeforeField], sealer: Sealer) -> Iterator[None]:
    """Inside, SQL can seal and open values.

    :raises ConfigError: one can't be opened.
    """
    if not fields:
        yield
        return
    failures: list[WsyncError] = []

    def seal(values: pa.StringArray) -> pa.BinaryArray:
        return pa.array(sealer.seal([None if x is None else x.encode() for x in values.to_pylist()]), pa.binary())

    def unseal(values: pa.BinaryArray) -> pa.StringArray:
        try:
            opened = sealer.open(values.to_pylist())
        except WsyncError as exc:
            failures.append(exc)
            raise
        return pa.array([None if x is None else x.decode() for x in opened], pa.string())

    connection.create_function("wsync_seal", seal, ["VARCHAR"], "BLOB", type=PythonUDFType.ARROW, side_effects=True)
    connection.create_function("wsync_unseal", unseal, ["BLOB"], "VARCHAR", type=PythonUDFType.ARROW)
    try:
        yield
    except duckdb.Error:
        if failures:
            raise failures[0] from None
        raise
