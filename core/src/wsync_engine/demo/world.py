"""The demo's two databases: a warehouse of subscribers, and the store they are brought to, each with a login of its own."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

__all__ = ["ADDED", "CHANGED", "DELETED", "QUERY", "ROWS", "World"]

ROWS, CHANGED, ADDED, DELETED = 100_000, 1_000, 500, 200
QUERY = "SELECT id, email, full_name, plan, city, balance, active, created_at FROM customer"

_CREATE = """
CREATE TABLE customer (
    id bigint PRIMARY KEY, email text NOT NULL, full_name text, plan text, city text, balance numeric(12, 2), active boolean, created_at timestamptz
)
"""
_FILL = """
INSERT INTO customer
SELECT n, 'user' || n || '@example.com',
    CASE WHEN n %% 11 > 0 THEN (ARRAY['Zoë', 'Łukasz', '美咲', 'Aarav', 'فاطمة', 'Núria', 'Oʼneil'])[1 + n %% 7] || ' '
        || (ARRAY['Müller', 'Šimić', '佐藤', 'D''Souza', 'García'])[1 + n %% 5] END,
    (ARRAY['free', 'pro', 'team', NULL])[1 + n %% 4], (ARRAY['Köln', 'São Paulo', '東京', 'Pune'])[1 + n / 3 %% 4],
    (n * 7919 %% 1000000) / 100.0, n %% 3 = 0, timestamptz '2024-01-01 00:00:00Z' + n * interval '37 seconds'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Addresses of the demo's databases; the superuser's address makes and changes them, the sync never sees it."""

    admin_url: str = field(repr=False)
    warehouse_url: str = field(repr=False)
    store_url: str = field(repr=False)

    @classmethod
    def build(cls, admin_url: str) -> World:
        """Make both databases and fill the warehouse."""
        server = admin_url.rpartition("@")[2].rpartition("/")[0]
        world = cls(
            admin_url=admin_url,
            warehouse_url=_login(admin_url, server, "demo_warehouse"),
            store_url=_login(admin_url, server, "demo_store"),
        )
        with world._warehouse() as connection:
            connection.execute(_CREATE)
            connection.execute(_FILL, {"first": 1, "last": ROWS})
            connection.execute("GRANT SELECT ON customer TO demo_warehouse")
            connection.execute("ANALYZE customer")
        return world

    def change(self) -> None:
        """One transaction: rows change, come and go."""
        with self._warehouse() as connection, connection.transaction():
            connection.execute("UPDATE customer SET plan = 'enterprise', balance = balance + 1 WHERE id <= %s", (CHANGED,))
            connection.execute("DELETE FROM customer WHERE id > %s AND id <= %s", (CHANGED, CHANGED + DELETED))
            connection.execute(_FILL, {"first": ROWS + 1, "last": ROWS + ADDED})

    def digests(self) -> tuple[tuple[int, str], tuple[int, str]]:
        """(rows, digest of all values in key order) of the query's result and of the store."""
        table = QUERY.replace("FROM customer", "FROM subscriber")
        return _digest(self.warehouse_url, QUERY), _digest(self.store_url, table)

    def result(self) -> dict[int, dict[str, Any]]:
        """The query's result by id, with values as JSON has them."""
        with psycopg.connect(self.warehouse_url, row_factory=dict_row) as connection:
            rows = connection.execute(QUERY).fetchall()
        return {row["id"]: {**row, "created_at": row["created_at"].astimezone(UTC).isoformat().replace("+00:00", "Z")} for row in rows}

    def _warehouse(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.admin_url.rpartition("/")[0] + "/demo_warehouse", autocommit=True)


def _login(admin_url: str, server: str, name: str) -> str:
    password = secrets.token_hex(12)
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password)))
        owner = sql.SQL(" OWNER {}").format(sql.Identifier(name)) if name == "demo_store" else sql.SQL("")
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)) + owner)
    return f"postgresql://{name}:{password}@{server}/{name}"


def _digest(url: str, query: str) -> tuple[int, str]:
    digest, rows = hashlib.sha256(), 0
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        statement = f"COPY ({query} ORDER BY id) TO STDOUT"
        with cursor.copy(statement.encode()) as copy:
            for data in copy:
                digest.update(data)
        rows = cursor.rowcount
    return rows, digest.hexdigest()
