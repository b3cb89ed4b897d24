"""Rejected rows that are kept with the snapshot: the next incremental read may not bring them again, and they are to be offered again.

    fold   rows of the stage whose newest entry is a rejection of just this row → one file per partition, sealed
    diff   the file's rows, but for keys that the read brought itself, are staged beside what was read

A stage's rows are gone with their run, but these stay as long as the destination refuses them: they are people's rows, so the file is encrypted. It holds
a Parquet file as the stage has them, cut into pieces, and is opened into the run's scratch folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsync_engine.model.ids import uuid7
from wsync_engine.pipeline.job import Job, scratch_of
from wsync_engine.pipeline.local_database import damaged
from wsync_engine.pipeline.log_record import LogRecord
from wsync_engine.state.records import Sealer

__all__ = ["carried_rows", "open_sealed", "seal"]

PIECE_BYTES = 1024 * 1024
_LENGTH_BYTES = 4


def seal(plain: Path, target: Path, sealer: Sealer) -> None:
    """Write `plain` encrypted to `target`; the last piece is an empty one, so that a shorter file is no whole one."""
    with plain.open("rb") as source, target.open("wb") as file:
        piece = None
        while piece != b"":
            piece = source.read(PIECE_BYTES)
            (sealed,) = sealer.seal([piece])
            assert sealed is not None
            file.write(len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed)


def open_sealed(sealed: Path, target: Path, sealer: Sealer) -> None:
    """Write what was sealed to `target`.

    :raises SnapshotLost: the file is missing, or not whole. :raises ConfigError: it was encrypted with a key that is not there any more.
    """
    piece: bytes | None = None
    try:
        with sealed.open("rb") as source, target.open("wb") as file:
            while piece != b"":
                length = int.from_bytes(source.read(_LENGTH_BYTES), "big")
                data = source.read(length)
                if not data or len(data) < length:
                    raise damaged("damaged")
                (piece,) = sealer.open([data])
                assert piece is not None
                file.write(piece)
    except FileNotFoundError as exc:
        raise damaged("missing") from exc


@contextmanager
def carried_rows(job: Job, log: LogRecord, partition: int) -> Iterator[Path | None]:
    """The partition's carried rows as a staged file, as long as this lasts; None where there are none, or all is read anew."""
    name = log.base.carried[partition] if log.is_part and log.base.carried else None
    if name is None:
        yield None
        return
    plain = scratch_of(job) / f"carried-{uuid7()}.parquet"
    try:
        open_sealed(job.storage.absolute(name), plain, job.cipher.sealer())
        yield plain
    finally:
        plain.unlink(missing_ok=True)
