"""A sync held against what its stream says of itself: at `plan` and `apply` as far as the plugin tells without connecting, and before a run reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import pyarrow as pa

from wsync_engine.model.sync import Mode, SyncSpec
from wsync_sdk import ConfigError, FieldSpec, Operation, StreamSpec, WriteMode

__all__ = ["StreamMistake", "cast_by_field", "check_fields", "check_stream", "stream_mistakes", "write_mode_of"]

_WRITE_MODES = {Mode.APPEND: WriteMode.APPEND, Mode.REPLACE: WriteMode.REPLACE}
_UNABLE = {
    WriteMode.MERGE: ("the stream `{stream}` takes no changes by key", "use another mode, or another stream"),
    WriteMode.APPEND: (
        "mode `append` adds rows, and the stream `{stream}` only brings rows up to date by their key",
        "use `mode: upsert`, or another stream",
    ),
    WriteMode.REPLACE: (
        "mode `replace` switches to a new version of all rows, and the stream `{stream}` has no versions",
        "use `mode: mirror`, or another stream",
    ),
}
_CASTS = (
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_integer, "integer"),
    (pa.types.is_floating, "number"),
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_date, "date"),
    (lambda type_: pa.types.is_timestamp(type_) and type_.tz is not None, "timestamp"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMistake:
    """What a stream can't take of a sync. `path`: below the sync in `wsync.yaml`."""

    path: tuple[str, ...]
    what: str
    next_step: str


def write_mode_of(mode: Mode) -> WriteMode:
    """How the rows of a sync of this mode come to its stream."""
    return _WRITE_MODES.get(mode, WriteMode.MERGE)


def stream_mistakes(spec: SyncSpec, stream: StreamSpec) -> list[StreamMistake]:
    """All that is known to be wrong before the query is described: without a mapping its columns are still to be told."""
    return [*_mode_mistakes(spec, stream), *_key_mistakes(spec, stream), *_null_mistakes(spec, stream), *_mapping_mistakes(spec, stream)]


def check_stream(spec: SyncSpec, stream: StreamSpec) -> None:
    """
    :raises ConfigError: the stream can't take the sync; says the first thing that is wrong.
    """
    _raise_first(stream_mistakes(spec, stream))


def check_fields(spec: SyncSpec, stream: StreamSpec, fields: pa.Schema) -> None:
    """The same of a sync without a mapping, whose fields are the columns of its result.

    :raises ConfigError: the stream does not know one, or lacks one.
    """
    if not spec.mapping:
        _raise_first(list(_field_mistakes(spec, stream, list(_paths(fields)))))


def cast_by_field(stream: StreamSpec) -> dict[str, str]:
    """The cast of each field whose type the stream says, by the field's dotted path."""
    named = ((field.name, next((cast for is_it, cast in _CASTS if is_it(field.type)), "")) for field in stream.fields if field.type)
    return {name: cast for name, cast in named if cast}


def _raise_first(mistakes: Sequence[StreamMistake]) -> None:
    if mistakes:
        first = mistakes[0]
        where = f"{'.'.join(first.path)}: " if first.path[0] == "mapping" and len(first.path) > 1 else ""
        raise ConfigError(where + first.what, next_step=first.next_step)


def _paths(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[str]:
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from _paths(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _mode_mistakes(spec: SyncSpec, stream: StreamSpec) -> Iterator[StreamMistake]:
    if spec.mode is Mode.MIRROR and Operation.DELETE not in stream.operations:
        yield StreamMistake(
            path=("mode",),
            what=f"mode `mirror` deletes what left the result, and the stream `{spec.stream}` takes no deletes",
            next_step="tell the sink how to delete, or use `mode: upsert`",
        )
    needed = write_mode_of(spec.mode)
    if needed not in stream.write_modes:
        what, next_step = _UNABLE[needed]
        yield StreamMistake(path=("mode",), what=what.format(stream=spec.stream), next_step=next_step)


def _key_mistakes(spec: SyncSpec, stream: StreamSpec) -> Iterator[StreamMistake]:
    if stream.key and set(spec.key) != set(stream.key):
        names = ", ".join(stream.key)
        yield StreamMistake(
            path=("key",),
            what=f"the stream `{spec.stream}` tells rows apart by `{names}`, and the sync's key is `{', '.join(spec.key)}`",
            next_step=f"map `{names}`, and name it as `key`",
        )


def _null_mistakes(spec: SyncSpec, stream: StreamSpec) -> Iterator[StreamMistake]:
    asked = [(("mapping", entry.target, "nulls"), entry.nulls) for entry in spec.mapping]
    for path, nulls in [(("nulls",), spec.nulls), *asked]:
        if nulls is not None and nulls not in stream.nulls:
            yield StreamMistake(
                path=path,
                what=f"the stream `{spec.stream}` has one way with NULLs, and can't be asked to {nulls} them",
                next_step="remove `nulls`",
            )


def _mapping_mistakes(spec: SyncSpec, stream: StreamSpec) -> Iterator[StreamMistake]:
    if spec.mapping:
        yield from _field_mistakes(spec, stream, [entry.target for entry in spec.mapping])


def _field_mistakes(spec: SyncSpec, stream: StreamSpec, paths: Sequence[str]) -> Iterator[StreamMistake]:
    known = [field.name for field in stream.fields]
    for path in paths:
        is_key = path in spec.key and not stream.key
        if not is_key and _is_closed(path, stream) and not any(_is_inside(path, name) for name in known):
            near = get_close_matches(path, known, n=1)
            listed = ", ".join([*([] if stream.key else ["the key"]), *known])
            yield StreamMistake(
                path=("mapping", path),
                what=f"the stream `{spec.stream}` has no field `{path}`",
                next_step=f"did you mean `{near[0]}`?" if near else f"its fields are: {listed}",
            )
    for field in stream.fields:
        if _is_missing(field, paths):
            yield StreamMistake(
                path=("mapping",),
                what=f"the stream `{spec.stream}` needs the field `{field.name}`",
                next_step=f"map a column to `{field.name}`",
            )


def _is_closed(path: str, stream: StreamSpec) -> bool:
    return not stream.open_fields or path.startswith(stream.closed_prefixes)


def _is_inside(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _is_missing(field: FieldSpec, paths: Sequence[str]) -> bool:
    return field.required and not any(_is_inside(path, field.name) for path in paths)
