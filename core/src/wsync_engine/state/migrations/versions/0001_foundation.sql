-- The state store's first schema. Run by the owner inside one transaction; the schema itself is made by env.py, before the version table.
-- Every table with a tenant_id is under row-level security, forced; see the end of the file.

CREATE TYPE wsync.run_state AS ENUM (
    'buffered', 'queued', 'running', 'cancelling', 'blocked', 'succeeded', 'partial', 'failed', 'cancelled');

-- Every statement that asks for the time reads it here, so that a test can set it.
CREATE FUNCTION wsync.clock() RETURNS timestamptz VOLATILE LANGUAGE sql AS $$
    SELECT coalesce(nullif(current_setting('wsync.test_now', true), '')::timestamptz, clock_timestamp())
$$;

-- After a transaction that set it, the setting reads '', not NULL; nullif turns both into "no tenant, no rows".
CREATE FUNCTION wsync.tenant() RETURNS uuid STABLE LANGUAGE sql AS $$
    SELECT nullif(current_setting('wsync.tenant_id', true), '')::uuid
$$;

CREATE TABLE wsync.setting (  -- of the installation: shards, storage id, hash of tzdata, retention
    key text PRIMARY KEY,
    value jsonb NOT NULL
);

CREATE TABLE wsync.tenant (
    tenant_id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE wsync.connection (
    connection_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES wsync.tenant,
    name text NOT NULL,
    plugin text NOT NULL,
    config jsonb NOT NULL DEFAULT '{}',  -- holds references to secrets, never values
    secrets bytea,  -- encrypted JSON: reference → value
    credential_id uuid,
    spec_version int NOT NULL DEFAULT 1,
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, connection_id)
);
CREATE UNIQUE INDEX connection_name ON wsync.connection (tenant_id, name) WHERE deleted_at IS NULL;

CREATE TABLE wsync.sync (
    sync_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES wsync.tenant,
    name text NOT NULL,
    source_connection_id uuid NOT NULL,
    sink_connection_id uuid NOT NULL,
    spec jsonb NOT NULL,  -- query, key, mapping, stream, mode, guards, duplicates …
    spec_version int NOT NULL DEFAULT 1,
    delivery bigint NOT NULL DEFAULT 0,  -- number of the last run that was let deliver
    overlap_key uuid NOT NULL,
    resync int NOT NULL DEFAULT 0,  -- how often it was asked for; the manifest says up to which it has been done
    forgotten int NOT NULL DEFAULT 0,  -- manifests that have done fewer belong to a destination that the sync has left
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, sync_id),
    -- With the tenant in the key: a sync can't reach into another tenant's connections.
    FOREIGN KEY (tenant_id, source_connection_id) REFERENCES wsync.connection (tenant_id, connection_id),
    FOREIGN KEY (tenant_id, sink_connection_id) REFERENCES wsync.connection (tenant_id, connection_id)
);
CREATE UNIQUE INDEX sync_name ON wsync.sync (tenant_id, name) WHERE deleted_at IS NULL;
CREATE INDEX sync_source ON wsync.sync (tenant_id, source_connection_id);
CREATE INDEX sync_sink ON wsync.sync (tenant_id, sink_connection_id);

CREATE TABLE wsync.snapshot (  -- key → hash of what was last acknowledged; the files are named by the manifest
    sync_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    version bigint NOT NULL DEFAULT 0,  -- a swap is conditional on the version its run started from
    manifest jsonb NOT NULL,  -- partitions, files, algorithm, seed, rows
    cursor jsonb,
    run_id uuid,
    updated_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, sync_id) REFERENCES wsync.sync (tenant_id, sync_id)
);

CREATE TABLE wsync.resource_cap (  -- T tenant, N connection, S sync, K credential
    tenant_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('T', 'N', 'S', 'K')),
    resource_id uuid NOT NULL,
    max_running int NOT NULL CHECK (max_running >= 0),
    weight int NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 100),
    version int NOT NULL DEFAULT 1,
    PRIMARY KEY (tenant_id, kind, resource_id)
);

CREATE TABLE wsync.schedule (  -- definition: cold, wide
    schedule_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    sync_id uuid NOT NULL,
    connection_id uuid NOT NULL,
    credential_id uuid NOT NULL,
    overlap_key uuid NOT NULL,  -- sync_id, or one key for several whole syncs; set on the sync, never per schedule
    priority smallint NOT NULL DEFAULT 1 CHECK (priority BETWEEN 0 AND 2),  -- 0 low, 1 medium, 2 high
    kind text NOT NULL CHECK (kind IN ('cron', 'interval', 'once')),
    cron text,
    zone text,
    every_ms bigint CHECK (every_ms >= 1000),
    anchor_at timestamptz,
    once_at timestamptz,
    jitter_ms int NOT NULL DEFAULT 0 CHECK (jitter_ms BETWEEN 0 AND 3600000),
    overlap text NOT NULL DEFAULT 'skip'
        CHECK (overlap IN ('skip', 'buffer_one', 'buffer_all', 'cancel_other', 'terminate_other', 'allow_all')),
    max_buffer int NOT NULL DEFAULT 100 CHECK (max_buffer BETWEEN 1 AND 1000),
    catchup_ms bigint NOT NULL DEFAULT 3600000 CHECK (catchup_ms >= 10000),
    catchup_mode text NOT NULL DEFAULT 'latest' CHECK (catchup_mode IN ('latest', 'all')),
    start_at timestamptz,
    end_at timestamptz,
    max_runs int CHECK (max_runs > 0),
    max_attempts int NOT NULL DEFAULT 3,
    backoff_base_ms int NOT NULL DEFAULT 10000,
    backoff_cap_ms int NOT NULL DEFAULT 900000,
    attempt_timeout_ms bigint NOT NULL DEFAULT 21600000,
    total_timeout_ms bigint NOT NULL DEFAULT 86400000,
    stall_ms int NOT NULL DEFAULT 600000,
    pause_after_failures int,
    paused boolean NOT NULL DEFAULT false,
    pause_note text,
    paused_by text,
    paused_at timestamptz,
    spec_version int NOT NULL DEFAULT 1,
    params jsonb NOT NULL DEFAULT '{}',
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'cron') = (cron IS NOT NULL AND zone IS NOT NULL)),
    CHECK ((kind = 'interval') = (every_ms IS NOT NULL AND anchor_at IS NOT NULL)),
    CHECK ((kind = 'once') = (once_at IS NOT NULL))
);
CREATE UNIQUE INDEX schedule_name ON wsync.schedule (tenant_id, name) WHERE deleted_at IS NULL;  -- idempotent re-registration
CREATE INDEX schedule_sync ON wsync.schedule (tenant_id, sync_id);

CREATE TABLE wsync.schedule_spec (  -- immutable; a run refers to the version it started with
    schedule_id uuid,
    spec_version int,
    tenant_id uuid NOT NULL,
    spec jsonb NOT NULL,
    actor text,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schedule_id, spec_version)
);

CREATE TABLE wsync.schedule_clock (  -- hot, narrow: one row per schedule, locked by every fire
    schedule_id uuid PRIMARY KEY REFERENCES wsync.schedule,
    tenant_id uuid NOT NULL,
    shard smallint NOT NULL,
    rev bigint NOT NULL DEFAULT 1,
    next_nominal_at timestamptz,
    next_due_at timestamptz,
    last_nominal_at timestamptz,
    fired bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    missed bigint NOT NULL DEFAULT 0,
    coalesced bigint NOT NULL DEFAULT 0,
    failures_in_row int NOT NULL DEFAULT 0,
    CHECK ((next_nominal_at IS NULL) = (next_due_at IS NULL))
) WITH (fillfactor = 80);
CREATE INDEX schedule_clock_due ON wsync.schedule_clock (shard, next_due_at) WHERE next_due_at IS NOT NULL;

CREATE TABLE wsync.backfill (
    backfill_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    shard smallint NOT NULL,
    schedule_id uuid NOT NULL,
    from_at timestamptz NOT NULL,
    to_at timestamptz NOT NULL CHECK (to_at > from_at),
    cursor_at timestamptz NOT NULL,
    overlap text NOT NULL DEFAULT 'buffer_all',
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'done', 'cancelled')),
    rev bigint NOT NULL DEFAULT 1,
    next_due_at timestamptz,
    created_by text
);
CREATE INDEX backfill_due ON wsync.backfill (shard, next_due_at) WHERE state = 'active';

CREATE TABLE wsync.run (  -- active and recently ended runs; not partitioned: run_excl must be one index
    run_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    shard smallint NOT NULL,
    schedule_id uuid,
    spec_version int,
    backfill_id uuid,
    sync_id uuid NOT NULL,
    connection_id uuid NOT NULL,
    credential_id uuid NOT NULL,
    overlap_key uuid NOT NULL,
    trigger text NOT NULL CHECK (trigger IN ('schedule', 'manual', 'backfill', 'run_after')),
    idem_key text,
    nominal_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    ready_at timestamptz NOT NULL,
    priority smallint NOT NULL,
    exclusive boolean NOT NULL,
    buffer_one boolean NOT NULL DEFAULT false,
    fanned boolean NOT NULL DEFAULT false,
    state wsync.run_state NOT NULL,
    epoch int NOT NULL DEFAULT 0,
    attempt int NOT NULL DEFAULT 0,
    crashes int NOT NULL DEFAULT 0,
    worker_id uuid,
    lease_until timestamptz,
    heartbeat_at timestamptz,
    progress jsonb,
    progress_at timestamptz,
    warehouse_query bytea,
    cancel_requested_at timestamptz,
    cancel_reason text,
    deadline_at timestamptz,
    error_class text,
    error text,
    next_step text,  -- what a person does about the error
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    folded_at timestamptz,
    -- What the pipeline keeps of a run.
    phase text,
    dry_run boolean NOT NULL DEFAULT false,
    adopt boolean NOT NULL DEFAULT false,  -- take the result as acknowledged, send nothing
    base_version bigint,  -- of the snapshot that the change log was made from
    delivery bigint,  -- given once, when the run is let deliver
    plan bytea,  -- encrypted
    plan_generation int NOT NULL DEFAULT 0,
    sink_token bytea,
    change_log jsonb,  -- files and rows per partition
    counts jsonb,  -- the books
    guards jsonb,  -- what blocked it
    outcome_reason text,
    approved_by text,
    approved_at timestamptz
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX run_once ON wsync.run (schedule_id, nominal_at) WHERE trigger = 'schedule';
CREATE UNIQUE INDEX run_bf ON wsync.run (backfill_id, nominal_at) WHERE trigger = 'backfill';
CREATE UNIQUE INDEX run_idem ON wsync.run (tenant_id, idem_key) WHERE idem_key IS NOT NULL;
CREATE UNIQUE INDEX run_excl ON wsync.run (overlap_key)
    WHERE exclusive AND state IN ('queued', 'running', 'cancelling', 'blocked');
CREATE UNIQUE INDEX run_buf1 ON wsync.run (overlap_key) WHERE buffer_one AND state = 'buffered';
CREATE INDEX run_buffered ON wsync.run (overlap_key, due_at, run_id) WHERE state = 'buffered';
CREATE INDEX run_ready ON wsync.run (shard, ready_at) WHERE state = 'queued';
CREATE INDEX run_active ON wsync.run (shard) WHERE state IN ('running', 'cancelling');  -- lease_until in no index: heartbeats stay HOT
CREATE INDEX run_by_sync ON wsync.run (tenant_id, sync_id, run_id);

CREATE TABLE wsync.task (  -- only of runs that fanned out; a small run is executed under the run's own lease
    task_id uuid PRIMARY KEY,
    run_id uuid NOT NULL REFERENCES wsync.run ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    shard smallint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('plan', 'extract', 'diff', 'deliver', 'finish')),
    part int NOT NULL,
    priority smallint NOT NULL,
    ready_at timestamptz NOT NULL,
    state wsync.run_state NOT NULL,
    epoch int NOT NULL DEFAULT 0,
    attempt int NOT NULL DEFAULT 0,
    crashes int NOT NULL DEFAULT 0,
    worker_id uuid,
    lease_until timestamptz,
    heartbeat_at timestamptz,
    progress jsonb,
    progress_at timestamptz,
    warehouse_query bytea,
    error_class text,
    error text,
    UNIQUE (run_id, kind, part)
) WITH (fillfactor = 70);
CREATE INDEX task_ready ON wsync.task (shard, ready_at) WHERE state = 'queued';
CREATE INDEX task_active ON wsync.task (shard) WHERE state IN ('running', 'cancelling');

CREATE TABLE wsync.split (
    run_id uuid NOT NULL REFERENCES wsync.run ON DELETE CASCADE,
    part int NOT NULL,
    tenant_id uuid NOT NULL,
    plan_generation int NOT NULL,
    token bytea,  -- encrypted
    state text NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'published')),
    files jsonb,
    read_rows bigint,
    counts jsonb,
    epoch int,
    published_at timestamptz,
    PRIMARY KEY (run_id, plan_generation, part)
);

CREATE TABLE wsync.chunk (  -- sent_at is durable before the call; sent rows without an ack are unsure
    run_id uuid,
    partition int,
    first_row bigint,
    last_row bigint,
    tenant_id uuid NOT NULL,
    sent_at timestamptz,
    PRIMARY KEY (run_id, partition, first_row, last_row)
);

CREATE TABLE wsync.ack (
    run_id uuid,
    partition int,
    first_row bigint,
    last_row bigint,
    tenant_id uuid NOT NULL,
    epoch int NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('accepted', 'rejected', 'unknown')),
    at timestamptz NOT NULL,
    PRIMARY KEY (run_id, partition, first_row, last_row)
);

CREATE TABLE wsync.rejection (
    rejection_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    sync_id uuid NOT NULL,
    run_id uuid NOT NULL,
    partition int,
    row bigint,
    phase text NOT NULL CHECK (phase IN ('extract', 'diff', 'deliver')),
    code text NOT NULL,
    message text NOT NULL,
    retryable boolean NOT NULL,
    payload bytea,  -- encrypted
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (tenant_id, sync_id) REFERENCES wsync.sync (tenant_id, sync_id)
);
CREATE INDEX rejection_run ON wsync.rejection (tenant_id, run_id);
CREATE INDEX rejection_sync ON wsync.rejection (tenant_id, sync_id, at);

CREATE TABLE wsync.run_history (  -- daily
    LIKE wsync.run,
    PRIMARY KEY (run_id, finished_at)
) PARTITION BY RANGE (finished_at);
CREATE INDEX run_history_sync ON wsync.run_history (tenant_id, sync_id, run_id);
CREATE TABLE wsync.run_history_default PARTITION OF wsync.run_history DEFAULT;

CREATE TABLE wsync.run_event (  -- daily, append only
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tenant_id uuid NOT NULL,
    schedule_id uuid,
    run_id uuid,
    epoch int,
    kind text NOT NULL,
    detail jsonb
) PARTITION BY RANGE (at);
CREATE INDEX run_event_run ON wsync.run_event (run_id, at);
CREATE INDEX run_event_sched ON wsync.run_event (schedule_id, at);
CREATE TABLE wsync.run_event_default PARTITION OF wsync.run_event DEFAULT;

CREATE TABLE wsync.worker (
    worker_id uuid PRIMARY KEY,
    host text,
    pid int,
    version text,
    slots int,
    running int,
    labels text[] NOT NULL DEFAULT '{}',
    draining boolean NOT NULL DEFAULT false,
    started_at timestamptz,
    heartbeat_at timestamptz
);

-- Makes the daily partitions for today (UTC) and the days ahead; returns how many were new. A day whose rows already lie in the
-- DEFAULT partition can't get its own any more: it stays there, with a warning.
CREATE FUNCTION wsync.partition_make(days_ahead int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    day date;
    child text;
    made int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('wsync.partition_make'));
    FOREACH parent IN ARRAY ARRAY['run_history', 'run_event'] LOOP
        FOR ahead IN 0..days_ahead LOOP
            day := (wsync.clock() AT TIME ZONE 'UTC')::date + ahead;
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass('wsync.' || child) IS NOT NULL;
            BEGIN
                EXECUTE format('CREATE TABLE wsync.%I PARTITION OF wsync.%I FOR VALUES FROM (%L) TO (%L)', child, parent,
                    day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
                made := made + 1;
            EXCEPTION WHEN check_violation THEN
                RAISE WARNING 'rows of % are in the default partition of %', day, parent;
            END;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;

-- Drops the daily partitions of one table that end before the given day (UTC); returns how many. The caller sets lock_timeout.
CREATE FUNCTION wsync.partition_drop(parent text, before_day date) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    child text;
    dropped int := 0;
BEGIN
    IF parent NOT IN ('run_history', 'run_event') THEN
        RAISE EXCEPTION 'not a partitioned table: %', parent;
    END IF;
    FOR child IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = ('wsync.' || parent)::regclass AND c.relname ~ ('^' || parent || '_\d{8}$')
            AND to_date(right(c.relname, 8), 'YYYYMMDD') < before_day
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE wsync.%I', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;

-- No tenant is set yet when its name is looked up, hence SECURITY DEFINER.
CREATE FUNCTION wsync.tenant_id(name text) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.tenant_id FROM wsync.tenant t WHERE t.name = $1
$$;

-- The settings that a tenant's transaction may read; the rest is the engine's.
CREATE FUNCTION wsync.setting_value(key text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.value FROM wsync.setting s WHERE s.key = $1 AND s.key IN ('shards', 'storage_id', 'tzdata')
$$;

SELECT wsync.partition_make(7);
INSERT INTO wsync.setting (key, value) VALUES ('shards', '1');

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['tenant', 'connection', 'sync', 'snapshot', 'split', 'rejection', 'resource_cap', 'schedule',
        'schedule_spec', 'schedule_clock', 'backfill', 'run', 'task', 'chunk', 'ack', 'run_history', 'run_event']
    LOOP
        EXECUTE format('ALTER TABLE wsync.%I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE wsync.%I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY by_tenant ON wsync.%I TO wsync_api USING (tenant_id = (SELECT wsync.tenant()))'
            ' WITH CHECK (tenant_id = (SELECT wsync.tenant()))', t);
        EXECUTE format('CREATE POLICY by_engine ON wsync.%I TO wsync_engine, wsync_owner USING (true) WITH CHECK (true)', t);
    END LOOP;
END $$;

-- Partitions get no grants: they are reached through their parent, where the policies are. The engine counts what is in the defaults.
REVOKE ALL ON SCHEMA wsync FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA wsync FROM PUBLIC;
GRANT USAGE ON SCHEMA wsync TO wsync_engine, wsync_api;
GRANT EXECUTE ON FUNCTION wsync.clock(), wsync.tenant(), wsync.tenant_id(text), wsync.setting_value(text) TO wsync_engine, wsync_api;
GRANT EXECUTE ON FUNCTION wsync.partition_make(int), wsync.partition_drop(text, date) TO wsync_engine;
GRANT SELECT, INSERT, UPDATE, DELETE ON wsync.setting, wsync.tenant, wsync.connection, wsync.sync, wsync.snapshot, wsync.split,
    wsync.rejection, wsync.resource_cap, wsync.schedule, wsync.schedule_spec, wsync.schedule_clock, wsync.backfill, wsync.run,
    wsync.task, wsync.chunk, wsync.ack, wsync.run_history, wsync.worker TO wsync_engine;
GRANT SELECT, INSERT ON wsync.run_event TO wsync_engine, wsync_api;  -- append only; …
GRANT DELETE ON wsync.run_event TO wsync_engine;  -- … but for the purge of a tenant
GRANT SELECT, INSERT, UPDATE, DELETE ON wsync.connection, wsync.sync, wsync.snapshot, wsync.split, wsync.rejection,
    wsync.resource_cap, wsync.schedule, wsync.schedule_spec, wsync.schedule_clock, wsync.backfill, wsync.run, wsync.task,
    wsync.chunk, wsync.ack TO wsync_api;
GRANT SELECT ON wsync.run_history_default, wsync.run_event_default TO wsync_engine;
GRANT SELECT, INSERT, UPDATE ON wsync.tenant TO wsync_api;
GRANT SELECT ON wsync.run_history, wsync.worker TO wsync_api;
