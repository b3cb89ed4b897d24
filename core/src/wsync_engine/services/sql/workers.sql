-- name: worker_list
SELECT w.worker_id, w.host, w.pid, w.version, w.slots, w.running, ARRAY(SELECT q.name FROM wsync.queue AS q WHERE q.queue = ANY(w.queues)) AS queues,
    CASE WHEN w.heartbeat_at < wsync.clock() - interval '1 minute' THEN 'silent' WHEN w.draining OR w.drain_requested_at IS NOT NULL THEN 'draining'
        WHEN w.refusal IS NOT NULL THEN 'refusing' ELSE 'working' END AS state,
    w.refusal, w.started_at, w.heartbeat_at
FROM wsync.worker AS w
WHERE w.heartbeat_at > wsync.clock() - interval '1 day'
ORDER BY w.worker_id DESC;

-- name: worker_drain
UPDATE wsync.worker
SET drain_requested_at = coalesce(drain_requested_at, wsync.clock())
WHERE worker_id = ANY(CAST(:worker_ids AS uuid[]));

-- name: queue_use
SELECT q.name, count(DISTINCT y.sync_id) AS syncs, count(DISTINCT w.worker_id) AS workers
FROM wsync.queue AS q
LEFT JOIN wsync.sync AS y ON y.queue = q.queue AND y.deleted_at IS NULL
LEFT JOIN wsync.worker AS w ON q.queue = ANY(w.queues) AND w.heartbeat_at > wsync.clock() - interval '1 minute' AND NOT w.draining
GROUP BY q.queue, q.name
ORDER BY q.queue;

-- name: queue_insert
-- The lowest free number. Two at once: the second finds the name, or the number taken, and is told so by the names that there are.
INSERT INTO wsync.queue (queue, name)
SELECT n, :name
FROM generate_series(0, CAST(:most AS int) - 1) AS n
WHERE n NOT IN (SELECT queue FROM wsync.queue) AND NOT EXISTS (SELECT FROM wsync.queue WHERE name = :name)
ORDER BY n
LIMIT 1
ON CONFLICT DO NOTHING;
