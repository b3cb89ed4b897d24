"""How staged rows come into the table, as SQL text. Pure.

A staged row is `s`, of a temporary table that COPY filled; a row of the destination's table is `t`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsync_postgres.driver import identifier, table_identifier
from wsync_sdk import Target

__all__ = ["Merge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """The statements for one target.

    :param types: of the table's columns, without length: CAST(x AS varchar(5)) would cut silently, the assignment of a varchar refuses.
    :param key_checks: what `s` must fulfil for the table to keep its key as it is.
    """

    target: Target
    types: Mapping[str, str]
    key_checks: Sequence[str]

    def upsert(self, staged: str) -> str:
        """Insert every row, or update the one of its key."""
        names = self.target.schema.names
        columns = ", ".join(identifier(name) for name in names)
        values = ", ".join(self._cast(name) for name in names)
        key = ", ".join(identifier(name) for name in self.target.key)
        updates = ", ".join(f"{identifier(name)} = EXCLUDED.{identifier(name)}" for name in names if name not in self.target.key)
        action = f"DO UPDATE SET {updates}" if updates else "DO NOTHING"
        return f"INSERT INTO {self._table} ({columns}) SELECT {values} FROM pg_temp.{staged} AS s ON CONFLICT ({key}) {action}"

    def delete(self, staged: str) -> str:
        """Delete by key; a key that is not there is as it shall be."""
        return f"DELETE FROM {self._table} AS t USING pg_temp.{staged} AS s WHERE {self._same_key()}"

    def misfit(self, staged: str) -> str | None:
        """Gives a row if the table would keep a key as another value; None if it keeps every one: `07` and `7` are one integer."""
        if not self.key_checks:
            return None
        return f"SELECT 1 FROM pg_temp.{staged} AS s WHERE NOT ({' AND '.join(self.key_checks)}) LIMIT 1"

    @property
    def _table(self) -> str:
        return table_identifier(self.target.stream)

    def _same_key(self) -> str:
        return " AND ".join(f"t.{identifier(name)} = {self._cast(name)}" for name in self.target.key)

    def _cast(self, name: str) -> str:
        return f"CAST(s.{identifier(name)} AS {self.types[name]})"
