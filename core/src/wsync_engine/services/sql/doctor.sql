-- name: workforce_count
-- Of all tenants: who works, and what nobody fired.
SELECT w.workers, w.slots, w.running, c.overdue
FROM (
    SELECT count(*) AS workers, coalesce(sum(slots), 0) AS slots, coalesce(sum(running), 0) AS running
    FROM wsync.worker
    WHERE heartbeat_at > (SELECT wsync.clock()) - interval '1 minute' AND NOT draining) AS w,
    (SELECT count(*) AS overdue
    FROM wsync.schedule_clock
    WHERE next_due_at < (SELECT wsync.clock()) - make_interval(secs => CAST(:late_after_s AS float8))) AS c;

-- name: queues_unserved
-- Of all tenants: queues that syncs name and nobody takes runs from.
SELECT q.name, count(*) AS syncs
FROM wsync.queue AS q
JOIN wsync.sync AS y ON y.queue = q.queue AND y.deleted_at IS NULL
WHERE NOT EXISTS (
    SELECT FROM wsync.worker AS w
    WHERE q.queue = ANY(w.queues) AND w.heartbeat_at > wsync.clock() - interval '1 minute' AND NOT w.draining AND w.refusal IS NULL)
GROUP BY q.queue, q.name
ORDER BY q.queue;

-- name: sync_health
SELECT y.resync, y.key_resync, s.manifest, s.cursor, coalesce(s.version, 0) AS version, r.run_id, r.state, r.outcome_reason
FROM wsync.sync AS y
LEFT JOIN wsync.snapshot AS s ON s.tenant_id = y.tenant_id AND s.sync_id = y.sync_id
LEFT JOIN LATERAL (
    SELECT n.run_id, n.state::text AS state, n.outcome_reason
    FROM wsync.run AS n
    WHERE n.tenant_id = y.tenant_id AND n.sync_id = y.sync_id AND n.helps IS NULL
    ORDER BY n.run_id DESC
    LIMIT 1) AS r ON true
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id;

-- name: destinations_away
-- Of all tenants, as `tenant/connection`.
SELECT t.name || '/' || k.name AS name
FROM wsync.breaker AS b
JOIN wsync.tenant AS t ON t.tenant_id = b.tenant_id
JOIN wsync.connection AS k ON k.tenant_id = b.tenant_id AND coalesce(k.credential_id, k.connection_id) = b.credential_id AND k.deleted_at IS NULL
WHERE b.state <> 'closed'
ORDER BY 1
LIMIT :count;

-- name: sync_breaker
-- Whether the sync's destination is left alone.
SELECT n.name, b.state, b.reason, b.retry_at
FROM wsync.sync AS y
JOIN wsync.connection AS n ON n.tenant_id = y.tenant_id AND n.connection_id = y.sink_connection_id
JOIN wsync.breaker AS b ON b.tenant_id = n.tenant_id AND b.credential_id = coalesce(n.credential_id, n.connection_id)
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id AND b.state <> 'closed';

-- name: sync_open
-- The open run of a sync, what waits behind it, and the caps that it needs room under.
SELECT r.run_id, r.state::text AS state, r.ready_at, r.ready_at > wsync.clock() AS is_delayed, r.error, r.guards, r.started_at, r.cancel_reason,
    r.waits_for, q.name AS queue,
    extract(epoch FROM wsync.clock() - r.ready_at) AS waiting_s,
    (SELECT count(*) FROM wsync.run AS b WHERE b.overlap_key = r.overlap_key AND b.state = 'buffered') AS buffered,
    (SELECT count(*) FROM wsync.worker AS w WHERE r.queue = ANY(w.queues) AND w.heartbeat_at > (SELECT wsync.clock()) - interval '1 minute'
        AND NOT w.draining AND w.refusal IS NULL) AS workers,
    (SELECT coalesce(sum(w.slots - w.running), 0) FROM wsync.worker AS w WHERE r.queue = ANY(w.queues)
        AND w.heartbeat_at > (SELECT wsync.clock()) - interval '1 minute' AND NOT w.draining AND w.refusal IS NULL) AS free_slots,
    k.state AS breaker, k.retry_at,
    (SELECT min(CASE c.kind WHEN 'T' THEN 'of the tenant' WHEN 'N' THEN 'of the source connection' WHEN 'S' THEN 'of the sync'
            ELSE 'of the sink''s credential' END || ': ' || c.max_running)
        FROM wsync.resource_cap AS c
        WHERE c.tenant_id = r.tenant_id
            AND (c.kind, c.resource_id) IN (('T', r.tenant_id), ('N', r.connection_id), ('S', r.sync_id), ('K', r.credential_id))
            AND c.max_running <= (SELECT count(*) FROM wsync.run AS x
                WHERE x.tenant_id = r.tenant_id AND x.state IN ('running', 'cancelling')
                    AND CASE c.kind WHEN 'T' THEN x.tenant_id WHEN 'N' THEN x.connection_id WHEN 'S' THEN x.sync_id ELSE x.credential_id END
                        = c.resource_id)) AS full_cap
FROM wsync.run AS r
JOIN wsync.queue AS q ON q.queue = r.queue
JOIN wsync.sync AS y ON y.tenant_id = r.tenant_id AND y.overlap_key = r.overlap_key
LEFT JOIN wsync.breaker AS k ON k.tenant_id = r.tenant_id AND k.credential_id = r.credential_id
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id AND r.exclusive AND r.state IN ('queued', 'running', 'cancelling', 'blocked');

-- name: schedule_states
-- Why a schedule does not fire, and what became of its latest fire that made no run.
SELECT h.name, h.paused, h.pause_note, h.paused_by, c.next_due_at,
    c.next_due_at IS NULL AND NOT h.paused AS is_exhausted,
    e.at AS skipped_at, e.detail AS skipped
FROM wsync.schedule AS h
JOIN wsync.schedule_clock AS c ON c.schedule_id = h.schedule_id
LEFT JOIN LATERAL (
    SELECT e.at, e.detail FROM wsync.run_event AS e
    WHERE e.schedule_id = h.schedule_id AND e.tenant_id = h.tenant_id AND e.kind = 'schedule.skipped' AND e.at > (SELECT wsync.clock()) - interval '1 day'
    ORDER BY e.at DESC LIMIT 1) AS e ON true
WHERE h.tenant_id = :tenant_id AND h.sync_id = :sync_id AND h.deleted_at IS NULL
ORDER BY h.name;
