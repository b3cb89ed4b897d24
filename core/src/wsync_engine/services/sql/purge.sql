-- name: tenant_hold
-- Nobody applies anything to the tenant, or purges it, beside us.
SELECT t.tenant_id FROM wsync.tenant AS t WHERE t.tenant_id = :tenant_id FOR UPDATE;

-- name: runs_open
-- Runs and helpers that are not at their end, and terminated ones whose process may still live.
SELECT r.run_id, r.helps IS NOT NULL AS is_helper
FROM wsync.run AS r
WHERE r.tenant_id = :tenant_id AND (r.state IN ('buffered', 'queued', 'running', 'cancelling', 'blocked')
    OR (r.cancel_reason = 'terminated' AND r.lease_until > wsync.clock()))
ORDER BY r.run_id;

-- name: schedules_left
SELECT s.schedule_id FROM wsync.schedule AS s WHERE s.tenant_id = :tenant_id AND s.deleted_at IS NULL ORDER BY s.schedule_id;

-- name: syncs_end
-- From here on nobody makes a run of them.
UPDATE wsync.sync SET deleted_at = wsync.clock() WHERE tenant_id = :tenant_id AND deleted_at IS NULL;

-- name: secrets_end
UPDATE wsync.connection SET secrets = NULL, deleted_at = coalesce(deleted_at, wsync.clock()) WHERE tenant_id = :tenant_id;

-- name: acks_purge
-- The long tables page by page, so that no transaction lasts; the tenant is named, as the engine's login sees all.
DELETE FROM wsync.ack WHERE ctid = ANY (ARRAY(SELECT ctid FROM wsync.ack WHERE tenant_id = :tenant_id LIMIT :count));

-- name: chunks_purge
DELETE FROM wsync.chunk WHERE ctid = ANY (ARRAY(SELECT ctid FROM wsync.chunk WHERE tenant_id = :tenant_id LIMIT :count));

-- name: rejections_purge
DELETE FROM wsync.rejection WHERE rejection_id IN (SELECT rejection_id FROM wsync.rejection WHERE tenant_id = :tenant_id LIMIT :count);

-- name: runs_purge
-- With their splits and tasks.
DELETE FROM wsync.run WHERE run_id IN (SELECT run_id FROM wsync.run WHERE tenant_id = :tenant_id LIMIT :count);

-- name: history_purge
DELETE FROM wsync.run_history WHERE run_id IN (SELECT run_id FROM wsync.run_history WHERE tenant_id = :tenant_id LIMIT :count)
    AND tenant_id = :tenant_id;

-- name: events_purge
-- But for what says that the tenant was purged.
DELETE FROM wsync.run_event WHERE (tableoid, ctid) IN (
    SELECT tableoid, ctid FROM wsync.run_event WHERE tenant_id = :tenant_id AND kind <> 'tenant.purged' LIMIT :count);

-- name: schedules_purge
WITH clocks AS (DELETE FROM wsync.schedule_clock WHERE tenant_id = :tenant_id),
    former AS (DELETE FROM wsync.schedule_spec WHERE tenant_id = :tenant_id),
    backfills AS (DELETE FROM wsync.backfill WHERE tenant_id = :tenant_id)
DELETE FROM wsync.schedule WHERE tenant_id = :tenant_id;

-- name: caps_purge
WITH breakers AS (DELETE FROM wsync.breaker WHERE tenant_id = :tenant_id)
DELETE FROM wsync.resource_cap WHERE tenant_id = :tenant_id;

-- name: snapshots_purge
DELETE FROM wsync.snapshot WHERE tenant_id = :tenant_id;

-- name: syncs_purge
DELETE FROM wsync.sync WHERE tenant_id = :tenant_id;

-- name: connections_purge
DELETE FROM wsync.connection WHERE tenant_id = :tenant_id;

-- name: tenant_purge
DELETE FROM wsync.tenant WHERE tenant_id = :tenant_id;

-- name: runs_unsettled
-- Runs of a sync whose files or acks somebody still needs.
SELECT r.run_id, r.state IN ('succeeded', 'partial', 'failed', 'cancelled') AS is_ended
FROM wsync.run AS r
WHERE r.tenant_id = :tenant_id AND r.sync_id = :sync_id AND r.helps IS NULL
    AND (r.state IN ('buffered', 'queued', 'running', 'cancelling', 'blocked') OR (r.delivery IS NOT NULL AND r.folded_at IS NULL))
ORDER BY r.run_id;

-- name: sync_snapshot
SELECT s.manifest, coalesce(s.version, 0) AS version
FROM wsync.sync AS y
LEFT JOIN wsync.snapshot AS s ON s.tenant_id = y.tenant_id AND s.sync_id = y.sync_id
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id;

-- name: runs_with_logs
SELECT r.run_id, r.change_log, r.base_version
FROM (SELECT run_id, sync_id, tenant_id, helps, change_log, base_version FROM wsync.run
    UNION ALL SELECT run_id, sync_id, tenant_id, helps, change_log, base_version FROM wsync.run_history) AS r
WHERE r.tenant_id = :tenant_id AND r.sync_id = :sync_id AND r.helps IS NULL;

-- name: sync_hold
-- Nobody makes a run of it beside us, or lets one deliver.
SELECT y.sync_id FROM wsync.sync AS y WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id FOR UPDATE;

-- name: snapshot_swap
-- What was read stays read: the cursor goes with the version that it holds for.
UPDATE wsync.snapshot AS s
SET version = s.version + 1, manifest = :manifest, updated_at = wsync.clock(),
    cursor = CASE WHEN CAST(s.cursor ->> 'version' AS bigint) = s.version
        THEN jsonb_set(s.cursor, '{version}', to_jsonb(s.version + 1)) ELSE s.cursor END
WHERE s.tenant_id = :tenant_id AND s.sync_id = :sync_id AND s.version = :version
RETURNING s.version;

-- name: rejections_page
SELECT x.rejection_id, x.payload, r.change_log -> 'key' AS key
FROM wsync.rejection AS x
LEFT JOIN (SELECT tenant_id, run_id, change_log FROM wsync.run
    UNION ALL SELECT tenant_id, run_id, change_log FROM wsync.run_history) AS r USING (tenant_id, run_id)
WHERE x.tenant_id = :tenant_id AND x.sync_id = :sync_id AND x.payload IS NOT NULL
    AND (CAST(:after AS uuid) IS NULL OR x.rejection_id > CAST(:after AS uuid))
ORDER BY x.rejection_id
LIMIT :count;

-- name: rejections_forget
DELETE FROM wsync.rejection
WHERE tenant_id = :tenant_id AND sync_id = :sync_id AND rejection_id = ANY(CAST(:rejection_ids AS uuid[]));

-- name: logs_forget
-- Keys that a run's log was to offer again; nobody reads that log any more but for a replay.
WITH archived AS (
    UPDATE wsync.run_history SET change_log = change_log #- '{base,unsure_keys}'
    WHERE tenant_id = :tenant_id AND sync_id = :sync_id AND change_log #> '{base,unsure_keys}' IS NOT NULL)
UPDATE wsync.run SET change_log = change_log #- '{base,unsure_keys}'
WHERE tenant_id = :tenant_id AND sync_id = :sync_id AND change_log #> '{base,unsure_keys}' IS NOT NULL
    AND state IN ('succeeded', 'partial', 'failed', 'cancelled') AND (folded_at IS NOT NULL OR delivery IS NULL);

-- name: requests_keep
UPDATE wsync.sync SET unsure_keys = :unsure_keys WHERE tenant_id = :tenant_id AND sync_id = :sync_id;
