"""Rows that must not be sent, and why: what SuprSend's answer would be is not documented, or it would be another user or a lost address."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wsync_sdk.records import MARK, Text, mark_of, writable

__all__ = ["REASONS", "Refusals", "id_texts", "lone_surrogates"]

REASONS = {
    "not_finite": "is NaN or infinite, which JSON has not",
    "invalid_json": "is not valid JSON",
    "date_out_of_range": "is not between the years 1 and 9999",
    "lone_surrogate": "holds half of a surrogate pair, which is no text",
    "empty_id": "is empty, and is the user's id",
    "untrimmed_id": "has blanks around it, and SuprSend would take it for the id without them: trim it in the query",
    "empty_address": "is empty or blank, and no address",
    "not_e164": "is not a phone number in the form +4915112345678 (E.164)",
    "address_list": "is a JSON list: map a column of texts, or a list of texts",
}
"""What is said of a row, by the mark's code."""
_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
Bools = npt.NDArray[np.bool_]


class Refusals:
    """Marks by row; the first one of a row stays."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._marks: list[tuple[Bools, str]] = []

    def add(self, is_refused: Bools, code: str, field: str) -> None:
        """Refuse rows for a reason of `REASONS`."""
        if is_refused.any():
            self._marks.append((is_refused, f"{MARK.decode()}{code} {field}"))

    def add_rows(self, rows: npt.NDArray[np.int64], code: str, field: str) -> None:
        """The same for rows by their numbers."""
        is_refused = np.zeros(self._rows, dtype=bool)
        is_refused[rows] = True
        self.add(is_refused, code, field)

    def add_marks(self, records: Text, is_refused: Bools) -> None:
        """Keep the marks that the JSON writer made."""
        for place in np.flatnonzero(is_refused):  # few: rows that JSON can't say
            code, field = mark_of(str(records[int(place)]))
            self.add_rows(np.array([place]), code, field)

    def marking(self, records: pa.LargeStringArray, separator: bytes) -> pa.LargeStringArray:
        """The records, with a mark in place of each refused one."""
        for is_refused, mark in reversed(self._marks):
            records = pc.if_else(pa.array(is_refused), pa.scalar(f"{mark}{separator.decode()}", pa.large_string()), records)
        return records


def id_texts(values: pa.Array, key: str, refusals: Refusals) -> pa.LargeStringArray:
    """The ids as text, never NULL.

    Blanks around an id are not cut off: `a` and ` a` are two keys to wsync, and would be one user in two requests at once.
    """
    texts = pc.fill_null(writable(values, decimals_as_text=True).cast(pa.large_string()), "")
    is_empty = pc.equal(pc.utf8_trim_whitespace(texts), "")
    is_trimmed = pc.equal(pc.utf8_trim(texts, characters=_BLANKS), texts)
    refusals.add(is_empty.to_numpy(zero_copy_only=False), "empty_id", key)
    refusals.add(~is_trimmed.to_numpy(zero_copy_only=False), "untrimmed_id", key)
    return texts


_BLANKS = "".join(chr(point) for point in range(0x3001) if chr(point).isspace()) + "\ufeff\u200b"
"""All that a trim may take for blank: Unicode's white space, separators among the control characters, and two that look like nothing."""


def lone_surrogates(json_texts: pa.Array, field: str, refusals: Refusals, *, rows: npt.NDArray[np.int64] | None = None) -> None:
    """Refuse rows whose JSON text has an escape of half a pair: no UTF-8 can hold what a reader would make of it.

    :param rows: the row of each text, where there is not one per row.
    """
    suspects = pc.fill_null(pc.match_substring_regex(json_texts, r"\\u[dD][89a-fA-F]"), False).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(suspects)
    if not len(places):
        return
    bare = pc.replace_substring(json_texts.take(pa.array(places)), "\\\\", "")  # an escaped backslash begins no escape
    bare = pc.replace_substring_regex(bare, _PAIR, "")
    is_half = pc.match_substring_regex(bare, _HALF).to_numpy(zero_copy_only=False)
    refused = places[is_half]
    refusals.add_rows(refused if rows is None else rows[refused], "lone_surrogate", field)
