"""Files of runs and snapshots, under one folder per tenant. The only place that knows where they lie."""

from wsync_engine.storage.local import LocalStorage, storage_id, tenants_in

__all__ = ["LocalStorage", "storage_id", "tenants_in"]
