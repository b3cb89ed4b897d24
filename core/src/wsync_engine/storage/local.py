"""Storage on a local disk: `file:///folder`.

    <root>/storage-id                                  which storage this is
    <root>/<tenant>/runs/<run>/stage-<generation>/…    read and mapped rows, dropped when the run is folded
    <root>/<tenant>/runs/<run>/log/…                   the change log
    <root>/<tenant>/snapshots/<sync>/…                 immutable files, named by the run that wrote them

A file counts only once Postgres names it: what a dead process left behind is nobody's, and is removed with its folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse
from uuid import UUID, uuid4

from wsync_sdk import ConfigError, FatalError

__all__ = ["LocalStorage", "storage_id", "tenants_in"]

ID_FILE = "storage-id"


def storage_id(url: str) -> str:
    """The id of the storage at a URL, made at its first use: tells the same folder by another path from another folder by the same path.

    :raises ConfigError: not a `file:///` URL. :raises FatalError: the folder can't be written.
    """
    file = _made(_root_of(url)) / ID_FILE
    draft = file.with_name(f".{ID_FILE}.{uuid4().hex}")
    try:
        if not file.exists():
            draft.write_text(uuid4().hex, encoding="ascii")
            with suppress(FileExistsError):  # another process was first; its id counts
                os.link(draft, file)
            draft.unlink()
        return file.read_text(encoding="ascii").strip()
    except OSError as exc:
        raise _not_writable(exc) from exc


def tenants_in(url: str) -> list[UUID]:
    """The tenants that have files in the storage at a URL."""
    return list(_named_by_ids(_root_of(url)))


def _named_by_ids(folder: Path) -> Iterator[UUID]:
    """The entries of a folder that are named by an id; whatever else somebody put there is not ours."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        with suppress(ValueError):
            yield UUID(entry.name)


def _written_by_runs(folder: Path) -> Iterator[tuple[Path, UUID]]:
    for path in folder.glob("*-*-*-*-*-*.*"):
        with suppress(ValueError):  # nor is this
            yield path, UUID(path.name[:36])


def _root_of(url: str) -> Path:
    parts = urlparse(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ConfigError(f"storage `{parts.scheme}://` is not known", next_step="set WSYNC_STORAGE_URL to file:///a/folder")
    return Path(unquote(parts.path))


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise _not_writable(exc) from exc
    return folder


def _not_writable(exc: OSError) -> FatalError:
    return FatalError(
        f"the storage folder can't be written: {exc.strerror}", next_step="correct its permissions or free space, then run again"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStorage:
    """One tenant's part of a storage folder. Paths that are stored are relative to `root`. A folder that can't be made is a FatalError."""

    root: Path
    tenant_id: str

    @classmethod
    def of_url(cls, url: str, *, tenant_id: str) -> LocalStorage:
        """The storage a URL names.

        :raises ConfigError: not a `file:///` URL.
        """
        return cls(root=_root_of(url), tenant_id=tenant_id)

    def stage_folder(self, run_id: str, generation: int) -> Path:
        """Folder for the mapped rows of one plan; made when missing."""
        return _made(self._run(run_id) / f"stage-{generation}")

    def log_folder(self, run_id: str) -> Path:
        """Folder for the run's change log; made when missing."""
        return _made(self._run(run_id) / "log")

    def aside_folder(self, run_id: str) -> Path:
        """Folder for what the fold needs beside the change log; made when missing."""
        return _made(self._run(run_id) / "aside")

    def scratch_folder(self, run_id: str) -> Path:
        """Folder for what the run spills; made when missing."""
        return _made(self._run(run_id) / "scratch")

    def snapshot_folder(self, sync_id: str) -> Path:
        """Folder of the sync's snapshot files; made when missing."""
        return _made(self.root / self.tenant_id / "snapshots" / sync_id)

    def relative(self, path: Path) -> str:
        """The path as it is stored."""
        return str(path.relative_to(self.root))

    def absolute(self, stored: str) -> Path:
        """Where a stored path lies."""
        return self.root / stored

    def runs(self) -> list[UUID]:
        """The runs that have files."""
        return list(_named_by_ids(self.root / self.tenant_id / "runs"))

    def has_leftovers(self, run_id: str) -> bool:
        """Whether a run has files beside its change log."""
        folder = self._run(run_id)
        return folder.is_dir() and any(entry.name != "log" for entry in os.scandir(folder))

    def snapshots(self) -> Iterator[tuple[UUID, list[tuple[Path, UUID]]]]:
        """Of each sync its snapshot files and those of carried rows, each with the run that wrote it."""
        folder = self.root / self.tenant_id / "snapshots"
        for sync_id in _named_by_ids(folder):
            yield sync_id, list(_written_by_runs(folder / str(sync_id)))

    def drop_run(self, run_id: str) -> None:
        """Remove all of a run, its change log too."""
        shutil.rmtree(self._run(run_id), ignore_errors=True)

    def drop_all(self) -> int:
        """Remove all of the tenant's files, and say how many there were; who writes one meanwhile makes it necessary once more.

        :raises FatalError: one can't be removed.
        """
        folder = self.root / self.tenant_id
        files = sum(1 for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else 0
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise FatalError(
                f"files of the tenant can't be removed: {exc.strerror}", next_step="correct the folder's permissions, then run it again"
            ) from exc
        return files

    def drop_stage(self, run_id: str, generation: int) -> None:
        """Remove what one plan staged."""
        shutil.rmtree(self._run(run_id) / f"stage-{generation}", ignore_errors=True)

    def drop_run_leftovers(self, run_id: str) -> None:
        """Remove all of a run but its change log."""
        folder = self._run(run_id)
        for entry in folder.glob("*") if folder.is_dir() else ():
            if entry.name != "log":
                shutil.rmtree(entry, ignore_errors=True)

    def drop_superseded(self, sync_id: str, run_id: str, *, before: Iterable[str | None], after: Iterable[str | None]) -> None:
        """Remove the snapshot files that this run's manifest replaced, and those of its own tries that did not count.

        Never any other: a later run may already be writing, and a process that slept through its own end must not sweep what it does not know.
        """
        kept = {name for name in after if name is not None}
        own = {self.relative(path) for path in self.snapshot_folder(sync_id).glob(f"{run_id}-*")}
        for name in ({name for name in before if name is not None} | own) - kept:
            self.absolute(name).unlink(missing_ok=True)

    def _run(self, run_id: str) -> Path:
        return self.root / self.tenant_id / "runs" / run_id
