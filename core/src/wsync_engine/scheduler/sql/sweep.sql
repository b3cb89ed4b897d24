-- name: shard_lock
-- One sweeper per shard at a time; the lock ends with the transaction, whatever happens to its holder.
SELECT pg_try_advisory_xact_lock(hashtext('wsync.sweep'), CAST(:shard AS int)) AS is_mine;

-- name: plan_in_order
-- For the rest of the transaction.
SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true);

-- name: clock_soon
-- A page of schedules due soon, in order of their due time. The end is a value: a clock that moves on bounds no index scan.
SELECT c.schedule_id, c.rev, c.next_due_at
FROM wsync.schedule_clock AS c
WHERE c.shard = :shard AND c.next_due_at <= CAST(:until_at AS timestamptz)
    AND (c.next_due_at, c.schedule_id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid))
ORDER BY c.next_due_at, c.schedule_id
LIMIT :count;

-- name: clock_all
-- A page of every schedule that is due some time.
SELECT c.schedule_id, c.rev, c.next_due_at
FROM wsync.schedule_clock AS c
WHERE c.shard = :shard AND c.next_due_at IS NOT NULL
    AND (c.next_due_at, c.schedule_id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid))
ORDER BY c.next_due_at, c.schedule_id
LIMIT :count;

-- name: clock_outrun
-- Past the index's rev: it is newer than the row (Postgres lost its last commits), or equal but the schedule is in none of its sets.
UPDATE wsync.schedule_clock AS c
SET rev = greatest(c.rev, d.rev) + 1
FROM unnest(CAST(:schedule_ids AS uuid[]), CAST(:revs AS bigint[]), CAST(:is_missings AS bool[])) AS d (schedule_id, rev, is_missing)
WHERE c.schedule_id = d.schedule_id AND (c.rev < d.rev OR (d.is_missing AND c.rev = d.rev))
RETURNING c.schedule_id, c.rev, c.next_due_at;

-- name: run_waiting
-- A page of queued runs that have been ready for a while, or all of them, also those to come.
SELECT r.run_id, r.schedule_id, r.tenant_id, r.queue, r.sync_id, r.connection_id, r.credential_id, r.priority, r.nominal_at,
    r.due_at, r.ready_at
FROM wsync.run AS r
WHERE r.shard = :shard AND r.state = 'queued' AND r.ready_at <= :until_at AND (r.ready_at, r.run_id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid))
ORDER BY r.ready_at, r.run_id
LIMIT :count;

-- name: run_active
SELECT r.run_id, r.schedule_id, r.tenant_id, r.queue, r.sync_id, r.connection_id, r.credential_id, r.priority, r.nominal_at,
    r.due_at, r.ready_at
FROM wsync.run AS r
WHERE r.shard = :shard AND r.state IN ('running', 'cancelling') AND r.run_id > :after_id
ORDER BY r.run_id
LIMIT :count;

-- name: backfill_active
SELECT b.backfill_id, b.rev, b.next_due_at
FROM wsync.backfill AS b
WHERE b.shard = :shard AND b.state = 'active' AND (b.next_due_at, b.backfill_id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid))
ORDER BY b.next_due_at, b.backfill_id
LIMIT :count;

-- name: backfill_outrun
-- As clock_outrun.
UPDATE wsync.backfill AS b
SET rev = greatest(b.rev, d.rev) + 1
FROM unnest(CAST(:backfill_ids AS uuid[]), CAST(:revs AS bigint[])) AS d (backfill_id, rev)
WHERE b.backfill_id = d.backfill_id AND b.state = 'active' AND b.rev <= d.rev
RETURNING b.backfill_id, b.rev, b.next_due_at;

-- name: shard_ages
-- How long the oldest run of each priority has been ready, found from the oldest end of the index.
SELECT wsync.clock() AS now, a.age_low_s, b.age_medium_s, c.age_high_s
FROM (SELECT 1) AS one
LEFT JOIN LATERAL (SELECT extract(epoch FROM wsync.clock() - r.ready_at) AS age_low_s FROM wsync.run AS r
    WHERE r.shard = :shard AND r.state = 'queued' AND r.priority = 0 ORDER BY r.ready_at LIMIT 1) AS a ON true
LEFT JOIN LATERAL (SELECT extract(epoch FROM wsync.clock() - r.ready_at) AS age_medium_s FROM wsync.run AS r
    WHERE r.shard = :shard AND r.state = 'queued' AND r.priority = 1 ORDER BY r.ready_at LIMIT 1) AS b ON true
LEFT JOIN LATERAL (SELECT extract(epoch FROM wsync.clock() - r.ready_at) AS age_high_s FROM wsync.run AS r
    WHERE r.shard = :shard AND r.state = 'queued' AND r.priority = 2 ORDER BY r.ready_at LIMIT 1) AS c ON true;
