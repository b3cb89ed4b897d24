"""A secret in a connector's configuration: resolved at each use, never shown.

Config models declare `password: Secret`. The engine hands in a resolver (environment, file, provider); a test may pass plain text.
Credentials can change while a process lives (IAM passwords last 15 minutes), so `reveal()` is called at each connect and its result is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

__all__ = ["Secret"]


class Secret:
    """A value that is never printed: `repr`, `str`, JSON and error messages show `***`."""

    __slots__ = ("_resolve",)

    def __init__(self, resolve: Callable[[], str] | str) -> None:
        self._resolve: Callable[[], str] = (lambda: resolve) if isinstance(resolve, str) else resolve

    def reveal(self) -> str:
        """The value as it is now; asks the provider each time.

        :raises ConfigError: the reference leads nowhere (variable not set, file missing).
        """
        return self._resolve()

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from_text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
        return core_schema.union_schema(
            [core_schema.is_instance_schema(cls), from_text],
            serialization=core_schema.plain_serializer_function_ser_schema(lambda _: "***"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "wsync-secret", "description": "A reference: env:NAME or file:PATH."}
