"""Which field of a mapping is what to SuprSend: the user's id, a channel, a reserved property, or a property of one's own. Pure.

A field's name is SuprSend's own: `$email`, `$timezone`, `plan`. Groups read better in a mapping and mean the same: `channels.email`, `properties.plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import pyarrow as pa

from wsync_sdk import ConfigError, FieldSpec, Nulls, Target, nulls_of
from wsync_sdk.records import unsupported

__all__ = ["CHANNELS", "CLOSED", "PHONES", "RESERVED", "Field", "Layout", "field_specs", "id_field", "layout_of", "needs_before"]

CHANNELS = ("$email", "$sms", "$whatsapp", "$inbox", "$androidpush", "$iospush", "$webpush", "$slack", "$ms_teams")
PHONES = frozenset({"$sms", "$whatsapp"})
RESERVED = {
    "$timezone": "IANA name, for example Asia/Kolkata",
    "$locale": "for example en_IN",
    "$preferred_language": "ISO 639-1 code",
}
CHANNEL_GROUP, PROPERTY_GROUP = "channels", "properties"
CLOSED = ("$", f"{CHANNEL_GROUP}.", f"{PROPERTY_GROUP}.$")
"""Of fields that begin so, SuprSend knows all there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A mapped field.

    :param path: where it is in a batch: a column, or a group and its child. :param name: SuprSend's name of it.
    """

    path: tuple[str, ...]
    name: str
    schema: pa.Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a target's fields are."""

    key: str
    channels: tuple[Field, ...]
    properties: tuple[Field, ...]


def field_specs() -> tuple[FieldSpec, ...]:
    """The fields that are known by name, in each of their spellings; every other one is a property of one's own."""
    channels = [
        FieldSpec(name=spelling, description=f"`{name}`: a text, a list of texts, or what the channel asks for")
        for name in CHANNELS
        for spelling in (f"{CHANNEL_GROUP}.{name[1:]}", f"{CHANNEL_GROUP}.{name}", name, f"{PROPERTY_GROUP}.{name}")
    ]
    reserved = [
        FieldSpec(name=spelling, type=pa.string(), description=words)
        for name, words in RESERVED.items()
        for spelling in (name, f"{PROPERTY_GROUP}.{name}")
    ]
    return (FieldSpec(name="distinct_id", description="the user's id, whatever its name: the sync's key"), *channels, *reserved)


def needs_before() -> frozenset[str]:
    """Fields whose last acknowledged value an update needs: an address that was replaced has to be taken away by name."""
    return frozenset(spelling for name in CHANNELS for spelling in (name, f"{CHANNEL_GROUP}.{name[1:]}", f"{CHANNEL_GROUP}.{name}"))


def _is_id_type(type_: pa.DataType) -> bool:
    """Can the type's values be a `distinct_id`, different ones for different values?"""
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or type_ == pa.string_view()
        or pa.types.is_integer(type_)
        or isinstance(type_, pa.UuidType)
    )


def layout_of(target: Target) -> Layout:
    """What the fields of a target are.

    :raises ConfigError: a field can't be sent as what its name says it is, two have one name, or there is none beside the key.
    """
    key = id_field(target)
    channels: list[Field] = []
    properties: list[Field] = []
    for found in _fields(target.schema, key):
        if found.name in CHANNELS:
            _check_channel(found)
            channels.append(found)
        else:
            _check_property(found)
            properties.append(found)
    names = [one.name for one in (*channels, *properties)]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ConfigError(f"mapping: two fields are SuprSend's `{twice}`", next_step="remove one of the two")
    if not names:
        raise ConfigError("mapping: there is nothing but the key", next_step="map a channel or a property, or use the stream `list:ID`")
    return Layout(key=key, channels=tuple(channels), properties=tuple(properties))


def id_field(target: Target) -> str:
    """The name of the key's field, which is the user's `distinct_id`.

    :raises ConfigError: the key is not one field, or of a type whose values make no ids.
    """
    if len(target.key) != 1:
        raise ConfigError(
            f"the key has {len(target.key)} fields, and a SuprSend user has one `distinct_id`",
            next_step="make one column of them in the query, and use it as `key`",
        )
    (key,) = target.key
    if not _is_id_type(target.schema.field(key).type):
        raise ConfigError(f"`{key}` is {target.schema.field(key).type}, which makes no `distinct_id`", next_step="map it with `cast: text`")
    return key


def _fields(schema: pa.Schema, key: str) -> Iterator[Field]:
    for field in schema:
        if field.name == key:
            continue
        if field.name not in (CHANNEL_GROUP, PROPERTY_GROUP):
            yield Field(path=(field.name,), name=field.name, schema=field)
        elif not pa.types.is_struct(field.type):
            raise ConfigError(f"mapping: `{field.name}` is a group", next_step=f"map what is in it by name: `{field.name}.email`")
        else:
            for child in field.type:
                name = child.name if field.name == PROPERTY_GROUP else _channel(child.name)
                yield Field(path=(field.name, child.name), name=name, schema=child)


def _channel(name: str) -> str:
    full = name if name.startswith("$") else f"${name}"
    if full not in CHANNELS:
        raise ConfigError(f"mapping: SuprSend has no channel `{name}`", next_step=_near(full, CHANNELS))
    return full


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"did you mean `{near[0]}`?" if near else f"choose one of: {', '.join(names)}"


def _check_channel(field: Field) -> None:
    type_ = field.schema.type
    inner = type_.value_type if _is_list(type_) else type_
    if not (_is_text(inner) or pa.types.is_struct(inner) or pa.types.is_null(inner)) or unsupported(type_) is not None:
        raise ConfigError(
            f"mapping: the channel `{field.name}` is {type_}: its addresses are texts, or objects where the channel asks for them",
            next_step="map a text or a list of texts",
        )


def _check_property(field: Field) -> None:
    if field.name.startswith("$") and field.name not in RESERVED:
        raise ConfigError(
            f"mapping: `{field.name}` is neither a channel nor a property that SuprSend knows, and `$` is kept for those",
            next_step=_near(field.name, (*CHANNELS, *RESERVED)),
        )
    if field.name == "distinct_id":
        raise ConfigError("mapping: `distinct_id` is mapped, and is not the key", next_step="set `key: distinct_id`")
    if not field.name.strip() or field.name != field.name.strip():
        raise ConfigError(f"mapping: the property `{field.name}` has blanks around its name", next_step="rename the field")
    if field.name in RESERVED and not (_is_text(field.schema.type) or pa.types.is_null(field.schema.type)):
        raise ConfigError(f"mapping: `{field.name}` is {field.schema.type}, and is a text", next_step="map a text, or use `cast: text`")
    if path := next(_nulls_inside(field.schema, field.name), ""):
        raise ConfigError(
            f"mapping of `{path}`: SuprSend does not say what a null inside a property does", next_step="use `nulls: omit` there, or none"
        )
    if (type_ := unsupported(field.schema.type)) is not None:
        raise ConfigError(f"the field `{field.name}` holds {type_}, for which JSON has no form", next_step="cast it in the mapping")


def _nulls_inside(field: pa.Field, path: str) -> Iterator[str]:
    """Fields inside a structure whose NULLs are to be sent."""
    for child in field.type if pa.types.is_struct(field.type) else ():
        if nulls_of(child) is Nulls.SEND:
            yield f"{path}.{child.name}"
        yield from _nulls_inside(child, f"{path}.{child.name}")


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or type_ == pa.string_view())
