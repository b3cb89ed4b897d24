-- name: run_by_idem_key
-- Also one that has ended long ago: a key is known as long as its run is kept. One statement: a run that is being archived is in either table.
SELECT r.run_id, r.schedule_id, r.tenant_id, r.queue, r.sync_id, r.connection_id, r.credential_id, r.priority, r.nominal_at,
    r.due_at, r.ready_at, r.state
FROM wsync.run AS r
WHERE r.tenant_id = :tenant_id AND r.idem_key = :idem_key
UNION ALL
SELECT h.run_id, h.schedule_id, h.tenant_id, h.queue, h.sync_id, h.connection_id, h.credential_id, h.priority, h.nominal_at,
    h.due_at, h.ready_at, h.state
FROM wsync.run_history AS h
WHERE h.tenant_id = :tenant_id AND h.idem_key = :idem_key
LIMIT 1;

-- name: run_claim
-- Confirms what the index dispatched, unless a terminated run of the key may still live. Locked in id order; a row that someone else holds is being claimed, cancelled or reaped.
WITH free AS (
    SELECT q.run_id
    FROM wsync.run AS q
    WHERE q.run_id = ANY(:run_ids) AND q.state = 'queued' AND q.ready_at <= wsync.clock() + interval '2 seconds'
        AND NOT (q.exclusive AND EXISTS (
            SELECT FROM wsync.run AS x
            WHERE x.overlap_key = q.overlap_key AND x.state = 'cancelled' AND x.cancel_reason = 'terminated' AND x.lease_until > wsync.clock()))
    ORDER BY q.run_id
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE wsync.run AS r
    SET state = 'running', epoch = r.epoch + 1, worker_id = :worker_id, heartbeat_at = wsync.clock(),
        lease_until = wsync.clock() + make_interval(secs => CAST(:lease_s AS float8)), started_at = coalesce(r.started_at, wsync.clock())
    FROM free
    WHERE r.run_id = free.run_id
    RETURNING r.run_id, r.tenant_id, r.sync_id, r.schedule_id, r.trigger, r.nominal_at, r.due_at, r.ready_at, r.priority, r.epoch, r.attempt, r.crashes, r.dry_run,
        r.lease_until, r.deadline_at, r.helps
), told AS (
    INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind)
    SELECT wsync.clock(), tenant_id, schedule_id, run_id, epoch, 'run.claimed' FROM claimed
)
SELECT claimed.*, coalesce(s.attempt_timeout_ms, 21600000) AS attempt_timeout_ms, coalesce(s.stall_ms, 600000) AS stall_ms
FROM claimed
LEFT JOIN wsync.schedule AS s USING (schedule_id);

-- name: run_still_active
SELECT r.run_id
FROM wsync.run AS r
WHERE r.run_id = ANY(:run_ids) AND r.state IN ('running', 'cancelling');

-- name: run_heartbeat
-- All runs of one worker at once. A stale epoch, or a run that was taken away, is not in the answer.
WITH beating AS (
    SELECT r.run_id, b.progress
    FROM wsync.run AS r
    JOIN unnest(CAST(:run_ids AS uuid[]), CAST(:epochs AS int[]), CAST(:progresses AS text[])) AS b (run_id, epoch, progress)
        ON r.run_id = b.run_id AND r.epoch = b.epoch
    WHERE r.state IN ('running', 'cancelling') AND r.worker_id = :worker_id
    ORDER BY r.run_id
    FOR UPDATE OF r
)
UPDATE wsync.run AS r
SET heartbeat_at = wsync.clock(), lease_until = wsync.clock() + make_interval(secs => CAST(:lease_s AS float8)),
    progress = coalesce(CAST(b.progress AS jsonb), r.progress),
    progress_at = CASE WHEN b.progress IS NULL THEN r.progress_at ELSE wsync.clock() END
FROM beating AS b
WHERE r.run_id = b.run_id
RETURNING r.run_id, r.epoch, r.lease_until, r.cancel_requested_at IS NOT NULL AS is_cancelled, r.cancel_reason;

-- name: run_get
SELECT r.run_id, r.tenant_id, r.schedule_id, r.overlap_key, r.state, r.epoch, r.attempt, r.crashes, r.deadline_at, r.priority, r.nominal_at, r.due_at, r.ready_at
FROM wsync.run AS r
WHERE r.run_id = :run_id;

-- name: run_clocks_lock
-- Of the schedules of some runs: taken before the runs' own locks, in order, as fires do.
SELECT c.schedule_id
FROM wsync.schedule_clock AS c
WHERE c.schedule_id IN (SELECT r.schedule_id FROM wsync.run AS r WHERE r.run_id = ANY(:run_ids))
ORDER BY c.schedule_id
FOR UPDATE;

-- name: run_lock
-- With whether their end under their present epoch was counted before. LIMIT: looked up run by run; EXISTS may be planned as a scan of all events.
SELECT r.run_id, r.tenant_id, r.schedule_id, r.overlap_key, r.epoch, r.state,
    coalesce((SELECT true FROM wsync.run_event AS e
        WHERE e.run_id = r.run_id AND e.epoch = r.epoch AND e.kind = 'run.settled' AND e.at >= r.created_at - interval '1 day'
        LIMIT 1), false) AS is_settled
FROM wsync.run AS r
WHERE r.run_id = ANY(:run_ids)
ORDER BY r.run_id
FOR UPDATE;

-- name: run_finish
-- Terminal, or blocked by a guard; a stale epoch touches no row.
UPDATE wsync.run AS r
SET state = CAST(f.state AS wsync.run_state), error_class = f.error_class, error = f.error, next_step = f.next_step,
    outcome_reason = coalesce(f.reason, r.outcome_reason), lease_until = NULL, worker_id = NULL,
    finished_at = CASE WHEN f.state = 'blocked' THEN NULL ELSE wsync.clock() END
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:epochs AS int[]), CAST(:states AS text[]), CAST(:reasons AS text[]),
    CAST(:error_classes AS text[]), CAST(:errors AS text[]), CAST(:next_steps AS text[]))
    AS f (run_id, epoch, state, reason, error_class, error, next_step)
WHERE r.run_id = f.run_id AND r.epoch = f.epoch AND r.state IN ('running', 'cancelling');

-- name: run_uncounted
-- Ended by their own process while somebody held their schedule's clock for long.
SELECT r.run_id, r.epoch, r.state::text AS state
FROM wsync.run AS r
WHERE r.shard = :shard AND r.phase = 'count'
ORDER BY r.run_id
LIMIT :count;

-- name: run_counted
UPDATE wsync.run SET phase = 'finish' WHERE run_id = :run_id AND phase = 'count';

-- name: run_finish_lost
-- The reaper's end of a run: only if its lease is still over.
UPDATE wsync.run
SET state = CAST(:state AS wsync.run_state), error_class = :error_class, error = :error, next_step = :next_step,
    outcome_reason = coalesce(CAST(:reason AS text), outcome_reason), lease_until = NULL, worker_id = NULL,
    crashes = crashes + 1, finished_at = wsync.clock()
WHERE run_id = :run_id AND epoch = :epoch AND state IN ('running', 'cancelling') AND lease_until <= wsync.clock()
RETURNING run_id;

-- name: clock_outcome
-- A success ends a row of failures. Returns the schedules whose row of failures has reached their limit.
WITH counted AS (
    UPDATE wsync.schedule_clock AS c
    SET failures_in_row = CASE WHEN o.state = 'failed' THEN c.failures_in_row + 1 ELSE 0 END
    FROM unnest(CAST(:schedule_ids AS uuid[]), CAST(:states AS text[])) AS o (schedule_id, state)
    WHERE c.schedule_id = o.schedule_id AND (o.state = 'failed' OR c.failures_in_row > 0)
    RETURNING c.schedule_id, c.tenant_id, c.failures_in_row
)
SELECT counted.*
FROM counted
JOIN wsync.schedule AS s USING (schedule_id)
WHERE NOT s.paused AND s.deleted_at IS NULL AND counted.failures_in_row >= s.pause_after_failures;

-- name: run_policy
SELECT coalesce(s.max_attempts, 3) AS max_attempts, coalesce(s.backoff_base_ms, 10000) AS backoff_base_ms,
    coalesce(s.backoff_cap_ms, 900000) AS backoff_cap_ms, wsync.clock() AS now
FROM wsync.run AS r
LEFT JOIN wsync.schedule AS s ON s.schedule_id = r.schedule_id
WHERE r.run_id = :run_id;

-- name: run_requeue
-- Back into the queue by its own holder: after a failure (attempt + 1), throttled or drained (attempt unchanged).
UPDATE wsync.run
SET state = 'queued', attempt = attempt + CAST(:used_attempts AS int), ready_at = :ready_at, worker_id = NULL, lease_until = NULL,
    error_class = coalesce(CAST(:error_class AS text), error_class), error = coalesce(CAST(:error AS text), error),
    next_step = coalesce(CAST(:next_step AS text), next_step)
WHERE run_id = :run_id AND epoch = :epoch AND state = 'running'
RETURNING run_id, schedule_id, tenant_id, queue, sync_id, connection_id, credential_id, priority, nominal_at, due_at, ready_at;

-- name: run_expired
-- Leases that are over. For a while after Postgres started none is: children that froze meanwhile must get the time to go on.
SELECT run_id, tenant_id, schedule_id, overlap_key, epoch, state, crashes, cancel_reason
FROM wsync.run
WHERE shard = :shard AND state IN ('running', 'cancelling') AND lease_until <= wsync.clock()
    AND clock_timestamp() > pg_postmaster_start_time() + make_interval(secs => CAST(:grace_s AS float8))
ORDER BY lease_until
LIMIT :count;

-- name: run_reap
-- Every condition again: the holder may have come back, or another reaper been faster.
WITH lost AS (
    SELECT r.run_id
    FROM wsync.run AS r
    JOIN unnest(CAST(:run_ids AS uuid[]), CAST(:epochs AS int[])) AS e (run_id, epoch) ON r.run_id = e.run_id AND r.epoch = e.epoch
    WHERE r.state = 'running' AND r.lease_until <= wsync.clock()
    ORDER BY r.run_id
    FOR UPDATE OF r SKIP LOCKED
), reaped AS (
    UPDATE wsync.run AS r
    SET state = 'queued', crashes = r.crashes + 1, ready_at = wsync.clock(), worker_id = NULL, lease_until = NULL
    FROM lost
    WHERE r.run_id = lost.run_id
    RETURNING r.run_id, r.schedule_id, r.tenant_id, r.queue, r.sync_id, r.connection_id, r.credential_id, r.priority, r.nominal_at,
        r.due_at, r.ready_at, r.epoch
), told AS (
    INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind)
    SELECT wsync.clock(), tenant_id, schedule_id, run_id, epoch, 'run.lease_lost' FROM reaped
)
SELECT run_id, schedule_id, tenant_id, queue, sync_id, connection_id, credential_id, priority, nominal_at, due_at, ready_at FROM reaped;

-- name: run_cancel
-- What nobody executes ends at once; what is executed is asked to end.
WITH cancelled AS (
    UPDATE wsync.run AS r
    SET cancel_requested_at = coalesce(r.cancel_requested_at, wsync.clock()), cancel_reason = coalesce(r.cancel_reason, CAST(:reason AS text)),
        outcome_reason = CASE WHEN r.state IN ('running', 'cancelling') THEN r.outcome_reason ELSE CAST(:reason AS text) END,
        state = CASE WHEN r.state IN ('running', 'cancelling') THEN CAST('cancelling' AS wsync.run_state) ELSE 'cancelled' END,
        finished_at = CASE WHEN r.state IN ('running', 'cancelling') THEN NULL ELSE wsync.clock() END,
        folded_at = CASE WHEN r.state IN ('running', 'cancelling') OR r.epoch > 0 THEN r.folded_at ELSE wsync.clock() END
    WHERE r.run_id = :run_id AND r.state IN ('buffered', 'queued', 'running', 'blocked')
    RETURNING r.run_id, r.tenant_id, r.schedule_id, r.epoch, r.state, r.worker_id, r.overlap_key
), told AS (
    INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind, detail)
    SELECT wsync.clock(), tenant_id, schedule_id, run_id, epoch, 'run.' || state,
        jsonb_build_object('actor', CAST(:actor AS text), 'reason', CAST(:reason AS text))
    FROM cancelled
)
SELECT run_id, CAST(state AS text) AS state, worker_id, overlap_key FROM cancelled;

-- name: run_of_keys
-- The runs of some keys that may start: the index is told of them.
SELECT r.run_id, r.schedule_id, r.tenant_id, r.connection_id, r.credential_id, r.sync_id, r.queue, r.priority, r.nominal_at, r.due_at,
    r.ready_at, CAST(r.state AS text) AS state
FROM wsync.run AS r
WHERE r.overlap_key = ANY(CAST(:overlap_keys AS uuid[])) AND r.exclusive AND r.state = 'queued';

-- name: run_kill_confirmed
-- The process of a terminated run is gone: what waits for it may start now. Only its last holder can say so, from whom `run_terminate` took
-- the epoch: one that had lost the run before knows nothing of the process that came after its own.
WITH dead AS (
    UPDATE wsync.run AS d
    SET lease_until = NULL
    WHERE d.run_id = :run_id AND d.state = 'cancelled' AND d.cancel_reason = 'terminated' AND d.epoch = CAST(:epoch AS int) + 1
    RETURNING d.run_id
)
UPDATE wsync.run AS r
SET ready_at = least(r.ready_at, wsync.clock()), waits_for = NULL
FROM dead
WHERE r.waits_for = dead.run_id AND r.state = 'queued'
RETURNING r.run_id, r.schedule_id, r.tenant_id, r.connection_id, r.credential_id, r.sync_id, r.queue, r.priority, r.nominal_at, r.due_at,
    r.ready_at;

-- name: run_unbuffer
-- A pause drops what a schedule has waiting.
WITH dropped AS (
    UPDATE wsync.run AS r
    SET state = 'cancelled', cancel_reason = 'paused', outcome_reason = 'the schedule was paused', finished_at = wsync.clock(),
        folded_at = wsync.clock()
    WHERE r.schedule_id = :schedule_id AND r.state = 'buffered' AND r.trigger = 'schedule'
    RETURNING r.run_id, r.tenant_id, r.schedule_id
)
INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, kind, detail)
SELECT wsync.clock(), tenant_id, schedule_id, run_id, 'run.cancelled',
    jsonb_build_object('actor', CAST(:actor AS text), 'reason', 'paused')
FROM dropped;
