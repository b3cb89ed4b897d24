-- name: tenant_lock
-- One apply of a tenant at a time.
SELECT tenant_id FROM wsync.tenant WHERE tenant_id = :tenant_id FOR UPDATE;

-- name: connection_list
SELECT k.connection_id, k.name, k.plugin, k.config, k.secrets
FROM wsync.connection AS k
WHERE k.tenant_id = :tenant_id AND k.deleted_at IS NULL
ORDER BY k.name;

-- name: sync_list
SELECT y.sync_id, y.name, y.spec, y.source_connection_id, y.sink_connection_id, q.name AS queue_name
FROM wsync.sync AS y
JOIN wsync.queue AS q ON q.queue = y.queue
WHERE y.tenant_id = :tenant_id AND y.deleted_at IS NULL
ORDER BY y.name;

-- name: queue_list
SELECT q.queue, q.name
FROM wsync.queue AS q
ORDER BY q.queue;

-- name: schedule_list
-- Of syncs that exist; with the clock, for people.
SELECT s.*, y.name AS sync_name, c.next_nominal_at, c.next_due_at, c.last_nominal_at, c.fired, c.skipped, c.missed, c.coalesced, c.failures_in_row
FROM wsync.schedule AS s
JOIN wsync.sync AS y ON y.tenant_id = s.tenant_id AND y.sync_id = s.sync_id
JOIN wsync.schedule_clock AS c ON c.schedule_id = s.schedule_id
WHERE s.tenant_id = :tenant_id AND s.deleted_at IS NULL
ORDER BY s.name;

-- name: schedule_events
SELECT e.at, e.kind, e.run_id, e.detail
FROM wsync.run_event AS e
WHERE e.tenant_id = :tenant_id AND e.schedule_id = :schedule_id
ORDER BY e.at DESC
LIMIT 20;

-- name: connection_insert
INSERT INTO wsync.connection (connection_id, tenant_id, name, plugin, config, secrets, created_at, updated_at)
VALUES (:connection_id, :tenant_id, :name, :plugin, :config, :secrets, wsync.clock(), wsync.clock());

-- name: connection_change
UPDATE wsync.connection
SET plugin = :plugin, config = :config, secrets = :secrets, spec_version = spec_version + 1, updated_at = wsync.clock()
WHERE connection_id = :connection_id;

-- name: connection_credentials
SELECT coalesce(k.credential_id, k.connection_id) AS credential_id
FROM wsync.connection AS k
WHERE k.tenant_id = :tenant_id AND k.connection_id = ANY(CAST(:connection_ids AS uuid[]));

-- name: connection_delete
-- Its secrets go at once.
UPDATE wsync.connection
SET deleted_at = wsync.clock(), secrets = NULL
WHERE connection_id = :connection_id;

-- name: sync_insert
INSERT INTO wsync.sync (sync_id, tenant_id, name, source_connection_id, sink_connection_id, queue, spec, overlap_key, created_at, updated_at)
VALUES (:sync_id, :tenant_id, :name, :source_id, :sink_id, :queue, :spec, :sync_id, wsync.clock(), wsync.clock());

-- name: sync_change
UPDATE wsync.sync
SET source_connection_id = :source_id, sink_connection_id = :sink_id, queue = :queue, spec = :spec, spec_version = spec_version + 1,
    resync = resync + CAST(CAST(:is_moved AS bool) AS int),
    forgotten = CASE WHEN CAST(:is_moved AS bool) THEN resync + 1 ELSE forgotten END,
    updated_at = wsync.clock()
WHERE sync_id = :sync_id;

-- name: sync_resync
-- Asked for again before the first was done: one more, so that a run under way does not answer it.
UPDATE wsync.sync AS y
SET resync = resync + 1, delivery = delivery + 1000000  -- beyond what a destination may have seen before the state store was restored
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id
RETURNING y.spec, (SELECT s.manifest FROM wsync.snapshot AS s WHERE s.tenant_id = y.tenant_id AND s.sync_id = y.sync_id) AS manifest;

-- name: sync_destination
SELECT k.connection_id, k.plugin, y.spec ->> 'stream' AS stream
FROM wsync.sync AS y
JOIN wsync.connection AS k ON k.tenant_id = y.tenant_id AND k.connection_id = y.sink_connection_id
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id;

-- name: sync_keys_lock
-- Requests come one after the other, and after a fold that is just being stored.
SELECT y.key_resync, y.unsure_keys, y.spec, s.manifest, coalesce(s.version, 0) AS version
FROM wsync.sync AS y
LEFT JOIN wsync.snapshot AS s ON s.tenant_id = y.tenant_id AND s.sync_id = y.sync_id
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id
FOR UPDATE OF y;

-- name: sync_keys_resync
UPDATE wsync.sync
SET key_resync = key_resync + 1, unsure_keys = :unsure_keys
WHERE tenant_id = :tenant_id AND sync_id = :sync_id;

-- name: sync_resync_of_sink
-- The connection has another plugin now: what its syncs were acknowledged, was acknowledged elsewhere.
UPDATE wsync.sync
SET resync = resync + 1, forgotten = resync + 1
WHERE sink_connection_id = :connection_id AND deleted_at IS NULL;

-- name: sync_lock
-- Waits for those who are just making a run or a schedule of it (`sync_keep`); whoever comes later finds it deleted.
SELECT y.sync_id FROM wsync.sync AS y WHERE y.sync_id = :sync_id FOR UPDATE;

-- name: schedules_of_sync
SELECT s.schedule_id
FROM wsync.schedule AS s
WHERE s.tenant_id = :tenant_id AND s.sync_id = :sync_id AND s.deleted_at IS NULL
ORDER BY s.schedule_id;

-- name: sync_delete
UPDATE wsync.sync
SET deleted_at = wsync.clock()
WHERE sync_id = :sync_id;

-- name: run_open_of_sync
SELECT r.run_id
FROM wsync.run AS r
WHERE r.tenant_id = :tenant_id AND r.sync_id = :sync_id AND r.helps IS NULL AND r.state IN ('buffered', 'queued', 'running', 'blocked')
ORDER BY r.run_id;
