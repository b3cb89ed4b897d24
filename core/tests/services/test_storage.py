from __future__ import annotations

from pathlib import Path

import pytest

from wsync_engine.services.storage import claim_storage, known_storage_id
from wsync_engine.storage import storage_id
from wsync_sdk.errors import ConfigError

from .conftest import Store


def test_the_first_worker_decides_which_storage_is_the_installations(store: Store, tmp_path: Path) -> None:
    first, other = ((tmp_path / name).as_uri() for name in ("first", "other"))
    assert known_storage_id(store.api) is None

    claim_storage(store.engine, first)
    claim_storage(store.engine, first)

    with pytest.raises(ConfigError, match="not the storage"):
        claim_storage(store.engine, other)
    assert known_storage_id(store.api) == storage_id(first)


def test_a_new_storage_takes_the_place_of_one_that_is_gone(store: Store, tmp_path: Path) -> None:
    first, other = ((tmp_path / name).as_uri() for name in ("first", "other"))
    claim_storage(store.engine, first)

    claim_storage(store.engine, other, is_new=True)

    claim_storage(store.engine, other)
    with pytest.raises(ConfigError):
        claim_storage(store.engine, first)


def test_a_storage_is_known_by_its_folder_and_not_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "storage")

    assert storage_id((tmp_path / "storage").as_uri()) == storage_id((tmp_path / "link").as_uri())
    assert len({storage_id((tmp_path / name).as_uri()) for name in ("storage", "another")}) == 2
