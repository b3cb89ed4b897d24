-- name: workforce_count
-- Of all tenants: who works, and what nobody fired.
SELECT w.workers, w.slots, w.running, c.overdue
FROM (
    SELECT count(*) AS workers, coalesce(sum(slots), 0) AS slots, coalesce(sum(running), 0) AS running
    FROM wsync.worker
    WHERE heartbeat_at > wsync.clock() - interval '1 minute' AND NOT draining) AS w,
    (SELECT count(*) AS overdue
    FROM wsync.schedule_clock
    WHERE next_due_at < wsync.clock() - make_interval(secs => CAST(:late_after_s AS float8))) AS c;

-- name: sync_health
SELECT y.resync, s.manifest, d.schedules, d.paused, d.next_due_at, r.run_id, r.state, r.outcome_reason
FROM wsync.sync AS y
LEFT JOIN wsync.snapshot AS s ON s.tenant_id = y.tenant_id AND s.sync_id = y.sync_id
CROSS JOIN LATERAL (
    SELECT count(*) AS schedules, count(*) FILTER (WHERE h.paused) AS paused, min(c.next_due_at) AS next_due_at
    FROM wsync.schedule AS h
    JOIN wsync.schedule_clock AS c ON c.schedule_id = h.schedule_id
    WHERE h.tenant_id = y.tenant_id AND h.sync_id = y.sync_id AND h.deleted_at IS NULL) AS d
LEFT JOIN LATERAL (
    SELECT n.run_id, n.state::text AS state, n.outcome_reason
    FROM wsync.run AS n
    WHERE n.tenant_id = y.tenant_id AND n.sync_id = y.sync_id
    ORDER BY n.run_id DESC
    LIMIT 1) AS r ON true
WHERE y.tenant_id = :tenant_id AND y.sync_id = :sync_id;
