"""The three logins of the state store and its database, made by an administrator's login once per installation."""

from __future__ import annotations

from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from wsync_sdk.errors import ConfigError

__all__ = ["API", "ENGINE", "OWNER", "RolePasswords", "create_database", "create_roles"]

OWNER = "wsync_owner"
ENGINE = "wsync_engine"
API = "wsync_api"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePasswords:
    """One password per login; never printed."""

    owner: str = field(repr=False)
    engine: str = field(repr=False)
    api: str = field(repr=False)


def create_roles(admin: psycopg.Connection[TupleRow], passwords: RolePasswords) -> None:
    """Make the three logins, or set the passwords of those that are there. Idempotent.

    :param admin: autocommit connection of a login that may create roles; on a managed server that need not be a superuser.
    :raises ConfigError: one of the three exists as a superuser or with BYPASSRLS.
    """
    # One at a time, whole server: roles belong to no database, and two creators would meet in pg_authid.
    with admin.transaction():
        admin.execute("SELECT pg_advisory_xact_lock(hashtext('wsync.create_roles'))")
        for role, password in ((OWNER, passwords.owner), (ENGINE, passwords.engine), (API, passwords.api)):
            _create_role(admin, role, password)


def _create_role(admin: psycopg.Connection[TupleRow], role: str, password: str) -> None:
    found = admin.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = %s", [role]).fetchone()
    if found is None:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    elif found[0]:
        raise ConfigError(
            f"the role `{role}` bypasses row-level security, so tenants would not be kept apart",
            next_step=f"run `ALTER ROLE {role} NOSUPERUSER NOBYPASSRLS` as a superuser",
        )
    # Hashed here, so that the password itself is in no server log.
    verifier = admin.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))


def create_database(admin: psycopg.Connection[TupleRow], name: str) -> None:
    """Make the database, owned by the owner's role and closed to all but the three; does nothing when it is there.

    :param admin: autocommit connection of a login that may create databases for the owner's role.
    """
    if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER)))
    admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    admin.execute(
        sql.SQL("GRANT CONNECT ON DATABASE {} TO {}, {}").format(sql.Identifier(name), sql.Identifier(ENGINE), sql.Identifier(API))
    )
