"""What a person writes under `config:` of a SuprSend connection. Knows no HTTP library and opens nothing; the README's tables are this module in words."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from wsync_sdk import Operation, Secret

__all__ = ["MOST_LIST_ROWS", "MOST_RECORDS", "Limits", "Lists", "NullChannels", "OnDelete", "Profiles", "SuprSendConfig"]

MOST_RECORDS = 400
"""User records in one call of `/event/`: the official Python SDK 0.20.0 (read 2026-11-20)."""
MOST_LIST_ROWS = 10_000
"""Users in one call that adds to or removes from a list: SuprSend's description of its list tool (read 2026-11-20)."""


class OnDelete(StrEnum):
    """What becomes of a user who left the result of a `mirror` sync."""

    REFUSE = "refuse"
    IGNORE = "ignore"
    REMOVE_ADDRESSES = "remove_addresses"
    UNSET_CHANNELS = "unset_channels"
    DELETE_USER = "delete_user"

    @property
    def is_edit(self) -> bool:
        """True where the user stays and is edited."""
        return self in (OnDelete.REMOVE_ADDRESSES, OnDelete.UNSET_CHANNELS)


class NullChannels(StrEnum):
    """What a NULL in a mapped channel does."""

    REMOVE = "remove"
    UNSET = "unset"
    KEEP = "keep"


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write https://host, for example https://hub.suprsend.com")
    if parts.username is not None:
        raise ValueError("credentials belong into `api_key` or `workspace_secret`")
    if parts.query or parts.fragment or not value.isascii() or re.search(r"[\x00-\x20]", value):
        raise ValueError("no query, fragment, blank or character outside ASCII")
    _ = parts.port  # raises ValueError
    return value.rstrip("/")


def _word(value: str) -> str:
    if not value or value != value.strip() or not value.isascii() or not value.isprintable() or ":" in value:
        raise ValueError("write it as SuprSend shows it: printable ASCII, without a blank around it or a colon")
    return value


Word = Annotated[str, AfterValidator(_word)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Profiles(_Part):
    """The stream `profiles`."""

    on_delete: OnDelete = Field(
        default=OnDelete.REFUSE,
        description="`refuse`: no sync may delete · `ignore`: the user stays as it is · `remove_addresses`: the user loses the addresses that the"
        " sync gave it · `unset_channels`: the mapped channels lose all their addresses, whoever gave them · `delete_user`: the user is deleted, with all that others know of it.",
    )
    decimals: Literal["number", "text"] = Field(
        default="number", description="Decimals as JSON numbers with all digits, or as text where no digit may be lost to a double."
    )
    null_channels: NullChannels = Field(
        default=NullChannels.REMOVE,
        description="`remove`: the channel loses the addresses that the sync gave it · `unset`: all of them · `keep`: it stays as it is.",
    )


class Lists(_Part):
    """The streams `list:ID`."""

    max_rows: int = Field(
        default=100,
        ge=1,
        le=MOST_LIST_ROWS,
        description="Users in one call: so many have to be asked for where one of them is not there. Without `check_users` more is better.",
    )
    check_users: bool = Field(
        default=True, description="Where SuprSend says that it added fewer users than it was sent, ask for each whether it is there."
    )


class Limits(_Part):
    """What the workspace bears; see `wsync_sdk.StreamLimits`. SuprSend publishes no rate."""

    max_rows: int = Field(default=MOST_RECORDS, ge=1, le=MOST_RECORDS, description="User records in one call.")
    concurrency: int = Field(default=2, ge=1, le=16)
    calls_per_s: float | None = Field(default=None, gt=0)


class SuprSendConfig(_Part):
    """One SuprSend workspace, by workspace key and secret, or by API key and workspace UID."""

    workspace_key: Word | None = Field(default=None, description="With `workspace_secret`: requests are signed.")
    workspace_secret: Secret | None = Field(default=None, description="Resolved at each call, never sent.")
    api_key: Secret | None = Field(default=None, description="Sent as bearer token; resolved at each call.")
    workspace_uid: Word | None = Field(default=None, description="With `api_key`: which workspace records are for.")
    base_url: Annotated[str, AfterValidator(_base_url)] = "https://hub.suprsend.com"
    tenant_id: Word | None = Field(default=None, description="SuprSend's tenant, named in every user record.")
    profiles: Profiles = Profiles()
    lists: Lists = Lists()
    limits: Limits = Limits()
    timeout_s: float = Field(default=9.0, gt=0, le=300, description="A call is over after so long; the engine may ask for less.")
    ca_file: str | None = Field(default=None, description="PEM file, where the worker runs, with further authorities that TLS trusts.")

    @property
    def environment(self) -> str:
        """What a record's `env` says: the workspace's key where requests are signed, its UID with an API key."""
        return str(self.workspace_key or self.workspace_uid)

    @property
    def profile_operations(self) -> frozenset[Operation]:
        """What the stream `profiles` can do."""
        return frozenset({Operation.UPSERT}) if self.profiles.on_delete is OnDelete.REFUSE else frozenset(Operation)

    @model_validator(mode="after")
    def _has_one_credential(self) -> Self:
        signed, bearer = {"workspace_key", "workspace_secret"}, {"api_key", "workspace_uid"}
        given = {name for name in signed | bearer if getattr(self, name) is not None}
        if given not in (signed, bearer):
            raise ValueError(f"set `workspace_key` and `workspace_secret`, or `api_key` and `workspace_uid`; {_listed(given)} set")
        return self


def _listed(names: set[str]) -> str:
    if not names:
        return "none of them is"
    return " and ".join(f"`{name}`" for name in sorted(names)) + (" is" if len(names) == 1 else " are")
