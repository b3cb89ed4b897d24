"""What a command works with: settings, servers (started here if none are set), one connection, plugins, keys and the tenant."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from wsync_engine.cli.output import say
from wsync_engine.embedded.servers import EmbeddedServers, has_servers
from wsync_engine.index.connection import connect as connect_index
from wsync_engine.index.due_index import Index
from wsync_engine.index.entries import DefaultCaps
from wsync_engine.index.shards import Shards
from wsync_engine.model.ids import TenantId
from wsync_engine.scheduler.schedules import ANNOUNCE_TIMEOUT_S
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.secrets.references import tenant_folders
from wsync_engine.services.shards import settle_shards
from wsync_engine.settings import Settings
from wsync_engine.state.database import check_schema, connect
from wsync_engine.state.tenants import tenant_named
from wsync_engine.telemetry import log_to_stderr
from wsync_sdk.errors import ConfigError, RetryableError
from wsync_sdk.network import AddressPolicy

if TYPE_CHECKING:  # roles that touch no rows stay without plugins, and so without Arrow
    from wsync_engine.plugins import PluginHost

__all__ = [
    "FILE",
    "Session",
    "Urls",
    "actor",
    "address_policy",
    "default_caps",
    "is_installed",
    "keyring_of",
    "load_plugins",
    "log_to_errors",
    "open_session",
    "plugins_file",
    "stored_keyring",
    "tenant_name_of",
    "urls_of",
]

FILE = Path("wsync.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """Where the servers are, passwords included; never printed."""

    owner: str = field(repr=False)
    engine: str = field(repr=False)
    api: str = field(repr=False)
    redis: str = field(repr=False)


class Session:
    """One command's use of the installation."""

    def __init__(self, settings: Settings, urls: Urls, api: psycopg.Connection[Any], tenant: str | None) -> None:
        self.settings = settings
        self.urls = urls
        self.api = api
        self._tenant = tenant

    @cached_property
    def tenant_id(self) -> TenantId:
        """The tenant that the command is about: `--tenant`, else the one that ./wsync.yaml names."""
        return tenant_named(self.api, self.tenant)

    @cached_property
    def tenant(self) -> str:
        """Its name."""
        return tenant_name_of(self._tenant)

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """Where its secret files may lie."""
        return tenant_folders(self.settings.secret_folders, self.tenant)

    @cached_property
    def host(self) -> PluginHost:
        """The plugins."""
        return load_plugins(self.settings)

    @cached_property
    def keyring(self) -> Keyring:
        """The installation's keys."""
        return keyring_of(self.settings)

    @cached_property
    def shards(self) -> Shards | None:
        """For announcements: a server that is slow or away costs little; None: a cluster of which no node answers."""
        with connect(self.urls.engine, application_name="wsync cli") as conn:
            count = settle_shards(conn, self.urls.redis)
        try:
            return Shards(connect_index(self.urls.redis, timeout_s=ANNOUNCE_TIMEOUT_S), count, default_caps=default_caps(self.settings))
        except RetryableError:
            return None

    @property
    def index(self) -> Index | None:
        """The tenant's shard."""
        return None if self.shards is None else self.shards.of(self.tenant_id)


def default_caps(settings: Settings) -> DefaultCaps:
    """What holds where no cap is set; the same in all processes of an installation."""
    return DefaultCaps(
        tenant=settings.max_runs_per_tenant, connection=settings.max_runs_per_connection, credential=settings.max_runs_per_credential
    )


@contextmanager
def open_session(tenant: str | None = None) -> Iterator[Session]:
    """Open it; servers that were started for it are stopped at the end, unless another process uses them."""
    log_to_errors()
    settings = Settings.read()
    with ExitStack() as stack:
        urls = stack.enter_context(urls_of(settings))
        check_schema(urls.api)
        api = stack.enter_context(connect(urls.api, application_name="wsync cli"))
        yield Session(settings, urls, api, tenant)


def log_to_errors() -> None:
    """The log of a command: that an announcement did not arrive is no news to a person, since the sweep makes up for it."""
    log_to_stderr(logging.ERROR)


def tenant_name_of(tenant: str | None) -> str:
    """The tenant that was named; None: the one that ./wsync.yaml names.

    :raises ConfigError: none is named.
    """
    from wsync_engine.config.loader import tenant_of  # noqa: PLC0415

    name = tenant or tenant_of(FILE)
    if name is None:
        raise ConfigError("which tenant?", next_step="add `--tenant NAME`, or run this where its wsync.yaml is")
    return name


@contextmanager
def urls_of(settings: Settings) -> Iterator[Urls]:
    """The servers that are set, else the embedded ones of the data folder."""
    if settings.is_embedded:
        folder = settings.data_dir.expanduser().absolute()
        if not folder.exists():  # from another folder, this is not the installation that somebody meant
            say(f"there is no installation in {folder}: making a new one")
        with EmbeddedServers.start(settings.data_dir) as servers:
            ends = servers.endpoints
            yield Urls(owner=ends.database_url_owner, engine=ends.database_url_engine, api=ends.database_url_api, redis=ends.redis_url)
        return
    given = (settings.database_url_owner, settings.database_url_engine, settings.database_url_api, settings.redis_url)
    owner, engine, api, redis = (url.get_secret_value() if url else "" for url in given)
    yield Urls(owner=owner, engine=engine, api=api, redis=redis)


def is_installed(settings: Settings) -> bool:
    """Whether there is a state store to ask; False: the embedded one would have to be made first."""
    return not settings.is_embedded or has_servers(settings.data_dir)


def load_plugins(settings: Settings, *, remember: bool = True) -> PluginHost:
    """The plugins that may load. `remember` False: whether third-party ones survived their first import is not written down."""
    from wsync_engine.plugins import PluginHost  # noqa: PLC0415

    tried = plugins_file(settings) if remember else None
    return PluginHost.load(allow=settings.plugins_allow, block=settings.plugins_block, tried=tried)


def plugins_file(settings: Settings) -> Path:
    """Where it is remembered which third-party plugins survived their first import."""
    return settings.data_dir.expanduser().absolute() / "plugins.json"


def address_policy(settings: Settings) -> AddressPolicy:
    """Which addresses sinks may call."""
    return AddressPolicy(allowed=settings.allow_private_addresses)


def keyring_of(settings: Settings) -> Keyring:
    """The keys that are set, else those of the data folder's key file."""
    if settings.secret_key is not None:
        return Keyring.from_text(settings.secret_key.get_secret_value())
    return Keyring.from_file(settings.data_dir / "secret.key")


def stored_keyring(settings: Settings) -> Keyring:
    """As `keyring_of`, but makes no key file: without one there is nothing that it could decrypt."""
    if settings.secret_key is None and not (settings.data_dir / "secret.key").exists():
        return Keyring.throwaway()
    return keyring_of(settings)


def actor() -> str:
    """Who does it, for events and audits."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return "cli"
