CREATE INDEX run_unfolded ON wsync.run (sync_id) WHERE delivery IS NOT NULL AND folded_at IS NULL;  -- who may be delivering, or has left acks
CREATE INDEX run_beside ON wsync.run (sync_id, run_id)
    WHERE NOT exclusive AND NOT dry_run AND state IN ('queued', 'running', 'cancelling');  -- under `allow_all`
CREATE INDEX run_uncounted ON wsync.run (shard) WHERE phase = 'count';  -- ended, and not yet counted for its schedule

CREATE TABLE wsync.breaker (  -- of a credential that sinks are called with; without a row it never failed
    tenant_id uuid NOT NULL,
    credential_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'closed' CHECK (state IN ('closed', 'open', 'half_open')),
    max_running int NOT NULL GENERATED ALWAYS AS (CASE state WHEN 'open' THEN 0 WHEN 'half_open' THEN 1 ELSE 2147483647 END) STORED,
    failures int NOT NULL DEFAULT 0,  -- in a row
    openings int NOT NULL DEFAULT 0,  -- since it last answered: the next one follows a single failure and lasts twice as long
    reason text,  -- of the last failure
    opened_at timestamptz,
    retry_at timestamptz,
    version int NOT NULL DEFAULT 1,  -- of its state, for the index
    PRIMARY KEY (tenant_id, credential_id)
);
CREATE INDEX breaker_retry ON wsync.breaker (retry_at) WHERE state <> 'closed';
ALTER TABLE wsync.breaker ENABLE ROW LEVEL SECURITY;
ALTER TABLE wsync.breaker FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON wsync.breaker TO wsync_api USING (tenant_id = (SELECT wsync.tenant())) WITH CHECK (tenant_id = (SELECT wsync.tenant()));
CREATE POLICY by_engine ON wsync.breaker TO wsync_engine, wsync_owner USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON wsync.breaker TO wsync_engine;
GRANT SELECT, UPDATE ON wsync.breaker TO wsync_api;
