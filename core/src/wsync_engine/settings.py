"""What an installation can set: environment variables with the prefix WSYNC_. Read once, in `main`; functions get values, never this object."""

from __future__ import annotations

import os
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from wsync_engine.model.refusal import refusal_words
from wsync_sdk.errors import ConfigError

__all__ = ["Settings"]

PREFIX = "WSYNC_"


def _words(value: Any) -> Any:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class Settings(BaseSettings):
    """The installation's settings; `Settings.read()` is the way to get them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url_owner: SecretStr | None = Field(
        default=None, description="State store, login that migrates the schema: postgresql://…; embedded when absent."
    )
    database_url_engine: SecretStr | None = Field(
        default=None, description="State store, login of schedulers and worker supervisors; embedded when absent."
    )
    database_url_api: SecretStr | None = Field(
        default=None, description="State store, login of API, CLI and task children, under row-level security; embedded when absent."
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Redis or Valkey 7 or newer: redis://…, or redis+cluster://host:port,host:port; embedded when absent."
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="Master keys, base64 of 32 bytes, separated by commas: the first encrypts, all decrypt. Absent: a key file in the data folder.",
    )
    data_dir: Path = Field(default=Path(".wsync"), description="Folder of the embedded servers, the key file and, by default, the storage.")
    storage_url: str | None = Field(
        default=None,
        pattern=r"^file:///",
        description="Where staged files, snapshots and change logs live: file:///…; absent: `storage` in the data folder.",
    )
    secret_folders: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(Path("/run/secrets"),),
        description="Folders with tenants' secrets, separated by commas: `file:` reaches what lies in one of them, in a folder of the tenant's name.",
    )
    lease_ttl_s: float = Field(default=30.0, ge=3.0, le=600.0, description="A worker that is silent for this long loses its runs.")
    task_memory_mib: int = Field(
        default=2_048,
        ge=512,
        description="How much memory (MiB) a task's process may take; one that takes more is ended, and its run tried again.",
    )
    partition_rows: int = Field(
        default=2_000_000,
        ge=1_000,
        description="A result of more rows is cut into partitions of about so many, which several slots and workers may take; smaller ones take less memory.",
    )
    task_cgroup: Path | None = Field(
        default=None,
        description="A control group (Linux) handed over to the workers of this machine, below which the kernel limits each task's memory.",
    )
    max_runs_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="How many runs of a tenant may be executed at once, where `wsync-engine caps` sets nothing else; absent: any.",
    )
    max_runs_per_connection: int | None = Field(
        default=8, ge=1, description="The same for runs that read from one connection, so that a warehouse is not overrun."
    )
    max_runs_per_credential: int | None = Field(default=8, ge=1, description="The same for runs that write with one credential.")
    breaker_failures: int = Field(
        default=5,
        ge=1,
        description="So many attempts in a row that a destination failed let its runs wait, for 30 s at first, without using slots or attempts.",
    )
    keep_runs_days: int = Field(default=90, ge=1, le=3_650, description="For how many days ended runs are kept.")
    keep_change_logs_days: int = Field(
        default=7,
        ge=0,
        le=3_650,
        description="For how many days the change logs of ended runs stay in the storage; 0: until the next sweep.",
    )
    keep_events_days: int = Field(default=30, ge=1, le=3_650, description="For how many days events are kept.")
    plugins_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(), description="Distributions whose plugins may load, separated by commas; empty: all that are installed."
    )
    plugins_block: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(), description="Distributions whose plugins never load, separated by commas; wins over the allow list."
    )
    allow_private_addresses: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(), description="Private networks that sinks may call, e.g. 10.1.0.0/16, separated by commas; empty: none."
    )

    @classmethod
    def read(cls) -> Self:
        """Read the environment.

        :raises ConfigError: a WSYNC_ variable is unknown or its value is not valid; values are not repeated.
        """
        _refuse_unknown(cls)
        try:
            return cls()
        except ValidationError as exc:
            first = exc.errors(include_input=False, include_url=False, include_context=False)[0]
            if not first["loc"]:
                raise ConfigError(refusal_words(first["msg"]), next_step="set all four, or none of them") from None
            name = PREFIX + str(first["loc"][0]).upper()
            raise ConfigError(f"{name}: {refusal_words(first['msg'])}", next_step=f"correct {name}") from None

    @model_validator(mode="after")
    def _servers_belong_together(self) -> Self:
        given = (self.database_url_owner, self.database_url_engine, self.database_url_api, self.redis_url)
        if any(given) and not all(given):
            raise ValueError("some of WSYNC_DATABASE_URL_OWNER, …_ENGINE, …_API and WSYNC_REDIS_URL are set and some are not")
        return self

    @property
    def is_embedded(self) -> bool:
        """Whether the engine runs its own Postgres and Valkey."""
        return self.database_url_engine is None

    @property
    def storage(self) -> str:
        """The storage's URL, also when none is set."""
        return self.storage_url or (self.data_dir.expanduser().absolute() / "storage").as_uri()


def _refuse_unknown(settings: type[Settings]) -> None:
    known = [PREFIX + name.upper() for name in settings.model_fields]
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = get_close_matches(name.upper(), known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "remove it, or correct its name"
            raise ConfigError(f"unknown setting {name}", next_step=hint)
