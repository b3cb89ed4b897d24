"""A connection's stored config, checked by its plugin's model, with secrets turned into what resolves them."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from wsync_engine.model.refusal import refusal_words
from wsync_sdk import ConfigError, Secret

__all__ = ["secret_references", "validated"]

REFERENCES = ("env:", "file:")


def validated(model: type[BaseModel], config: Mapping[str, Any], resolve: Callable[[str], str]) -> BaseModel:
    """The config as an instance of the plugin's model.

    :raises ConfigError: a field is unknown, missing or wrong; a secret is given as a value. Names the field, never what it holds.
    """
    prepared = _with_secrets(model, config, resolve)
    try:
        return model.model_validate(prepared)
    except ValidationError as exc:
        raise _config_error(model, exc) from None


def secret_references(model: type[BaseModel], config: Mapping[str, Any]) -> list[str]:
    """Every reference to a secret that the config holds.

    :raises ConfigError: a secret is given as a value.
    """
    found: list[str] = []
    _with_secrets(model, config, lambda reference: reference, seen=found.append)
    return found


def _with_secrets(
    model: type[BaseModel], config: Mapping[str, Any], resolve: Callable[[str], str], seen: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    prepared = dict(config)
    for name, field in model.model_fields.items():
        if name not in prepared or prepared[name] is None:
            continue
        value = prepared[name]
        kinds = set(_inner_types(field.annotation))
        if Secret in kinds and isinstance(value, str):
            prepared[name] = _secret(name, value, resolve, seen)
        elif Secret in kinds and isinstance(value, Mapping):
            prepared[name] = {key: _secret(f"{name}.{key}", str(item), resolve, seen) for key, item in value.items()}
        elif isinstance(value, Mapping):
            nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
            if nested:
                prepared[name] = _with_secrets(nested[0], value, resolve, seen)
    return prepared


def _secret(name: str, value: str, resolve: Callable[[str], str], seen: Callable[[str], None]) -> Secret:
    if not value.startswith(REFERENCES):
        raise ConfigError(f"`{name}`: secrets are references, never values", next_step=f"write `{name}: env:NAME` or `{name}: file:PATH`")
    seen(value)
    return Secret(partial(resolve, value))


def _inner_types(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is None:
        yield annotation
        return
    if origin in (typing.Union, types.UnionType, dict, list, tuple, Mapping, typing.Annotated):
        for argument in typing.get_args(annotation):
            yield from _inner_types(argument)


def _fields_at(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The settings that are known at a place within a config; none where it is no block of settings."""
    for part in place:
        field = model.model_fields.get(str(part))
        inner = [] if field is None else [x for x in _inner_types(field.annotation) if isinstance(x, type) and issubclass(x, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _config_error(model: type[BaseModel], error: ValidationError) -> ConfigError:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        *parents, name = first["loc"]
        fields = _fields_at(model, parents)
        near = get_close_matches(str(name), fields, n=1)
        known = ", ".join(fields)
        return ConfigError(f"`{place}` is not known", next_step=f"did you mean `{near[0]}`?" if near else f"known are: {known}")
    if first["type"] == "missing":
        return ConfigError(f"`{place}` is missing", next_step=f"add `{place}`")
    return ConfigError(f"`{place}`: {refusal_words(first['msg'])}", next_step=f"correct `{place}`")
