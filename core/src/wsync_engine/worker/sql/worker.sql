-- name: worker_beat
-- A worker says that it is there, at its start and with each heartbeat.
-- The answer is what the installation asks of it. Its generation says which runs it understands: see the trigger `run_claimed`.
INSERT INTO wsync.worker AS w (worker_id, host, pid, version, slots, running, draining, queues, refusal, generation, started_at, heartbeat_at)
VALUES (:worker_id, :host, :pid, :version, :slots, :running, :is_draining, :queues, :refusal, 3, wsync.clock(), wsync.clock())
ON CONFLICT (worker_id) DO UPDATE
SET running = excluded.running, draining = excluded.draining, refusal = excluded.refusal, heartbeat_at = excluded.heartbeat_at
RETURNING w.drain_requested_at IS NOT NULL AS shall_drain, wsync.setting_value('storage_id') #>> '{}' AS storage_id;

-- name: run_stuck
INSERT INTO wsync.run_event (at, tenant_id, run_id, epoch, kind, detail)
VALUES (wsync.clock(), :tenant_id, :run_id, :epoch, 'run.stuck', jsonb_build_object('seconds', CAST(:seconds AS int)));

-- name: worker_leave
DELETE FROM wsync.worker
WHERE worker_id = :worker_id;

-- name: run_crashed
-- The process of a run that we hold died: queued again, or left to us to end when it was the last time or its end was asked for.
WITH died AS (
    UPDATE wsync.run AS r
    SET crashes = r.crashes + 1, error_class = 'crash', error = :error,
        state = CASE WHEN r.state = 'running' AND r.crashes + 1 < CAST(:most AS int) THEN CAST('queued' AS wsync.run_state) ELSE r.state END,
        ready_at = CASE WHEN r.state = 'running' AND r.crashes + 1 < CAST(:most AS int)
            THEN wsync.clock() + make_interval(secs => CAST(:backoff_s AS float8) * power(2, r.crashes)) ELSE r.ready_at END,
        worker_id = CASE WHEN r.state = 'running' AND r.crashes + 1 < CAST(:most AS int) THEN NULL ELSE r.worker_id END,
        lease_until = CASE WHEN r.state = 'running' AND r.crashes + 1 < CAST(:most AS int) THEN NULL ELSE r.lease_until END
    WHERE r.run_id = :run_id AND r.epoch = :epoch AND r.state IN ('running', 'cancelling')
    RETURNING r.run_id, r.schedule_id, r.tenant_id, r.queue, r.sync_id, r.connection_id, r.credential_id, r.priority, r.nominal_at,
        r.due_at, r.ready_at, r.state, r.epoch, r.cancel_reason
), told AS (
    INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind, detail)
    SELECT wsync.clock(), tenant_id, schedule_id, run_id, epoch, 'run.crashed', jsonb_build_object('error', CAST(:error AS text)) FROM died
)
SELECT run_id, schedule_id, tenant_id, queue, sync_id, connection_id, credential_id, priority, nominal_at, due_at, ready_at, state,
    cancel_reason
FROM died;

-- name: assignment_load
-- All that the runs' children must be told. OFFSET 0: looked up run by run; a plan that begins with the connection reads all syncs that share it.
SELECT r.run_id, t.name AS tenant, s.name AS sync_name, s.spec, r.params, r.attempt + 1 >= coalesce(d.max_attempts, 3) AS is_last_attempt,
    a.plugin AS source_plugin, a.config AS source_config, a.secrets AS source_secrets,
    b.connection_id AS sink_connection_id, r.replay ->> 'stream' AS stream, coalesce(b.credential_id, b.connection_id) AS credential_id, b.plugin AS sink_plugin, b.config AS sink_config, b.secrets AS sink_secrets
FROM wsync.run AS r
JOIN wsync.tenant AS t ON t.tenant_id = r.tenant_id
CROSS JOIN LATERAL (SELECT * FROM wsync.sync AS x WHERE x.sync_id = r.sync_id AND x.tenant_id = r.tenant_id OFFSET 0) AS s
JOIN wsync.connection AS a ON a.connection_id = s.source_connection_id AND a.tenant_id = r.tenant_id
JOIN wsync.connection AS b ON b.connection_id = coalesce(CAST(r.replay ->> 'sink' AS uuid), s.sink_connection_id) AND b.tenant_id = r.tenant_id
LEFT JOIN wsync.schedule AS d ON d.schedule_id = r.schedule_id
WHERE r.run_id = ANY(:run_ids);
