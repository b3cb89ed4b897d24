-- name: janitor_lock
-- One janitor at a time, until the end of the transaction.
SELECT pg_try_advisory_xact_lock(hashtext('wsync.janitor')) AS is_mine;

-- name: partitions_drop
-- Days that nobody needs any more. A reader that holds one of them for long is waited for only shortly: the next round does it.
SELECT wsync.partition_drop('run_history', CAST(wsync.clock() AT TIME ZONE 'UTC' AS date) - CAST(:runs_days AS int))
    + wsync.partition_drop('run_event', CAST(wsync.clock() AT TIME ZONE 'UTC' AS date) - CAST(:events_days AS int)) AS dropped;

-- name: history_delete
-- What lies in no day's partition, and so is not dropped with one.
DELETE FROM wsync.run_history WHERE finished_at < (SELECT wsync.clock()) - make_interval(days => CAST(:runs_days AS int) + 1);

-- name: event_delete
DELETE FROM wsync.run_event WHERE at < (SELECT wsync.clock()) - make_interval(days => CAST(:events_days AS int) + 1);

-- name: blocked_expire
-- Nobody has decided for a week. Its successor is queued by the same statement.
WITH old AS (
    SELECT run_id
    FROM wsync.run
    WHERE state = 'blocked' AND heartbeat_at < (SELECT wsync.clock()) - make_interval(days => CAST(:blocked_days AS int))
    ORDER BY run_id
    LIMIT :count
    FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE wsync.run AS r
    SET state = 'cancelled', cancel_reason = 'expired', outcome_reason = 'nobody approved or discarded it in time', finished_at = wsync.clock()
    FROM old
    WHERE r.run_id = old.run_id
    RETURNING r.run_id, r.tenant_id, r.schedule_id, r.epoch
), told AS (
    INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind, detail)
    SELECT wsync.clock(), tenant_id, schedule_id, run_id, epoch, 'run.cancelled', '{"actor": "system", "reason": "expired"}' FROM expired
)
SELECT run_id FROM expired;

-- name: run_archive
-- Ended runs of which nothing is left to be folded, with what the pipeline kept of them; the table of open runs stays small.
WITH ended AS (
    SELECT run_id
    FROM wsync.run
    WHERE state IN ('succeeded', 'partial', 'failed', 'cancelled') AND (folded_at IS NOT NULL OR delivery IS NULL)
        AND finished_at < (SELECT wsync.clock()) - make_interval(hours => CAST(:hours AS int)) AND helps IS NULL
    ORDER BY finished_at
    LIMIT :count
    FOR UPDATE SKIP LOCKED
), acks AS (
    DELETE FROM wsync.ack AS a USING ended WHERE a.run_id = ended.run_id
), chunks AS (
    DELETE FROM wsync.chunk AS c USING ended WHERE c.run_id = ended.run_id
), moved AS (
    DELETE FROM wsync.run AS r USING ended WHERE r.run_id = ended.run_id RETURNING r.*
)
INSERT INTO wsync.run_history SELECT * FROM moved
RETURNING run_id;

-- name: helper_forget
-- Of runs that ended otherwise than by their own process.
DELETE FROM wsync.run WHERE helps IS NOT NULL AND finished_at < (SELECT wsync.clock()) - interval '1 hour';

-- name: worker_forget
DELETE FROM wsync.worker WHERE heartbeat_at < (SELECT wsync.clock()) - interval '7 days';
