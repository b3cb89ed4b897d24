"""Why a staged row is refused, as the text that its column REFUSAL holds, and in a person's words."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RefusalText"]

_SEPARATOR = "\x1f"
_WORDS = {
    "required": "the field is required, and has no value",
    "cast": "the value can't become {detail} unchanged",
    "unrepresentable": "the value is {detail}",
    "key_null": "the key is NULL",
    "key_cast": "the key's value can't become {detail} unchanged",
    "key_unrepresentable": "the key's value is {detail}",
    "duplicate_key": "the key is in the result more than once",
}
_DETAIL = {
    "cast": "what the mapping says",
    "key_cast": "what the mapping says",
    "unrepresentable": "out of the range that can be transported",
    "key_unrepresentable": "out of the range that can be transported",
}
_CASTS = {
    "text": "a text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "a boolean",
    "date": "a date",
    "timestamp": "a timestamp",
    "json": "JSON",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalText:
    """One reason to refuse a row.

    :param code: short stable word. :param field: of the stream. :param column: of the result that the field is made of. :param detail: the cast's name, or
        what is wrong with the value.
    """

    code: str
    field: str = ""
    column: str = ""
    detail: str = ""

    def to_text(self) -> str:
        """As it is staged: code and field, and what there is beside."""
        beside = f"{_SEPARATOR}{self.column}{_SEPARATOR}{self.detail}" if self.column or self.detail else ""
        return f"{self.code}:{self.field}{beside}"

    @classmethod
    def from_text(cls, staged: str) -> RefusalText:
        """What `to_text` gave, also that of an engine which said less."""
        code, _, place = staged.partition(":")
        field, _, beside = place.partition(_SEPARATOR)
        column, _, detail = beside.partition(_SEPARATOR)
        return cls(code=code, field=field, column=column, detail=detail)

    @property
    def message(self) -> str:
        """Which field and column, and what is wrong; never a value of the row."""
        column = f" (column `{self.column}`)" if self.column and self.column != self.field else ""
        where = f"`{self.field}`{column}: " if self.field else ""
        return where + _WORDS[self.code].format(detail=_CASTS.get(self.detail, self.detail) or _DETAIL.get(self.code, ""))
