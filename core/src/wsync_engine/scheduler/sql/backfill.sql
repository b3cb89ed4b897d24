-- name: backfill_insert
INSERT INTO wsync.backfill (backfill_id, tenant_id, shard, schedule_id, spec_version, from_at, to_at, cursor_at, overlap, max_open, note,
    state, next_due_at, created_by, created_at)
VALUES (:backfill_id, :tenant_id, :shard, :schedule_id, :spec_version, :from_at, :to_at, :from_at, :overlap, :max_open, :note, 'active',
    wsync.clock(), :actor, wsync.clock())
RETURNING rev, next_due_at;

-- name: backfill_lock
SELECT b.backfill_id, b.tenant_id, b.shard, b.schedule_id, b.spec_version, b.to_at, b.cursor_at, b.overlap, b.max_open, b.state, b.rev,
    b.next_due_at, v.spec, s.deleted_at IS NOT NULL OR y.deleted_at IS NOT NULL AS is_deleted, s.queue, s.connection_id, s.credential_id,
    s.overlap_key, s.priority, s.total_timeout_ms, s.max_buffer, s.sync_id, wsync.clock() AS now,
    (SELECT count(*) FROM wsync.run AS r
        WHERE r.backfill_id = b.backfill_id AND r.state IN ('buffered', 'queued', 'running', 'cancelling', 'blocked')) AS open
FROM wsync.backfill AS b
JOIN wsync.schedule AS s ON s.schedule_id = b.schedule_id
JOIN wsync.sync AS y ON y.tenant_id = s.tenant_id AND y.sync_id = s.sync_id
JOIN wsync.schedule_spec AS v ON v.schedule_id = b.schedule_id AND v.spec_version = b.spec_version
WHERE b.backfill_id = :backfill_id
FOR UPDATE OF b;

-- name: backfill_advance
UPDATE wsync.backfill
SET cursor_at = :cursor_at, made = made + :made, skipped = skipped + :skipped, rev = rev + 1, state = :state,
    next_due_at = CASE WHEN CAST(:state AS text) = 'active' THEN wsync.clock() + make_interval(secs => CAST(:pause_s AS float8)) END,
    ended_at = CASE WHEN CAST(:state AS text) <> 'active' THEN wsync.clock() END
WHERE backfill_id = :backfill_id
RETURNING rev, next_due_at;

-- name: backfill_cancel
UPDATE wsync.backfill
SET state = 'cancelled', rev = rev + 1, next_due_at = NULL, ended_at = wsync.clock()
WHERE backfill_id = :backfill_id AND state = 'active'
RETURNING rev, schedule_id;

-- name: backfill_runs
-- Those that a cancel ends: what waits, or all that is open.
SELECT r.run_id
FROM wsync.run AS r
WHERE r.backfill_id = :backfill_id AND r.state = ANY(CAST(:states AS wsync.run_state[]))
ORDER BY r.run_id;

-- name: backfill_list
-- With the run whose decision an active one waits for: its own, or that of the sync which its runs wait behind.
SELECT b.backfill_id, s.name AS schedule, b.state, b.from_at, b.to_at, b.cursor_at, b.made, b.skipped, b.max_open, b.overlap, b.note,
    b.created_by, b.created_at, b.ended_at,
    (SELECT count(*) FROM wsync.run AS r
        WHERE r.backfill_id = b.backfill_id AND r.state IN ('buffered', 'queued', 'running', 'cancelling', 'blocked')) AS open,
    CASE WHEN b.state = 'active' THEN coalesce(
        (SELECT r.run_id FROM wsync.run AS r WHERE r.backfill_id = b.backfill_id AND r.state = 'blocked' ORDER BY r.run_id LIMIT 1),
        (SELECT r.run_id FROM wsync.run AS r
            WHERE r.overlap_key = s.overlap_key AND r.exclusive AND r.state = 'blocked' AND EXISTS (
                SELECT FROM wsync.run AS w WHERE w.backfill_id = b.backfill_id AND w.state = 'buffered'))) END AS blocked_run_id
FROM wsync.backfill AS b
JOIN wsync.schedule AS s ON s.schedule_id = b.schedule_id
WHERE b.tenant_id = :tenant_id
ORDER BY b.backfill_id DESC
LIMIT :count;
