"""What a mapping may ask of a field's NULLs, and how that travels to the sink: in the metadata of the field.

Without pyarrow at run time: what stores and checks a mapping needs no Arrow.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Nulls", "nulls_of", "with_nulls"]


class Nulls(StrEnum):
    """What an upsert says of a field that is NULL: `send` that it is, or `omit` the field."""

    SEND = "send"
    OMIT = "omit"


_NULLS = b"wsync.nulls"


def nulls_of(field: pa.Field) -> Nulls | None:
    """What the mapping asks of this field, a leaf of a target's schema; None: nothing, the sink does as it always does."""
    value = (field.metadata or {}).get(_NULLS)
    return None if value is None else Nulls(value.decode())


def with_nulls(field: pa.Field, nulls: Nulls | None) -> pa.Field:
    """The field with what is asked of it; None: with nothing, for a sink that has done its part."""
    others = {key: value for key, value in (field.metadata or {}).items() if key != _NULLS}
    return field.with_metadata(others if nulls is None else {**others, _NULLS: nulls.value.encode()})
