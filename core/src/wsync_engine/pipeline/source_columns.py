"""A result's columns as DuckDB sees them: named by their places.

DuckDB takes names that differ in upper and lower case only for one, and renames the second of two in silence; a warehouse does not. So a column's own
name is never an identifier here: `c0`, `c1` … are.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

import duckdb
import pyarrow as pa

from wsync_engine.pipeline.sql import text
from wsync_sdk import REFUSED_COLUMNS, ConfigError

__all__ = ["SourceColumn", "SourceColumns", "placed"]

_JSON = b"json"
_OUT_OF_RANGE = (
    (pa.types.is_timestamp, "infinite, or outside the years 1 to 9999"),
    (pa.types.is_date, "infinite, or outside the years 1 to 9999"),
    (pa.types.is_time, "24:00, which is no time of day"),
    (pa.types.is_decimal, "NaN or infinite"),
    (pa.types.is_list, "an array of several dimensions, or one that holds a value out of range"),
    (pa.types.is_string, "not UTF-8"),
)


def placed(schema: pa.Schema) -> pa.Schema:
    """The schema with each column named by its place."""
    return pa.schema([field.with_name(f"c{place}") for place, field in enumerate(schema)])


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceColumn:
    """One column of the result: its own name, its name in SQL, and its DuckDB type.

    :param refused: SQL that is true where the source had a value that it could not give; None: it always can. :param out_of_range: such a value, in words.
    """

    name: str
    sql: str
    type: str
    is_json: bool
    refused: str | None
    out_of_range: str


class SourceColumns:
    """The columns of a result, by their own names."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, source: pa.Schema) -> None:
        self._schema = source
        connection.register("source", placed(source).empty_table())
        rows = connection.execute("DESCRIBE SELECT * FROM source").fetchall()
        self._types = {name: kind for name, kind, *_ in rows}
        self._places = {name: place for place, name in enumerate(source.names)}

    @property
    def names(self) -> list[str]:
        """In the order of the result."""
        return [name for name in self._schema.names if name != REFUSED_COLUMNS]

    def find(self, name: str, *, doing: str) -> SourceColumn:
        """The column of that name.

        :param doing: begins the error's message. :raises ConfigError: there is none.
        """
        if name not in self._places or name == REFUSED_COLUMNS:
            near = get_close_matches(name, self.names, n=1)
            raise ConfigError(
                f"{doing}: the query has no column `{name}`",
                next_step=f"did you mean `{near[0]}`?" if near else f"the query's columns are: {', '.join(self.names)}",
            )
        field, sql = self._schema.field(self._places[name]), f"c{self._places[name]}"
        marks = self._places.get(REFUSED_COLUMNS)
        return SourceColumn(
            name=name,
            sql=sql,
            type=self._types[sql],
            is_json=(field.metadata or {}).get(b"wsync.logical") == _JSON,
            refused=None if marks is None else f"list_contains(c{marks}, {text(name)})",
            out_of_range=next((words for is_it, words in _OUT_OF_RANGE if is_it(field.type)), "out of range"),
        )
