-- name: delivered_logs
-- Runs of a sync with their change logs, whether they were delivered or not, in the order of their delivery; also archived ones.
SELECT r.run_id, r.state::text AS state, r.delivery, r.dry_run, r.adopt, r.change_log, r.base_version
FROM (SELECT run_id, sync_id, tenant_id, helps, state, delivery, dry_run, adopt, change_log, base_version FROM wsync.run
    UNION ALL SELECT run_id, sync_id, tenant_id, helps, state, delivery, dry_run, adopt, change_log, base_version FROM wsync.run_history) AS r
WHERE r.tenant_id = :tenant_id AND r.sync_id = :sync_id AND r.run_id = ANY(CAST(:run_ids AS uuid[])) AND r.helps IS NULL
ORDER BY r.delivery NULLS LAST, r.run_id;

-- name: delivered_between
-- The ended runs of a sync that may have sent something to its own destination.
SELECT r.run_id
FROM (SELECT run_id, sync_id, tenant_id, state, delivery, adopt, change_log, finished_at FROM wsync.run
    UNION ALL SELECT run_id, sync_id, tenant_id, state, delivery, adopt, change_log, finished_at FROM wsync.run_history) AS r
WHERE r.tenant_id = :tenant_id AND r.sync_id = :sync_id AND r.delivery IS NOT NULL AND NOT r.adopt
    AND r.state IN ('succeeded', 'partial', 'failed', 'cancelled') AND r.change_log ->> 'is_elsewhere' IS DISTINCT FROM 'true'
    AND r.finished_at >= CAST(:since AS timestamptz) AND (CAST(:until AS timestamptz) IS NULL OR r.finished_at < CAST(:until AS timestamptz))
ORDER BY r.delivery;
