from __future__ import annotations

import csv
import json
import stat
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest

from wsync_engine.model.ids import uuid7
from wsync_engine.pipeline.rejected_row import payload_of
from wsync_engine.secrets.keyring import Keyring
from wsync_engine.services.rejection_export import export_rejections
from wsync_engine.services.runs import each_rejection, show_run
from wsync_engine.services.syncs import trigger_sync
from wsync_sdk.errors import ConfigError

from .conftest import Store

ROWS = 7


@pytest.fixture
def refused(store: Store) -> UUID:
    """A run with some refused rows."""
    store.apply()
    run_id = trigger_sync(store.api, store.tenant_id, "customers", actor="test", offer_rejected=True).run_id
    cipher = store.keyring.tenant(store.tenant_id)
    store.engine.execute('UPDATE wsync.run SET change_log = \'{"key": [["id", "BIGINT"]]}\' WHERE run_id = %s', [run_id])
    for key in range(ROWS):
        row = pa.table({"id": [key], "email": [f'ann"{key}@example.com'], "score": [float("nan")]})
        store.engine.execute(
            "INSERT INTO wsync.rejection (rejection_id, tenant_id, sync_id, run_id, phase, code, message, retryable, payload, at)"
            " SELECT %s, tenant_id, sync_id, run_id, 'deliver', 'bad', '=cmd()', false, %s, '2026-01-01T00:00:00Z' FROM wsync.run WHERE run_id = %s",
            [uuid7(), cipher.encrypt(payload_of(row, ["id"])), run_id],
        )
    return run_id


def test_the_wish_to_offer_rejected_rows_is_the_runs(store: Store, refused: UUID) -> None:
    assert show_run(store.api, store.tenant_id, refused).run["offer_rejected"] is True


@pytest.mark.parametrize("page", [3, ROWS, 50])
def test_refused_rows_are_read_page_by_page_and_each_once(store: Store, refused: UUID, page: int) -> None:
    rows = each_rejection(store.api, store.tenant_id, refused, keyring=store.keyring, page=page)

    assert [row["key"]["id"] for row in rows] == list(range(ROWS))


def test_all_refused_rows_are_written_for_their_owner_only(store: Store, refused: UUID, tmp_path: Path) -> None:
    file = tmp_path / "refused.jsonl"

    assert export_rejections(store.api, store.tenant_id, refused, file, keyring=store.keyring) == ROWS

    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["key"] for row in written] == [{"id": key} for key in range(ROWS)]
    assert written[1]["refused"] == {"id": 1, "email": 'ann"1@example.com', "score": "NaN"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_csv_file_has_a_line_per_row_and_nothing_that_a_spreadsheet_calculates(store: Store, refused: UUID, tmp_path: Path) -> None:
    file = tmp_path / "refused.csv"

    export_rejections(store.api, store.tenant_id, refused, file, keyring=store.keyring)

    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [json.loads(row["key"]) for row in rows] == [{"id": key} for key in range(ROWS)]
    assert (rows[0]["code"], rows[0]["message"], rows[0]["retryable"], rows[0]["at"][:10]) == ("bad", "'=cmd()", "false", "2026-01-01")


@pytest.mark.parametrize(
    ("name", "message"), [("refused.xlsx", "no ending"), ("refused", "no ending"), ("none/refused.csv", "can't be written")]
)
def test_a_file_that_can_not_be_written_is_refused(store: Store, refused: UUID, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_rejections(store.api, store.tenant_id, refused, tmp_path / name, keyring=store.keyring)


def test_who_can_not_decrypt_leaves_the_former_file_as_it_was(store: Store, refused: UUID, tmp_path: Path) -> None:
    file = tmp_path / "refused.csv"
    file.write_text("former")

    with pytest.raises(ConfigError, match="WSYNC_SECRET_KEY"):
        export_rejections(store.api, store.tenant_id, refused, file, keyring=Keyring([b"x" * 32]))

    assert (file.read_text(), list(tmp_path.iterdir())) == ("former", [file])
