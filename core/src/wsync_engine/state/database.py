"""Connecting to the state store, one tenant per transaction, and bringing its schema up to date.

Three logins: the owner migrates, the engine (schedulers, supervisors) sees every tenant by a policy, the api (API, CLI, task children) sees
the one tenant that its transaction names. Never may engine or api log in as a superuser: row-level security would silently not apply.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from wsync_engine.state.roles import API, ENGINE, OWNER
from wsync_sdk.errors import ConfigError, RetryableError, StateError

__all__ = ["check_schema", "connect", "ensure_schema", "refuse_unsafe_login", "schema_revisions", "tenant_transaction", "upgrade"]

MIGRATIONS = Path(__file__).with_name("migrations")
OLDEST_POSTGRES = 14
MIGRATE_FOR_S = 60.0
MIGRATE_PAUSE_S = 0.3
MIGRATE_LOCK_MS = 900
_BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
# What a server says when waiting will not help: credentials, database or rules are wrong.
REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied", "is not permitted to log in")


def connect(url: str, *, application_name: str, idle_in_transaction_s: float = 10.0) -> psycopg.Connection[TupleRow]:
    """Open a connection in autocommit mode: a transaction is what stands inside `with connection.transaction()`.

    Instants come in UTC, whatever the server's zone: arithmetic on those of a zone with daylight saving would be wall-clock arithmetic.
    A dead peer is noticed within 20 s (keepalives 5 s × 3), a lock is waited for 2 s, a transaction that idles is ended by the server.

    :raises ConfigError: the address can't be parsed, or the server refuses this login or database.
    :raises RetryableError: the server can't be reached.
    """
    options = f"-c timezone=UTC -c lock_timeout=2000 -c idle_in_transaction_session_timeout={round(idle_in_transaction_s * 1000)}"
    try:
        return psycopg.connect(
            url,
            autocommit=True,
            application_name=application_name,
            connect_timeout=5,
            keepalives=1,
            keepalives_idle=5,
            keepalives_interval=5,
            keepalives_count=3,
            options=options,
        )
    except psycopg.ProgrammingError:  # its text repeats the address, password and all
        raise ConfigError("the state store's address can't be read", next_step="write it as postgresql://user@host:port/database") from None
    except psycopg.OperationalError as exc:
        reason = str(exc).strip().splitlines()[-1]
        if any(refusal in reason for refusal in REFUSALS):
            raise ConfigError(f"the state store refused the login: {reason}", next_step="correct WSYNC_DATABASE_URL_…") from exc
        raise RetryableError(
            f"the state store can't be reached: {reason}", next_step="start Postgres, or correct WSYNC_DATABASE_URL_…"
        ) from exc


@contextmanager
def tenant_transaction(connection: psycopg.Connection[TupleRow], tenant_id: UUID) -> Iterator[psycopg.Connection[TupleRow]]:
    """One transaction that sees and writes the rows of one tenant only; must not be opened inside another."""
    if connection.info.transaction_status != TransactionStatus.IDLE:
        raise StateError("a tenant's transaction was opened inside another", next_step="report this: it is a bug of the engine")
    with connection.transaction():
        connection.execute("SELECT set_config('wsync.tenant_id', %s, true)", [str(tenant_id)])
        yield connection


def upgrade(owner_url: str) -> None:
    """Bring the schema to this engine's version, in one transaction; does nothing when it is there. Safe to call from many processes, and
    while engines work on it.

    :param owner_url: login that owns the database's `wsync` schema; the roles must exist.
    :raises ConfigError: the schema is newer than this engine, or a role is missing.
    :raises RetryableError: for a minute there was no moment in which all tables could be locked.
    """
    with connect(owner_url, application_name="wsync db upgrade") as check:
        revision = _schema_revision(check)
        if _is_newer(revision):
            raise _older_engine()
        if revision == schema_revisions()[-1]:
            return
        _refuse_missing_roles(check)
    give_up_at_s = time.monotonic() + MIGRATE_FOR_S
    while not _migrate(owner_url):
        if time.monotonic() > give_up_at_s:
            raise RetryableError("the tables are too busy to be changed", next_step="run `wsync-engine db upgrade` in a quieter moment")
        time.sleep(MIGRATE_PAUSE_S)


def _migrate(owner_url: str) -> bool:
    """One try; False: a lock was not to be had in time, and nothing was changed.

    A migration locks table after table, in another order than engines do. It gives up before the server looks for deadlocks (1 s), as it would
    be the victim, and what queues up behind it waits no longer than that.
    """
    from alembic import command  # noqa: PLC0415  a migration is rare; every other process starts without Alembic
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy import create_engine, text  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(owner_url, application_name="wsync db upgrade"), poolclass=NullPool
    )
    try:
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATE_LOCK_MS}ms'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('wsync.upgrade'))"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except _BUSY:
        return False
    except DBAPIError as exc:
        if not isinstance(exc.orig, _BUSY):
            raise
        return False
    return True


def _refuse_missing_roles(connection: psycopg.Connection[TupleRow]) -> None:
    """The schema grants to the engine's and the api's logins by name."""
    found = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [[OWNER, ENGINE, API]])}
    missing = [role for role in (OWNER, ENGINE, API) if role not in found]
    if missing:
        statements = "; ".join(f"CREATE ROLE {role} LOGIN PASSWORD '…'" for role in missing)
        raise ConfigError(
            f"the server has no role {', '.join(f'`{role}`' for role in missing)}: the state store's logins have these names",
            next_step=f"as an administrator: {statements}",
        )


def check_schema(url: str) -> None:
    """Refuse to start on a server, login or schema that this engine can't work with. Meant for the engine's and the api's logins.

    A schema that is newer than this engine will do if it has only been added to since a revision that this engine knows: see `_fits`.

    :raises ConfigError: Postgres is too old, the login could bypass row-level security, or the schema is older or too new for this engine.
    """
    with connect(url, application_name="wsync check") as connection:
        if connection.info.server_version < OLDEST_POSTGRES * 10_000:
            found = connection.info.server_version // 10_000
            raise ConfigError(f"Postgres {found} is too old", next_step=f"use Postgres {OLDEST_POSTGRES} or newer for the state store")
        refuse_unsafe_login(connection)
        fits = _fits(connection)
    if not fits:
        raise ConfigError("the state store's schema is older than this engine", next_step="run `wsync-engine db upgrade`")


def ensure_schema(owner_url: str) -> None:
    """`upgrade` if the schema is older than this engine; quick when it is not.

    :raises ConfigError: the schema is too new for this engine.
    """
    with connect(owner_url, application_name="wsync check") as connection:
        fits = _fits(connection)
    if not fits:
        upgrade(owner_url)


def _fits(connection: psycopg.Connection[TupleRow]) -> bool:
    """Whether this engine can work on the schema; False: it has to be upgraded first.

    A migration that expands leaves `compatible_from` at the oldest revision whose engines go on beside it; one that contracts names itself,
    or whichever revision stopped using what it removes. Each revision that we know is at most our own, so knowing the one that is named is enough.

    :raises ConfigError: the schema is newer, and has lost something that this engine uses.
    """
    revision = _schema_revision(connection)
    if not _is_newer(revision):
        return revision == schema_revisions()[-1]
    row = connection.execute("SELECT wsync.setting_value('compatible_from')").fetchone()
    if row is None or row[0] not in schema_revisions():
        raise _older_engine()
    return True


def _is_newer(revision: str | None) -> bool:
    return revision is not None and revision not in schema_revisions()


def _older_engine() -> ConfigError:
    return ConfigError("this engine is older than the database", next_step="upgrade wsync-engine to the version that made this schema")


def refuse_unsafe_login(connection: psycopg.Connection[TupleRow]) -> None:
    """Row-level security does not apply to a superuser, nor to a login with BYPASSRLS.

    :raises ConfigError: the login of this connection is, or may become by SET ROLE, one of these.
    """
    rows = connection.execute(
        "SELECT rolname FROM pg_roles WHERE (rolsuper OR rolbypassrls) AND pg_has_role(session_user, oid, 'MEMBER') LIMIT 1"
    ).fetchall()
    if rows:
        login = connection.info.user
        raise ConfigError(
            f"the login `{login}` bypasses row-level security, so tenants would not be kept apart",
            next_step="use a login without SUPERUSER and BYPASSRLS in WSYNC_DATABASE_URL_ENGINE and WSYNC_DATABASE_URL_API",
        )


def _schema_revision(connection: psycopg.Connection[TupleRow]) -> str | None:
    try:
        row = connection.execute("SELECT version_num FROM wsync.schema_version").fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.InsufficientPrivilege):
        return None
    return str(row[0]) if row else None


def schema_revisions() -> list[str]:
    """Revisions this engine knows, oldest first; a revision is its file's name, so that no process needs Alembic to know them."""
    return sorted(path.stem for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
