-- name: time_now
-- The one clock that decides, and the number of shards.
SELECT wsync.clock() AS now, CAST(wsync.setting_value('shards') AS int) AS shards;

-- name: sync_find
-- What a schedule and its runs take over from their sync. No row: not this tenant's, or deleted.
SELECT y.sync_id, y.overlap_key, y.queue, y.source_connection_id AS connection_id, coalesce(k.credential_id, k.connection_id) AS credential_id,
    coalesce(y.spec -> 'parameters', '{}') AS parameters
FROM wsync.sync AS y
JOIN wsync.connection AS k ON k.tenant_id = y.tenant_id AND k.connection_id = y.sink_connection_id
WHERE y.sync_id = ANY(CAST(:sync_ids AS uuid[])) AND y.deleted_at IS NULL;

-- name: sync_keep
-- Syncs for which a run or a schedule was just made: nobody deletes them before that is committed. One that was deleted first is not in the
-- answer, and what was made is rolled back. After the locks of clocks and runs, as in whoever delivers or deletes. KEY SHARE: is in nobody's
-- way but theirs who delete.
SELECT y.sync_id
FROM wsync.sync AS y
WHERE y.sync_id = ANY(CAST(:sync_ids AS uuid[])) AND y.deleted_at IS NULL
ORDER BY y.sync_id
FOR KEY SHARE;

-- name: sync_mode
SELECT y.spec ->> 'mode' AS mode
FROM wsync.sync AS y
WHERE y.sync_id = :sync_id;

-- name: schedule_insert
-- Any number of schedules: definition, clock and event of each. A name that is taken inserts nothing: registering again is no error, and
-- waits for whoever is just inserting it; names in order, so that two who insert the same ones never wait in a circle.
-- Returns those that were not inserted. `own` has what differs between them, `shared` what all have. `json`, not `jsonb`, and no record
-- within a record: it reads three times as fast.
WITH wanted AS MATERIALIZED (
    SELECT o.schedule_id, o.next_nominal_at, o.next_due_at,
        coalesce(o.name, a.name) AS name, coalesce(o.sync_id, a.sync_id) AS sync_id, coalesce(o.kind, a.kind) AS kind, coalesce(o.cron,
        a.cron) AS cron, coalesce(o.zone, a.zone) AS zone, coalesce(o.every_ms, a.every_ms) AS every_ms, coalesce(o.anchor_at, a.anchor_at) AS
        anchor_at, coalesce(o.once_at, a.once_at) AS once_at, coalesce(o.priority, a.priority) AS priority, coalesce(o.jitter_ms, a.jitter_ms)
        AS jitter_ms, coalesce(o.overlap, a.overlap) AS overlap, coalesce(o.max_buffer, a.max_buffer) AS max_buffer, coalesce(o.catchup_ms,
        a.catchup_ms) AS catchup_ms, coalesce(o.catchup_mode, a.catchup_mode) AS catchup_mode, coalesce(o.start_at, a.start_at) AS start_at,
        coalesce(o.end_at, a.end_at) AS end_at, coalesce(o.max_runs, a.max_runs) AS max_runs, coalesce(o.max_attempts, a.max_attempts) AS
        max_attempts, coalesce(o.backoff_base_ms, a.backoff_base_ms) AS backoff_base_ms, coalesce(o.backoff_cap_ms, a.backoff_cap_ms) AS
        backoff_cap_ms, coalesce(o.attempt_timeout_ms, a.attempt_timeout_ms) AS attempt_timeout_ms, coalesce(o.total_timeout_ms,
        a.total_timeout_ms) AS total_timeout_ms, coalesce(o.stall_ms, a.stall_ms) AS stall_ms, coalesce(o.pause_after_failures,
        a.pause_after_failures) AS pause_after_failures, coalesce(o.params, a.params) AS params
    FROM json_to_recordset(CAST(:own AS json)) AS o (schedule_id uuid, next_nominal_at timestamptz, next_due_at timestamptz,
        name text, sync_id uuid, kind text, cron text, zone text, every_ms bigint, anchor_at timestamptz, once_at timestamptz, priority
        smallint, jitter_ms int, overlap text, max_buffer int, catchup_ms bigint, catchup_mode text, start_at timestamptz, end_at timestamptz,
        max_runs int, max_attempts int, backoff_base_ms int, backoff_cap_ms int, attempt_timeout_ms bigint, total_timeout_ms bigint, stall_ms
        int, pause_after_failures int, params jsonb)
    CROSS JOIN json_to_record(CAST(:shared AS json)) AS a (
        name text, sync_id uuid, kind text, cron text, zone text, every_ms bigint, anchor_at timestamptz, once_at timestamptz, priority
        smallint, jitter_ms int, overlap text, max_buffer int, catchup_ms bigint, catchup_mode text, start_at timestamptz, end_at timestamptz,
        max_runs int, max_attempts int, backoff_base_ms int, backoff_cap_ms int, attempt_timeout_ms bigint, total_timeout_ms bigint, stall_ms
        int, pause_after_failures int, params jsonb)
), made AS (
    INSERT INTO wsync.schedule (schedule_id, tenant_id, name, sync_id, connection_id, credential_id, overlap_key, queue, priority, kind,
        cron, zone, every_ms, anchor_at, once_at, jitter_ms, overlap, max_buffer, catchup_ms, catchup_mode, start_at, end_at, max_runs,
        max_attempts, backoff_base_ms, backoff_cap_ms, attempt_timeout_ms, total_timeout_ms, stall_ms, pause_after_failures, params,
        created_at, updated_at)
    SELECT w.schedule_id, :tenant_id, w.name, y.sync_id, y.source_connection_id, coalesce(k.credential_id, k.connection_id), y.overlap_key,
        y.queue, w.priority, w.kind, w.cron, w.zone, w.every_ms, w.anchor_at, w.once_at, w.jitter_ms, w.overlap, w.max_buffer, w.catchup_ms,
        w.catchup_mode, w.start_at, w.end_at, w.max_runs, w.max_attempts, w.backoff_base_ms, w.backoff_cap_ms, w.attempt_timeout_ms,
        w.total_timeout_ms, w.stall_ms, w.pause_after_failures, w.params, (SELECT wsync.clock()), (SELECT wsync.clock())
    FROM wanted AS w
    JOIN wsync.sync AS y ON y.sync_id = w.sync_id
    JOIN wsync.connection AS k ON k.tenant_id = y.tenant_id AND k.connection_id = y.sink_connection_id
    ORDER BY w.name
    ON CONFLICT (tenant_id, name) WHERE deleted_at IS NULL DO NOTHING
    RETURNING schedule_id
), clocks AS (
    INSERT INTO wsync.schedule_clock (schedule_id, tenant_id, shard, next_nominal_at, next_due_at)
    SELECT schedule_id, :tenant_id, :shard, w.next_nominal_at, w.next_due_at FROM wanted AS w JOIN made USING (schedule_id)
), told AS (
    INSERT INTO wsync.run_event (at, tenant_id, schedule_id, kind, detail)
    SELECT (SELECT wsync.clock()), :tenant_id, schedule_id, 'schedule.created', jsonb_build_object('actor', CAST(:actor AS text)) FROM made
)
SELECT schedule_id FROM wanted EXCEPT SELECT schedule_id FROM made;

-- name: schedule_find
-- The schedules of these names with the state of their clocks, in one instant and without a lock. Whether the parameters are the same, their
-- texts say: to Python True is 1, to `jsonb` 1.0 is 1.
SELECT s.*, c.rev, c.next_nominal_at, c.next_due_at, CAST(s.params AS text) = CAST(CAST(w.params AS jsonb) AS text) AS has_params
FROM unnest(CAST(:names AS text[]), CAST(:params AS text[])) AS w (name, params)
JOIN wsync.schedule AS s ON s.tenant_id = :tenant_id AND s.name = w.name AND s.deleted_at IS NULL
JOIN wsync.schedule_clock AS c USING (schedule_id);

-- name: schedule_get
SELECT s.*
FROM wsync.schedule AS s
WHERE s.schedule_id = :schedule_id AND s.deleted_at IS NULL;

-- name: schedule_definitions
-- Read after the clocks are locked, so that a change that committed before us is seen.
SELECT s.*
FROM wsync.schedule AS s
WHERE s.schedule_id = ANY(:schedule_ids);

-- name: schedule_change
UPDATE wsync.schedule
SET spec_version = spec_version + 1, sync_id = :sync_id, connection_id = :connection_id, credential_id = :credential_id,
    overlap_key = :overlap_key, queue = :queue, priority = :priority, kind = :kind, cron = :cron, zone = :zone, every_ms = :every_ms,
    anchor_at = :anchor_at, once_at = :once_at, jitter_ms = :jitter_ms, overlap = :overlap, max_buffer = :max_buffer, catchup_ms = :catchup_ms,
    catchup_mode = :catchup_mode, start_at = :start_at, end_at = :end_at, max_runs = :max_runs, max_attempts = :max_attempts,
    backoff_base_ms = :backoff_base_ms, backoff_cap_ms = :backoff_cap_ms, attempt_timeout_ms = :attempt_timeout_ms,
    total_timeout_ms = :total_timeout_ms, stall_ms = :stall_ms, pause_after_failures = :pause_after_failures, params = :params,
    updated_at = wsync.clock()
WHERE schedule_id = :schedule_id
RETURNING spec_version;

-- name: version_keep
-- The definition as it is now, for those who refer to this version when it has changed.
INSERT INTO wsync.schedule_spec (schedule_id, spec_version, tenant_id, spec, at)
SELECT s.schedule_id, s.spec_version, s.tenant_id, to_jsonb(s), s.updated_at
FROM wsync.schedule AS s
WHERE s.schedule_id = :schedule_id
ON CONFLICT (schedule_id, spec_version) DO NOTHING;

-- name: schedule_pause
-- Pausing twice keeps the first note unless a new one is given.
UPDATE wsync.schedule
SET paused_at = CASE WHEN paused THEN paused_at ELSE wsync.clock() END,
    paused_by = CASE WHEN paused AND CAST(:note AS text) IS NULL THEN paused_by ELSE :actor END,
    pause_note = coalesce(:note, CASE WHEN paused THEN pause_note END),
    paused = true
WHERE schedule_id = :schedule_id AND deleted_at IS NULL;

-- name: schedule_resume
UPDATE wsync.schedule
SET paused = false, pause_note = NULL, paused_by = NULL, paused_at = NULL
WHERE schedule_id = :schedule_id AND deleted_at IS NULL AND paused;

-- name: schedule_delete
UPDATE wsync.schedule
SET deleted_at = wsync.clock()
WHERE schedule_id = :schedule_id AND deleted_at IS NULL;

-- name: clock_lock
-- The one lock that fires, edits and finishes meet at; always taken before a run's.
SELECT c.*
FROM wsync.schedule_clock AS c
WHERE c.schedule_id = :schedule_id
FOR UPDATE;

-- name: clock_set
UPDATE wsync.schedule_clock
SET rev = rev + 1, next_nominal_at = :next_nominal_at, next_due_at = :next_due_at,
    last_nominal_at = coalesce(CAST(:last_nominal_at AS timestamptz), last_nominal_at)
WHERE schedule_id = :schedule_id
RETURNING rev;

-- name: clock_give_up
-- Times that a change, pause or deletion gives up are decided by it; the caller holds the clock.
UPDATE wsync.schedule_clock
SET missed = missed + CAST(:count AS bigint), last_nominal_at = coalesce(CAST(:last_at AS timestamptz), last_nominal_at)
WHERE schedule_id = :schedule_id;

-- name: sink_credential
SELECT coalesce(k.credential_id, k.connection_id) AS credential_id
FROM wsync.connection AS k
WHERE k.connection_id = CAST(:connection_id AS uuid);
