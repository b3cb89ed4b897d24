"""What a person writes under `config:` of an HTTP connection. Knows no HTTP library and opens nothing; the README's tables are this module in words."""

from __future__ import annotations

import re
from enum import StrEnum
from string import Formatter
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from wsync_http.pointer import parsed
from wsync_sdk import Operation, Secret

__all__ = ["Check", "Condition", "Delete", "Format", "HttpConfig", "Limits", "Results", "header_problem", "placeholders"]

STREAM = "stream"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(r"[2-5](xx|\d\d)")
OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-encoding", "accept-encoding", "te", "upgrade", "expect"}
)
"""Headers that the sink sets itself."""
CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-auth-token", "x-access-token"})
"""Headers whose values are secrets: a config is stored and shown as it is written."""


class Format(StrEnum):
    """What a request's body is: a JSON array of records, a record per line, one record, or nothing."""

    ARRAY = "array"
    NDJSON = "ndjson"
    OBJECT = "object"
    NONE = "none"

    @property
    def is_single(self) -> bool:
        """True where a request is for one row."""
        return self in (Format.OBJECT, Format.NONE)


def placeholders(url: str) -> frozenset[str]:
    """Names in braces.

    :raises ValueError: the braces are no template.
    """
    names: set[str] = set()
    for _, name, spec, conversion in Formatter().parse(url):
        if name is None:
            continue
        if not name or spec or conversion:
            raise ValueError("braces hold a name: `{stream}`, or a field's")
        names.add(name)
    return frozenset(names)


def header_problem(name: str, value: str | None = None) -> str:
    """Why a header can't be sent; empty if it can."""
    if not _TOKEN.fullmatch(name):
        return "is not a header's name"
    if name.lower() in OURS:
        return "is set by the sink itself"
    if value is not None and (re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value) or not _is_latin(value)):
        return "holds a character that a header can't hold"
    return ""


def _is_latin(value: str) -> bool:
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write https://host/path")
    if "{" in parts.netloc:
        raise ValueError("the host can't be a template")
    if parts.username is not None:
        raise ValueError("credentials belong into `secret_headers`")
    if parts.fragment or not value.isascii() or re.search(r"[\x00-\x20]", value):
        raise ValueError("no fragment, blank or character outside ASCII; percent-encode them")
    _ = parts.port, placeholders(value)  # both raise ValueError
    return value


def _status(value: int | str) -> str:
    if not _STATUS.fullmatch(str(value)):
        raise ValueError("write a status like 200, or a class like 2xx")
    return str(value)


def _pointer(value: str) -> str:
    parsed(value)
    return value


Url = Annotated[str, AfterValidator(_url)]
Status = Annotated[int | str, AfterValidator(_status)]
Pointer = Annotated[str, AfterValidator(_pointer)]
Method = Literal["POST", "PUT", "PATCH", "DELETE"]
Scalar = bool | int | float | str | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Condition(_Part):
    """Whether an item's value says so: one of `values`, or without them, anything but missing, null, false and empty."""

    at: Pointer
    values: tuple[Scalar, ...] | None = Field(default=None, min_length=1)


class Results(_Part):
    """Where a reply says what became of each row. Pointers are RFC 6901: `items` from the body, all others from an item."""

    items: Pointer = Field(description="The list in the reply; the empty pointer is the reply itself.")
    lists: Literal["all", "errors"] = Field(default="all", description="An item for every row, or only for refused ones.")
    statuses: tuple[Status, ...] = Field(
        default=(),
        description="Further statuses with such a list, e.g. 422; rows that it does not refuse were applied. Successes always have one.",
    )
    index: Pointer | None = Field(default=None, description="The row's place in the request. None: items are in the rows' order.")
    first_index: int = Field(default=0, ge=0, le=1, description="What the first row's place is.")
    accepted: Condition | None = Field(default=None, description="An item for which this holds was accepted, every other was refused.")
    refused: Condition | None = Field(default=None, description="An item for which this holds was refused, every other was accepted.")
    code: Pointer | None = Field(default=None, description="A short word for the refusal.")
    message: Pointer | None = Field(default=None, description="The refusal in words.")
    retryable: Condition | None = Field(default=None, description="The same row may be taken later.")
    when_missing: Literal["retry", "accept"] = Field(
        default="retry",
        description="A success without the list: `retry` does not believe it; `accept`, only with `lists: errors`, takes it as none.",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.lists == "all" and (self.accepted is None) == (self.refused is None):
            raise ValueError("with `lists: all` say by `accepted` or by `refused` which items are which")
        if self.lists == "errors" and (self.accepted or self.refused):
            raise ValueError("with `lists: errors` every item is a refusal; remove `accepted` and `refused`")
        if self.lists == "errors" and self.index is None:
            raise ValueError("with `lists: errors` an item must tell its row: set `index`")
        if self.lists == "all" and self.when_missing == "accept":
            raise ValueError("`when_missing: accept` is for `lists: errors`")
        return self


class Delete(_Part):
    """How deletes are sent, where they have a request of their own. What is not set is as for upserts."""

    url: Url
    method: Method = "DELETE"
    format: Format = Format.NONE
    wrap: str | None = Field(default=None, min_length=1, max_length=100)
    success: tuple[Status, ...] = ("2xx",)
    results: Results | None = None


class Check(_Part):
    """A request that `connections test` may make: it must change nothing."""

    url: Url
    method: Literal["GET", "HEAD"] = "GET"


class Limits(_Part):
    """What the endpoint bears; see `wsync_sdk.StreamLimits`."""

    max_rows: int = Field(default=1_000, ge=1, le=100_000)
    max_bytes: int = Field(default=1_000_000, ge=1_000, le=256_000_000, description="Of a request's body, before gzip.")
    max_record_bytes: int | None = Field(default=None, ge=1)
    concurrency: int = Field(default=4, ge=1, le=64)
    calls_per_s: float | None = Field(default=None, gt=0)


class HttpConfig(_Part):
    """One HTTP endpoint."""

    url: Url = Field(
        description="Where upserts go. `{stream}` is the sync's stream; with `format: object` a key's or field's name works too."
    )
    method: Method = Field(default="POST")
    format: Format = Field(default=Format.ARRAY)
    wrap: str | None = Field(default=None, min_length=1, max_length=100, description='With `format: array`: the body is {"<wrap>": [...]}.')
    headers: dict[str, str] = Field(default_factory=dict)
    secret_headers: dict[str, Secret] = Field(
        default_factory=dict, description="Header → reference to its whole value; resolved at each call."
    )
    streams: tuple[str, ...] = Field(default=(), description="The stream names that syncs may use; empty: any.")
    op_field: str | None = Field(
        default=None,
        min_length=1,
        description="Adds this field, `upsert` or `delete`, to each record; deletes then go into the same request.",
    )
    delete: Delete | None = Field(default=None, description="Deletes have a request of their own.")
    nulls: Literal["send", "omit"] = "send"
    non_finite: Literal["reject", "null"] = Field(
        default="reject", description="What becomes of a row with NaN or infinity, which JSON has not."
    )
    decimals: Literal["number", "text"] = "number"
    success: tuple[Status, ...] = ("2xx",)
    results: Results | None = None
    idempotency_header: str | None = Field(default="Idempotency-Key", description="Carries the chunk's key; null: no such header.")
    idempotent: bool = Field(default=True, description="The endpoint recognises that key, or upserts by the records' key.")
    gzip: bool = False
    reply_max_bytes: int = Field(default=4_000_000, ge=1_000, le=256_000_000)
    ca_file: str | None = Field(default=None, description="PEM file, where the worker runs, with further authorities that TLS trusts.")
    limits: Limits = Limits()
    check: Check | None = None

    @property
    def operations(self) -> frozenset[Operation]:
        """What every stream can do."""
        can_delete = self.op_field is not None or self.delete is not None
        return frozenset(Operation) if can_delete else frozenset({Operation.UPSERT})

    @property
    def is_single(self) -> bool:
        """True where some request is for one row: then every chunk is one row."""
        return self.format.is_single or (self.delete is not None and self.delete.format.is_single)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.format is Format.NONE:
            raise ValueError("`format: none` is for deletes")
        if self.op_field is not None and self.delete is not None:
            raise ValueError("deletes go with the upserts (`op_field`) or by themselves (`delete`), not both")
        _check_request("url", self.url, self.format, self.wrap)
        if self.delete is not None:
            _check_request("delete.url", self.delete.url, self.delete.format, self.delete.wrap)
        if self.check is not None and placeholders(self.check.url):
            raise ValueError("`check.url` can't be a template")
        return self

    @model_validator(mode="after")
    def _headers_can_be_sent(self) -> Self:
        names = [*self.headers, *self.secret_headers, *([self.idempotency_header] if self.idempotency_header else [])]
        for name in names:
            if problem := header_problem(name, self.headers.get(name)):
                raise ValueError(f"header `{name}` {problem}")
        if literal := next((name for name in self.headers if name.lower() in CREDENTIALS), ""):
            raise ValueError(f"header `{literal}` holds a credential: write it under `secret_headers`, as env:NAME or file:PATH")
        lower = [name.lower() for name in names]
        if twice := next((name for name in lower if lower.count(name) > 1), ""):
            raise ValueError(f"header `{twice}` is set twice")
        return self


def _check_request(name: str, url: str, form: Format, wrap: str | None) -> None:
    fields = placeholders(url) - {STREAM}
    if fields and not form.is_single:
        raise ValueError(f"`{name}` names `{min(fields)}`: a field stands in a URL only where a request is for one row (`format: object`)")
    if wrap is not None and form is not Format.ARRAY:
        raise ValueError("`wrap` is for `format: array`")
