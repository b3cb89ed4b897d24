-- name: run_list
SELECT r.run_id, y.name AS sync_name, r.state::text AS state, r.phase, r.trigger, r.dry_run, r.adopt, r.attempt, r.nominal_at, r.created_at,
    r.started_at, r.finished_at, r.counts, r.outcome_reason, r.error
FROM (SELECT * FROM wsync.run UNION ALL SELECT * FROM wsync.run_history) AS r
JOIN wsync.sync AS y ON y.tenant_id = r.tenant_id AND y.sync_id = r.sync_id
WHERE r.tenant_id = :tenant_id AND r.helps IS NULL
    AND (CAST(:sync_name AS text) IS NULL OR y.name = :sync_name)
    AND (CAST(:states AS text[]) IS NULL OR r.state::text = ANY(CAST(:states AS text[])))
ORDER BY r.run_id DESC
LIMIT :count;

-- name: sync_names
-- Also of syncs that were deleted: their runs are still there.
SELECT DISTINCT y.name
FROM wsync.sync AS y
WHERE y.tenant_id = :tenant_id
ORDER BY y.name;

-- name: run_show
SELECT r.run_id, y.name AS sync_name, r.state::text AS state, r.phase, r.trigger, r.dry_run, r.adopt, r.offer_rejected, r.replay, r.attempt, r.crashes, r.params AS parameters, r.nominal_at, r.created_at,
    r.ready_at, r.started_at, r.finished_at, r.deadline_at, r.counts, r.progress, r.progress_at, r.guards, r.outcome_reason, r.error_class, r.error, r.next_step,
    r.cancel_reason, r.approved_by, r.approved_at, r.change_log -> 'part' AS part,
    (SELECT count(*) FROM wsync.rejection AS x WHERE x.tenant_id = r.tenant_id AND x.run_id = r.run_id) AS rejections
FROM (SELECT * FROM wsync.run UNION ALL SELECT * FROM wsync.run_history) AS r
JOIN wsync.sync AS y ON y.tenant_id = r.tenant_id AND y.sync_id = r.sync_id
WHERE r.tenant_id = :tenant_id AND r.run_id = :run_id;

-- name: run_events
SELECT e.at, e.kind, e.detail
FROM wsync.run_event AS e
WHERE e.run_id = :run_id AND e.tenant_id = :tenant_id
ORDER BY e.at;

-- name: run_rejections
-- By what was said of them; the rows themselves are encrypted.
SELECT x.phase, x.code, x.message, x.retryable, count(*) AS rows
FROM wsync.rejection AS x
WHERE x.tenant_id = :tenant_id AND x.run_id = :run_id
GROUP BY x.phase, x.code, x.message, x.retryable
ORDER BY count(*) DESC, x.code, x.message
LIMIT 20;

-- name: rejection_list
-- One by one, with what was refused, encrypted, and the key's names and types.
SELECT x.rejection_id, x.phase, x.code, x.message, x.retryable, x.at, x.payload, r.change_log -> 'key' AS key_columns
FROM wsync.rejection AS x
LEFT JOIN (SELECT tenant_id, run_id, change_log FROM wsync.run
    UNION ALL SELECT tenant_id, run_id, change_log FROM wsync.run_history) AS r USING (tenant_id, run_id)
WHERE x.tenant_id = :tenant_id AND x.run_id = :run_id
    AND (CAST(:after_id AS uuid) IS NULL OR (x.at, x.rejection_id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid)))
ORDER BY x.at, x.rejection_id
LIMIT :count;

-- name: run_change_log
SELECT r.change_log, r.base_version
FROM (SELECT tenant_id, run_id, change_log, base_version FROM wsync.run
    UNION ALL SELECT tenant_id, run_id, change_log, base_version FROM wsync.run_history) AS r
WHERE r.tenant_id = :tenant_id AND r.run_id = :run_id;

-- name: run_find
-- People type some digits of an id; the last ones differ most, as ids begin with the time. Two rows are enough to know that it is not one.
SELECT r.run_id
FROM (SELECT run_id, tenant_id FROM wsync.run WHERE helps IS NULL UNION ALL SELECT run_id, tenant_id FROM wsync.run_history) AS r
WHERE r.tenant_id = :tenant_id
    AND (replace(CAST(r.run_id AS text), '-', '') LIKE :digits || '%' OR replace(CAST(r.run_id AS text), '-', '') LIKE '%' || :digits)
LIMIT 2;

-- name: run_review
-- What approve and discard decide on; locked, so that two people can't decide at once.
SELECT r.run_id, r.schedule_id, r.overlap_key, r.sync_id, r.priority, r.adopt, r.offer_rejected, r.replay, r.params, r.nominal_at, r.state::text AS state, r.dry_run, r.base_version, coalesce(s.version, 0) AS version,
    coalesce(CAST(r.change_log ->> 'planned_after' AS bigint), y.delivery) <> y.delivery AS is_overtaken,
    greatest(y.updated_at, k.updated_at) > coalesce(r.started_at, r.created_at) AS is_sync_changed
FROM wsync.run AS r
JOIN wsync.sync AS y ON y.tenant_id = r.tenant_id AND y.sync_id = r.sync_id
JOIN wsync.connection AS k ON k.tenant_id = r.tenant_id AND k.connection_id = y.sink_connection_id
LEFT JOIN wsync.snapshot AS s ON s.sync_id = r.sync_id
WHERE r.tenant_id = :tenant_id AND r.run_id = :run_id
FOR UPDATE OF r;

-- name: run_archived
-- One that ended long ago; as run_review has it, but for what only a blocked run needs.
SELECT r.run_id, r.schedule_id, r.overlap_key, r.sync_id, r.priority, r.adopt, r.offer_rejected, r.replay, r.params, r.nominal_at, r.state::text AS state, r.dry_run
FROM wsync.run_history AS r
WHERE r.tenant_id = :tenant_id AND r.run_id = :run_id;

-- name: schedule_alive
SELECT s.schedule_id
FROM wsync.schedule AS s
WHERE s.tenant_id = :tenant_id AND s.schedule_id = :schedule_id AND s.deleted_at IS NULL;

-- name: run_approve
-- Its time starts again: waiting for a person must not use it up. Exclusive from now on: it will deliver.
UPDATE wsync.run
SET state = 'queued', exclusive = true, approved_by = :actor, approved_at = wsync.clock(), ready_at = wsync.clock(),
    deadline_at = wsync.clock() + (deadline_at - created_at)
WHERE run_id = :run_id AND state = 'blocked'
RETURNING run_id, schedule_id, tenant_id, queue, sync_id, connection_id, credential_id, priority, nominal_at, due_at, ready_at;

-- name: run_discard
UPDATE wsync.run
SET state = 'cancelled', outcome_reason = 'discarded', cancel_reason = 'discarded', finished_at = wsync.clock()
WHERE run_id = :run_id AND state = 'blocked'
RETURNING run_id;

-- name: run_hasten
-- A run that waits for its next attempt waits no longer; not one that waits for a terminated run's process, which is over once it was claimed.
UPDATE wsync.run
SET ready_at = wsync.clock()
WHERE run_id = :run_id AND state = 'queued' AND (waits_for IS NULL OR epoch > 0)
RETURNING run_id, schedule_id, tenant_id, connection_id, credential_id, sync_id, queue, priority, nominal_at, due_at, ready_at;

-- name: worker_count
SELECT count(*) AS workers
FROM wsync.worker
WHERE heartbeat_at > wsync.clock() - interval '1 minute' AND NOT draining;
