-- name: task_open
-- The tasks of one phase that are not there yet; those that failed are to be tried again.
-- A destination compares epochs: they begin no lower than those of whoever executed the run without tasks.
INSERT INTO wsync.task AS t (run_id, kind, part, tenant_id, epoch)
SELECT :run_id, :kind, p.part, :tenant_id, :epoch
FROM unnest(CAST(:parts AS int[])) AS p (part)
ON CONFLICT (run_id, kind, part) DO UPDATE SET state = 'open', error = NULL WHERE t.state = 'failed';

-- name: task_claim
-- The first task of the run, of one kind or of any, that is open, or whose holder does not execute it any more; none once one of its kind has failed.
WITH found AS (
    SELECT t.kind, t.part
    FROM wsync.task AS t
    WHERE t.run_id = :run_id AND t.state IN ('open', 'held') AND t.kind = coalesce(CAST(:kind AS text), t.kind)
        AND (t.state = 'open' OR NOT EXISTS (
            SELECT FROM wsync.run AS h
            WHERE h.run_id = t.holder AND h.epoch = t.holder_epoch AND h.state IN ('running', 'cancelling')))
        AND NOT EXISTS (SELECT FROM wsync.task AS f WHERE f.run_id = t.run_id AND f.kind = t.kind AND f.state = 'failed')
    ORDER BY t.kind, t.part
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
UPDATE wsync.task AS t
SET state = 'held', epoch = t.epoch + 1, holder = :holder, holder_epoch = :holder_epoch
FROM found
WHERE t.run_id = :run_id AND t.kind = found.kind AND t.part = found.part
RETURNING t.kind, t.part, t.epoch;

-- name: task_done
UPDATE wsync.task
SET state = 'done', result = CAST(:result AS jsonb)
WHERE run_id = :run_id AND kind = :kind AND part = :part AND epoch = :epoch AND state = 'held' AND holder = :holder
    AND holder_epoch = :holder_epoch
RETURNING part;

-- name: run_progressed
-- A run that gets on is no crash loop: its deaths are counted from here again.
UPDATE wsync.run SET crashes = 0 WHERE run_id = :holder AND crashes > 0;

-- name: task_failed
UPDATE wsync.task
SET state = 'failed', error = CAST(:error AS jsonb)
WHERE run_id = :run_id AND kind = :kind AND part = :part AND epoch = :epoch AND state = 'held' AND holder = :holder
    AND holder_epoch = :holder_epoch;

-- name: task_states
SELECT part, state, result, error FROM wsync.task WHERE run_id = :run_id AND kind = :kind ORDER BY part;

-- name: task_counts
-- What the helpers have counted so far, by name.
SELECT c.name, sum(CAST(c.value AS bigint)) AS rows
FROM wsync.run AS h
CROSS JOIN LATERAL jsonb_each_text(h.progress) AS c (name, value)
WHERE h.helps = :run_id AND jsonb_typeof(h.progress) = 'object'
GROUP BY c.name;

-- name: helper_call
-- Helpers beside those that are there, so that no task has to wait; what they are is their run's, but that they exclude nothing.
WITH wanted AS (
    SELECT least(CAST(:most AS int), (SELECT count(*) FROM wsync.task AS t WHERE t.run_id = :run_id AND t.state IN ('open', 'held')) - 1)
        - (SELECT count(*) FROM wsync.run AS h WHERE h.helps = :run_id AND h.state IN ('queued', 'running')) AS helpers
), told AS (
    UPDATE wsync.run SET fanned = true WHERE run_id = :run_id AND NOT fanned AND (SELECT helpers FROM wanted) > 0
)
INSERT INTO wsync.run (run_id, tenant_id, shard, queue, sync_id, connection_id, credential_id, overlap_key, trigger, nominal_at, due_at, ready_at,
    priority, exclusive, state, params, deadline_at, helps)
SELECT n.run_id, r.tenant_id, r.shard, r.queue, r.sync_id, r.connection_id, r.credential_id, n.run_id, 'helper', r.nominal_at, wsync.clock(),
    wsync.clock(), r.priority, false, 'queued', r.params, r.deadline_at, r.run_id
FROM wsync.run AS r
CROSS JOIN (SELECT u.run_id, row_number() OVER () AS number FROM unnest(CAST(:helper_ids AS uuid[])) AS u (run_id)) AS n
WHERE r.run_id = :run_id AND n.number <= (SELECT helpers FROM wanted)
RETURNING run_id, tenant_id, queue, sync_id, connection_id, credential_id, priority, due_at, ready_at;

-- name: helper_dismiss
SELECT wsync.helpers_dismiss(:run_id);

-- name: helper_left
-- How many still hold a slot, as far as is known.
SELECT count(*) AS helpers FROM wsync.run AS h WHERE h.helps = :run_id AND h.state IN ('running', 'cancelling');

-- name: helper_forget
DELETE FROM wsync.run AS h WHERE h.helps = :run_id AND h.state IN ('succeeded', 'partial', 'failed', 'cancelled');
