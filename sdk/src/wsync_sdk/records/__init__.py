"""wsync_sdk.records: from Arrow batches to JSON records, columnar, for sinks that send JSON. Needs `wsync-sdk[records]`.

`json_records` writes an object per row; `text` has the kernels to put such texts together; `blotting` takes a row's values out of what is said of it.
A plugin's module for the engine must not import it: the factory's module does, when a connection opens.
"""

from wsync_sdk.records.blotting import values_in, without
from wsync_sdk.records.text import Text, bytes_of, interleaved, joined, large, narrowed, sliced
from wsync_sdk.records.values import JSON_METADATA, is_json, unsupported, writable
from wsync_sdk.records.writing import MARK, SEPARATOR_BYTES, JsonStyle, is_marked, json_name, json_records, mark_of

__all__ = [
    "JSON_METADATA",
    "MARK",
    "SEPARATOR_BYTES",
    "JsonStyle",
    "Text",
    "bytes_of",
    "interleaved",
    "is_json",
    "is_marked",
    "joined",
    "json_name",
    "json_records",
    "large",
    "mark_of",
    "narrowed",
    "sliced",
    "unsupported",
    "values_in",
    "without",
    "writable",
]
