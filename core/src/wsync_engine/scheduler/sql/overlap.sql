-- name: run_open_lock
-- The open run of each key, in id order: whoever ends one of them waits for us, or we for it.
SELECT r.run_id, r.overlap_key, r.state, r.worker_id
FROM wsync.run AS r
WHERE r.overlap_key = ANY(CAST(:overlap_keys AS uuid[])) AND r.exclusive AND r.state IN ('queued', 'running', 'cancelling', 'blocked')
ORDER BY r.run_id
FOR UPDATE;

-- name: run_insert
-- Nothing is inserted where a unique index says that this run was decided before, or that another one of its key is open.
INSERT INTO wsync.run (run_id, tenant_id, shard, queue, schedule_id, spec_version, backfill_id, sync_id, connection_id, credential_id,
    overlap_key, trigger, idem_key, nominal_at, due_at, ready_at, waits_for, priority, exclusive, buffer_one, replaces, dry_run, adopt,
    offer_rejected, replay, params, state, deadline_at, created_at)
SELECT :run_id, :tenant_id, :shard, :queue, :schedule_id, :spec_version, :backfill_id, :sync_id, :connection_id, :credential_id,
    :overlap_key, :trigger, :idem_key, CAST(:nominal_at AS timestamptz), CAST(:due_at AS timestamptz),
    greatest(CAST(:due_at AS timestamptz), alive.until_at), alive.run_id, :priority, :exclusive, :buffer_one, :replaces, :dry_run, :adopt,
    :offer_rejected, CAST(:replay AS jsonb), CAST(:params AS jsonb), CAST(:state AS wsync.run_state),
    wsync.clock() + CAST(:total_timeout_ms AS bigint) * interval '1 millisecond', wsync.clock()
FROM (SELECT 1) AS one
LEFT JOIN LATERAL wsync.run_alive(CAST(:overlap_key AS uuid)) AS alive ON CAST(:exclusive AS bool)
ON CONFLICT DO NOTHING
RETURNING run_id, schedule_id, tenant_id, connection_id, credential_id, sync_id, queue, priority, nominal_at, due_at, ready_at,
    CAST(state AS text) AS state;

-- name: buffered_count
SELECT count(*) AS runs
FROM wsync.run AS r
WHERE r.overlap_key = :overlap_key AND r.state = 'buffered';

-- name: run_supersede
-- The newest run that asked the open one to end is the one that waits in its place, whoever wanted it: of a sync's scheduled and manual runs
-- one is left. What waits under another policy stays, but for older fires of the same schedule.
WITH superseded AS (
    UPDATE wsync.run AS r
    SET state = 'cancelled', cancel_reason = 'superseded', outcome_reason = 'superseded by a later run of the sync',
        finished_at = wsync.clock(), folded_at = wsync.clock()
    WHERE r.overlap_key = :overlap_key AND r.state = 'buffered' AND r.run_id <> :run_id
        AND ((r.replaces AND r.sync_id = :sync_id) OR (r.schedule_id = CAST(:schedule_id AS uuid) AND r.trigger = 'schedule'))
    RETURNING r.run_id, r.tenant_id, r.schedule_id
)
INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, kind, detail)
SELECT wsync.clock(), tenant_id, schedule_id, run_id, 'run.cancelled', '{"actor": "system", "reason": "superseded"}' FROM superseded;

-- name: run_terminate
-- At once: the epoch is taken from whoever executes it. Its lease stays: until it is over or the kill is confirmed, no other run of the key starts.
WITH terminated AS (
    UPDATE wsync.run AS r
    SET state = 'cancelled', epoch = r.epoch + 1, cancel_requested_at = coalesce(r.cancel_requested_at, wsync.clock()),
        cancel_reason = 'terminated', outcome_reason = 'terminated by a later run of the sync', worker_id = NULL,
        finished_at = wsync.clock()
    WHERE r.run_id = :run_id AND r.state IN ('running', 'cancelling')
    RETURNING r.run_id, r.tenant_id, r.schedule_id, r.epoch
)
INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind, detail)
SELECT wsync.clock(), tenant_id, schedule_id, run_id, epoch, 'run.cancelled', '{"actor": "system", "reason": "terminated"}' FROM terminated;

-- name: key_orphaned
-- Keys whose oldest waiting run has no open one before it: its end and our fire crossed.
SELECT DISTINCT b.overlap_key
FROM wsync.run AS b
WHERE b.shard = :shard AND b.state = 'buffered' AND NOT EXISTS (
    SELECT FROM wsync.run AS r
    WHERE r.overlap_key = b.overlap_key AND r.exclusive AND r.state IN ('queued', 'running', 'cancelling', 'blocked'))
LIMIT :count;

-- name: key_promote
SELECT wsync.run_promote(CAST(:overlap_key AS uuid)) AS run_id;

-- name: run_decided
-- Made before: by the same request, or for the same nominal time.
SELECT r.run_id
FROM wsync.run AS r
WHERE (r.tenant_id = :tenant_id AND r.idem_key = CAST(:idem_key AS text))
    OR (r.backfill_id = CAST(:backfill_id AS uuid) AND r.nominal_at = :nominal_at)
    OR (r.schedule_id = CAST(:schedule_id AS uuid) AND r.nominal_at = :nominal_at AND r.trigger = 'schedule'
        AND CAST(:trigger AS text) = 'schedule')
LIMIT 1;
