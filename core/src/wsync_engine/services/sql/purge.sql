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
