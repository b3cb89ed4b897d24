-- name: clock_try_lock
-- A row that someone else holds is passed over: one tenant's long transaction must not delay the others.
SELECT c.*
FROM wsync.schedule_clock AS c
WHERE c.schedule_id = ANY(:schedule_ids)
ORDER BY c.schedule_id
FOR UPDATE SKIP LOCKED;

-- name: clock_wait_lock
SELECT c.*
FROM wsync.schedule_clock AS c
WHERE c.schedule_id = ANY(:schedule_ids)
ORDER BY c.schedule_id
FOR UPDATE;

-- name: run_fire
-- For the policies that look at no other run: `skip` is decided by the index run_excl, hence also between two schedules of one sync and between two schedulers.
-- In the order of the overlap keys: two fires that insert the same keys wait for one another, never in a circle.
INSERT INTO wsync.run (run_id, tenant_id, shard, queue, schedule_id, spec_version, sync_id, connection_id, credential_id, overlap_key,
    trigger, nominal_at, due_at, ready_at, priority, exclusive, params, state, deadline_at, created_at)
SELECT f.run_id, s.tenant_id, c.shard, s.queue, s.schedule_id, s.spec_version, s.sync_id, s.connection_id, s.credential_id, s.overlap_key,
    'schedule', f.nominal_at, f.due_at, f.due_at, s.priority, s.overlap <> 'allow_all', s.params, 'queued',
    wsync.clock() + s.total_timeout_ms * interval '1 millisecond', wsync.clock()
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:schedule_ids AS uuid[]), CAST(:nominal_ats AS timestamptz[]), CAST(:due_ats AS timestamptz[]))
    WITH ORDINALITY AS f (run_id, schedule_id, nominal_at, due_at, number)
JOIN wsync.schedule AS s USING (schedule_id)
JOIN wsync.schedule_clock AS c USING (schedule_id)
ORDER BY s.overlap_key, f.number
ON CONFLICT DO NOTHING
RETURNING run_id, schedule_id, tenant_id, queue, sync_id, connection_id, credential_id, priority, nominal_at, due_at, ready_at;

-- name: clock_advance
UPDATE wsync.schedule_clock AS c
SET rev = c.rev + 1, last_nominal_at = coalesce(d.last_nominal_at, c.last_nominal_at),
    next_nominal_at = d.next_nominal_at, next_due_at = d.next_due_at,
    fired = c.fired + d.fired, skipped = c.skipped + d.skipped, missed = c.missed + d.missed, coalesced = c.coalesced + d.coalesced
FROM unnest(CAST(:schedule_ids AS uuid[]), CAST(:last_nominal_ats AS timestamptz[]), CAST(:next_nominal_ats AS timestamptz[]),
    CAST(:next_due_ats AS timestamptz[]), CAST(:fireds AS int[]), CAST(:skippeds AS int[]), CAST(:misseds AS int[]), CAST(:coalesceds AS int[]))
    AS d (schedule_id, last_nominal_at, next_nominal_at, next_due_at, fired, skipped, missed, coalesced)
WHERE c.schedule_id = d.schedule_id
RETURNING c.schedule_id, c.rev, c.next_due_at;

-- name: run_queued_of
-- For schedules whose fire was decided by another scheduler that may have died before it told the index.
SELECT r.run_id, r.schedule_id, r.tenant_id, r.queue, r.sync_id, r.connection_id, r.credential_id, r.priority, r.nominal_at,
    r.due_at, r.ready_at
FROM wsync.run AS r
WHERE r.schedule_id = ANY(:schedule_ids) AND r.state = 'queued' AND r.ready_at <= wsync.clock() + interval '1 day';

-- name: run_open
-- Which run a skipped fire met, for its event. Not locked: it may end meanwhile, what was decided stays.
SELECT r.overlap_key, r.run_id
FROM wsync.run AS r
WHERE r.overlap_key = ANY(CAST(:overlap_keys AS uuid[])) AND r.exclusive AND r.state IN ('queued', 'running', 'cancelling', 'blocked');
