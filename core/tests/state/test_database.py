"""Logins, tenants' transactions and the schema's version."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from wsync_engine.embedded.processes import free_port, wait_until
from wsync_engine.state.database import check_schema, connect, ensure_schema, schema_revisions, tenant_transaction, upgrade
from wsync_engine.state.roles import RolePasswords, create_database, create_roles
from wsync_engine.state.tenants import ensure_tenant, find_tenant, tenant_named
from wsync_sdk.errors import ConfigError, RetryableError, StateError


def test_the_schema_is_made_from_nothing_and_a_second_upgrade_changes_nothing(servers) -> None:
    with psycopg.connect(servers.endpoints.admin_url, autocommit=True) as admin:
        create_database(admin, "from_nothing")
    url = servers.endpoints.database_url_owner.removesuffix("/wsync") + "/from_nothing"

    upgrade(url)
    upgrade(url)

    check_schema(servers.endpoints.database_url_api.removesuffix("/wsync") + "/from_nothing")
    with connect(url, application_name="test") as connection:
        assert connection.execute("SELECT version_num FROM wsync.schema_version").fetchall() == [(schema_revisions()[-1],)]


def of_the_first_revision(servers) -> tuple[str, str]:
    """The owner's and the engine's address of a store as the first engine made it."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine

    from wsync_engine.state.database import MIGRATIONS

    name = f"first_{uuid4().hex}"
    with psycopg.connect(servers.endpoints.admin_url, autocommit=True) as admin:
        create_database(admin, name)
    ends = servers.endpoints
    owner_url, engine_url = (url.removesuffix("/wsync") + f"/{name}" for url in (ends.database_url_owner, ends.database_url_engine))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(owner_url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, schema_revisions()[0])
    engine.dispose()
    return owner_url, engine_url


def test_an_upgrade_makes_way_for_engines_that_lock_in_another_order_and_tries_again(servers) -> None:
    owner_url, engine_url = of_the_first_revision(servers)
    with (
        psycopg.connect(servers.endpoints.admin_url, autocommit=True) as admin,
        connect(engine_url, application_name="test") as engine,
        ThreadPoolExecutor() as pool,
    ):
        with engine.transaction():
            engine.execute("SELECT FROM wsync.run FOR UPDATE")
            upgrading = pool.submit(upgrade, owner_url)
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wsync db upgrade' AND wait_event_type = 'Lock'"
            assert wait_until(lambda: admin.execute(waiting).fetchone() == (1,), timeout_s=10)

            engine.execute("SELECT FROM wsync.schedule")

        upgrading.result(60)

    check_schema(engine_url)


def test_each_revision_is_called_as_its_file() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from wsync_engine.state.database import MIGRATIONS

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    newest_first = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert newest_first[::-1] == schema_revisions()


@pytest.mark.parametrize("statement", ["DROP SCHEMA wsync CASCADE", "DELETE FROM wsync.schema_version"])
def test_an_engine_on_an_older_schema_says_how_to_upgrade_it(database, statement: str) -> None:
    with connect(database.owner_url, application_name="test") as owner:
        owner.execute(statement)

    with pytest.raises(ConfigError, match="schema is older") as refused:
        check_schema(database.engine_url)

    assert refused.value.next_step == "run `wsync-engine db upgrade`"


def make_newer(database, compatible_from: str | None) -> None:
    """A schema of tomorrow's engine, and what it says of older ones."""
    with connect(database.owner_url, application_name="test") as owner:
        owner.execute("UPDATE wsync.schema_version SET version_num = '9999_tomorrow'")
        owner.execute("DELETE FROM wsync.setting WHERE key = 'compatible_from'")
        if compatible_from is not None:
            owner.execute("INSERT INTO wsync.setting (key, value) VALUES ('compatible_from', to_jsonb(%s::text))", (compatible_from,))


@pytest.mark.parametrize("start", [check_schema, ensure_schema])
@pytest.mark.parametrize("compatible_from", ["9999_tomorrow", "9998_eve", None])
def test_an_engine_on_a_newer_schema_says_that_it_is_the_older_one(database, start, compatible_from: str | None) -> None:
    make_newer(database, compatible_from)

    with pytest.raises(ConfigError, match="this engine is older than the database"):
        start(database.owner_url)


@pytest.mark.parametrize("revision", schema_revisions())
@pytest.mark.parametrize("role", ["owner", "engine", "api"])
def test_an_engine_starts_on_a_newer_schema_that_was_only_added_to_since_a_revision_that_it_knows(database, role, revision: str) -> None:
    make_newer(database, compatible_from=revision)

    check_schema(getattr(database, f"{role}_url"))


def test_an_older_engine_leaves_a_newer_schema_as_it_is(database) -> None:
    make_newer(database, compatible_from=schema_revisions()[-1])

    ensure_schema(database.owner_url)

    with pytest.raises(ConfigError, match="this engine is older than the database"):
        upgrade(database.owner_url)
    with connect(database.owner_url, application_name="test") as owner:
        assert owner.execute("SELECT version_num FROM wsync.schema_version").fetchall() == [("9999_tomorrow",)]


def test_the_present_schema_names_a_revision_that_older_engines_may_know(database) -> None:
    with connect(database.api_url, application_name="test") as api:
        (named,) = api.execute("SELECT wsync.setting_value('compatible_from')").fetchone()

    assert named in schema_revisions()


def test_a_superuser_login_is_refused(servers, database) -> None:
    name = database.owner_url.rsplit("/", 1)[1]

    with pytest.raises(ConfigError, match="bypasses row-level security"):
        check_schema(servers.endpoints.admin_url.removesuffix("/postgres") + f"/{name}")


@pytest.mark.parametrize("attribute", ["SUPERUSER", "BYPASSRLS"])
@pytest.mark.parametrize("through_a_group", [False, True])
def test_a_login_that_is_or_can_become_exempt_from_row_level_security_is_refused(servers, database, attribute, through_a_group) -> None:
    login, group = f"login_{uuid4().hex}", f"group_{uuid4().hex}"
    exempt = group if through_a_group else login
    with psycopg.connect(servers.endpoints.admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' IN ROLE wsync_api").format(sql.Identifier(login)))
        admin.execute(sql.SQL("CREATE ROLE {} ROLE {}").format(sql.Identifier(group), sql.Identifier(login)))
        admin.execute(sql.SQL("ALTER ROLE {} " + attribute).format(sql.Identifier(exempt)))
        try:
            with pytest.raises(ConfigError, match="bypasses row-level security"):
                check_schema(database.api_url.replace(database.api_url.split("//")[1].split("@")[0], f"{login}:x"))
        finally:
            admin.execute(sql.SQL("DROP ROLE {}, {}").format(sql.Identifier(login), sql.Identifier(group)))


def test_a_role_of_ours_that_is_a_superuser_is_not_taken_over(servers) -> None:
    passwords = RolePasswords(owner="a", engine="b", api="c")
    with psycopg.connect(servers.endpoints.admin_url, autocommit=True) as admin, admin.transaction(force_rollback=True):
        admin.execute("ALTER ROLE wsync_api BYPASSRLS")

        with pytest.raises(ConfigError, match="`wsync_api` bypasses"):
            create_roles(admin, passwords)


@pytest.mark.parametrize("role", ["owner", "engine", "api"])
def test_none_of_the_three_logins_is_exempt_from_row_level_security(database, role: str) -> None:
    check_schema(getattr(database, f"{role}_url"))


def test_a_wrong_password_is_a_configuration_error_without_the_password(database) -> None:
    with pytest.raises(ConfigError, match="password authentication failed") as refused:
        connect(database.api_url.replace("wsync_api:", "wsync_api:hunter2"), application_name="test")

    assert "hunter2" not in str(refused.value)


def test_an_unreadable_address_is_a_configuration_error_without_the_address() -> None:
    with pytest.raises(ConfigError) as refused:
        connect("postgresq//user:hunter2@host/x", application_name="test")

    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_server_that_is_down_may_be_tried_again() -> None:
    with pytest.raises(RetryableError, match="can't be reached"):
        connect(f"postgresql://user@127.0.0.1:{free_port()}/x", application_name="test")


def test_a_connection_gives_up_on_locks_and_on_idling_in_a_transaction(database) -> None:
    with connect(database.engine_url, application_name="test") as connection:
        settings = [connection.execute(f"SHOW {name}").fetchone()[0] for name in ("lock_timeout", "idle_in_transaction_session_timeout")]

    assert settings == ["2s", "10s"]


def test_a_tenants_transaction_inside_another_is_refused(database) -> None:
    with (
        connect(database.api_url, application_name="test") as connection,
        tenant_transaction(connection, uuid4()),
        pytest.raises(StateError),
        tenant_transaction(connection, uuid4()),
    ):
        pass


def test_a_tenant_is_made_once_and_found_by_its_name(database) -> None:
    with connect(database.api_url, application_name="a") as first, connect(database.api_url, application_name="b") as second:
        made = ensure_tenant(first, "acme")

        assert ensure_tenant(second, "acme") == made == tenant_named(second, "acme")
        assert find_tenant(second, "other") is None
        with pytest.raises(ConfigError, match="no tenant `other`"):
            tenant_named(second, "other")


def test_instants_come_in_utc_whatever_the_servers_zone(database) -> None:
    with connect(database.engine_url, application_name="test") as engine:
        name = engine.info.dbname
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute(sql.SQL("ALTER DATABASE {} SET timezone = 'Europe/Berlin'").format(sql.Identifier(name)))
    try:
        with psycopg.connect(database.engine_url) as plain, connect(database.engine_url, application_name="test") as engine:
            (zone,) = plain.execute("SHOW timezone").fetchone() or ("",)
            (found,) = engine.execute("SELECT CAST('2026-10-25 00:30Z' AS timestamptz)").fetchone() or (None,)
    finally:
        with psycopg.connect(database.owner_url, autocommit=True) as owner:
            owner.execute(sql.SQL("ALTER DATABASE {} RESET timezone").format(sql.Identifier(name)))

    assert zone == "Europe/Berlin"
    assert found.utcoffset() == timedelta(0)
    assert found + timedelta(hours=1) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
