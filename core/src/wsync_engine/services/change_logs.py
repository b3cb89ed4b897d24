"""What a run would send, or has sent: the rows of its change log, for a person who decides about it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg

from wsync_engine.model.ids import TenantId
from wsync_engine.scheduler.rows import Row, select
from wsync_engine.services.catalog import service_statements
from wsync_engine.state.database import tenant_transaction
from wsync_engine.storage import LocalStorage
from wsync_sdk.errors import ConfigError
from wsync_sdk.sink import OP, Operation

__all__ = ["list_changes"]

PAGE = 1_000
_SQL = service_statements("runs")


def list_changes(
    conn: psycopg.Connection[Any],
    tenant_id: TenantId,
    run_id: UUID,
    *,
    storage: LocalStorage,
    count: int,
    operation: Operation | None = None,
) -> list[Row]:
    """The first rows of a run's change log: `operation`, and `record`, the fields as they are to be sent (a delete has its key only).

    :param storage: the tenant's. :param operation: only those; None: both.
    :raises ConfigError: the run has no change log, or its files are gone or not in this storage.
    """
    with tenant_transaction(conn, tenant_id):
        rows = select(conn, _SQL["run_change_log"], {"tenant_id": tenant_id, "run_id": run_id})
    if not rows or rows[0]["change_log"] is None:
        raise ConfigError(
            f"run {run_id} has no change log: it ended, or still is, before it found out what changed",
            next_step=f"`wsync-engine runs show {run_id}` says how far it is",
        )
    return list(islice(_changes(rows[0], storage, operation), count))


def _changes(row: Row, storage: LocalStorage, operation: Operation | None) -> Iterator[Row]:
    # Here, so that other commands do without Arrow.
    import pyarrow.compute as pc  # noqa: PLC0415

    from wsync_engine.pipeline.change_log import ChangeLogReader  # noqa: PLC0415
    from wsync_engine.pipeline.log_record import LogRecord  # noqa: PLC0415
    from wsync_sdk import RowRange  # noqa: PLC0415

    log = LogRecord.from_json(row["base_version"] or 0, row["change_log"])
    key = {column.name for column in log.key}
    for name in log.files:
        path = storage.absolute(name)
        if not path.is_file():
            raise ConfigError(
                "the run's change log is not in the storage folder of this host any more",
                next_step="look whether this host has the workers' storage; logs of ended runs stay for WSYNC_KEEP_CHANGE_LOGS_DAYS",
            )
        reader = ChangeLogReader(path, log.schema)
        try:
            for first in range(0, reader.rows, PAGE):
                batch = reader.read(RowRange(first, min(first + PAGE, reader.rows) - 1))
                if operation is not None:
                    batch = batch.filter(pc.equal(batch.column(OP), operation))
                for record in batch.to_pylist():
                    made = Operation(record.pop(OP))
                    shown = record if made is Operation.UPSERT else {field: value for field, value in record.items() if field in key}
                    yield {"operation": str(made), "record": shown}
        finally:
            reader.close()
