"""How staged rows come into the table, and which the table did not keep, as SQL text. Runs nothing.

A trigger may drop a row or change its key, and a policy may hide it from DELETE, all without an error: so the statements tell what is there after.
A staged row is `s`, of a temporary table that COPY filled; a row of the destination's table is `t`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsync_postgres.driver import identifier, literal, table_identifier
from wsync_sdk import Nulls, Target, nulls_of

__all__ = ["Merge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """The statements for one target.

    :param types: of the table's columns, without length: CAST(x AS varchar(5)) would cut silently, the assignment of a varchar refuses.
    :param declared: the same with length or scale, as values read back.
    :param key_checks: what `s` must fulfil for the table to keep its key as it is.
    """

    target: Target
    types: Mapping[str, str]
    declared: Mapping[str, str]
    key_checks: Sequence[str]

    @property
    def values(self) -> Sequence[str]:
        """The columns beside the key."""
        return [name for name in self.target.schema.names if name not in self.target.key]

    def upsert(self, staged: str) -> str:
        """Insert every row, or update the one of its key. Gives one text: the places of staged rows whose key did not come back, or NULL."""
        updates = ", ".join(f"{identifier(name)} = {self._updated(name)}" for name in self.values)
        returned = ", ".join(f"d.{identifier(name)}" for name in self.target.key)
        insert = f"{self._insert(staged)} DO UPDATE SET {updates} RETURNING {returned}"
        kept = f"SELECT FROM t WHERE {self._same_key}"
        return f"WITH t AS ({insert}) SELECT CAST(array_agg(s.ctid) AS text) FROM pg_temp.{staged} AS s WHERE NOT EXISTS ({kept})"

    def append(self, staged: str) -> str:
        """Insert every row, whatever keys are there; a table with a unique key refuses one that is."""
        return self._plain_insert(staged)

    def insert_keys(self, staged: str) -> str:
        """For a target without values: insert the keys that are not there. An upsert would give no row for those that are."""
        return f"{self._insert(staged)} DO NOTHING"

    def delete(self, staged: str) -> str:
        """Delete by key; a key that is not there is as it shall be."""
        return f"DELETE FROM {self._table} AS t USING pg_temp.{staged} AS s WHERE {self._same_key}"

    def present(self, staged: str) -> str:
        """How many of the staged keys the table has; a row that a policy hides from the login is not seen."""
        return f"SELECT count(*) FROM pg_temp.{staged} AS s WHERE EXISTS (SELECT FROM {self._table} AS t WHERE {self._same_key})"

    def differing(self, staged: str, places: str) -> str:
        """Gives a row if the table does not hold the staged rows at `places`, value for value. Compared as texts: json has no equality."""
        values = [
            f"({self._left_out(name)}CAST(t.{identifier(name)} AS text) IS NOT DISTINCT FROM CAST({self._cast(name, self.declared)} AS text))"
            for name in self.values
        ]
        same = f"SELECT FROM {self._table} AS t WHERE {' AND '.join([self._same_key, *values])}"
        chosen = f"s.ctid = ANY (CAST({literal(places)} AS tid[]))"
        return f"SELECT 1 FROM pg_temp.{staged} AS s WHERE {chosen} AND NOT EXISTS ({same}) LIMIT 1"

    def misfit(self, staged: str) -> str | None:
        """Gives a row if the table would keep a key as another value; None if it keeps every one: `07` and `7` are one integer."""
        if not self.key_checks:
            return None
        return f"SELECT 1 FROM pg_temp.{staged} AS s WHERE NOT ({' AND '.join(self.key_checks)}) LIMIT 1"

    def _updated(self, name: str) -> str:
        """What a row that is there gets: of a field that is left out where it is NULL, what it has."""
        new = f"EXCLUDED.{identifier(name)}"
        return f"coalesce({new}, d.{identifier(name)})" if self._is_omitted(name) else new

    def _left_out(self, name: str) -> str:
        return f"s.{identifier(name)} IS NULL OR " if self._is_omitted(name) else ""

    def _is_omitted(self, name: str) -> bool:
        return nulls_of(self.target.schema.field(name)) is Nulls.OMIT

    @property
    def _table(self) -> str:
        return table_identifier(self.target.stream)

    @property
    def _key(self) -> str:
        return ", ".join(identifier(name) for name in self.target.key)

    @property
    def _same_key(self) -> str:
        return " AND ".join(f"t.{identifier(name)} = {self._cast(name, self.types)}" for name in self.target.key)

    def _insert(self, staged: str) -> str:
        return f"{self._plain_insert(staged)} ON CONFLICT ({self._key})"

    def _plain_insert(self, staged: str) -> str:
        names = self.target.schema.names
        columns = ", ".join(identifier(name) for name in names)
        values = ", ".join(self._cast(name, self.types) for name in names)
        return f"INSERT INTO {self._table} AS d ({columns}) SELECT {values} FROM pg_temp.{staged} AS s"

    def _cast(self, name: str, types: Mapping[str, str]) -> str:
        return f"CAST(s.{identifier(name)} AS {types[name]})"
