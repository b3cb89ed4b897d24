-- Queues, overlap policies, backfills, caps and drains. Only adds, loosens, and rebuilds three indexes: engines of 0001 go on beside newer ones.

CREATE TABLE wsync.queue (  -- which workers serve a sync; of the installation, made by the operator
    queue smallint PRIMARY KEY CHECK (queue BETWEEN 0 AND 15),
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO wsync.queue (queue, name) VALUES (0, 'default');

ALTER TABLE wsync.sync ADD COLUMN queue smallint NOT NULL DEFAULT 0 REFERENCES wsync.queue;
ALTER TABLE wsync.schedule ADD COLUMN queue smallint NOT NULL DEFAULT 0;
ALTER TABLE wsync.run
    ADD COLUMN queue smallint NOT NULL DEFAULT 0,
    ADD COLUMN params jsonb NOT NULL DEFAULT '{}',  -- values of `:name` in the query, over the sync's own
    ADD COLUMN waits_for uuid,  -- a terminated run whose process may still live: ready at once when its worker confirms the kill
    ADD COLUMN replaces boolean NOT NULL DEFAULT false;  -- it waits for a run that it asked to end; a newer one that does so takes its place
ALTER TABLE wsync.run_history  -- the same columns in the same order
    ADD COLUMN queue smallint NOT NULL DEFAULT 0,
    ADD COLUMN params jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN waits_for uuid,
    ADD COLUMN replaces boolean NOT NULL DEFAULT false;
CREATE INDEX run_history_idem ON wsync.run_history (tenant_id, idem_key) WHERE idem_key IS NOT NULL;  -- a key is known as long as its run

-- In the order in which sweeps and loads go through them, so that no page sorts the table, whatever the planner believes of it.
DROP INDEX wsync.schedule_clock_due, wsync.run_ready;
CREATE INDEX schedule_clock_due ON wsync.schedule_clock (shard, next_due_at, schedule_id) WHERE next_due_at IS NOT NULL;
CREATE INDEX run_ready ON wsync.run (shard, ready_at, run_id) WHERE state = 'queued';

-- A schedule and its clock are written by one statement; the check would read and lock each of them once more.
ALTER TABLE wsync.schedule_clock DROP CONSTRAINT schedule_clock_schedule_id_fkey;
DROP INDEX wsync.run_event_run;
CREATE INDEX run_event_run ON wsync.run_event (run_id, at) WHERE run_id IS NOT NULL;
COMMENT ON TABLE wsync.schedule_spec IS 'former definitions of schedules; the present one is in wsync.schedule, under its spec_version';

CREATE INDEX run_backfill ON wsync.run (backfill_id) WHERE backfill_id IS NOT NULL
    AND state IN ('buffered', 'queued', 'running', 'cancelling', 'blocked');
CREATE INDEX run_ended ON wsync.run (finished_at) WHERE state IN ('succeeded', 'partial', 'failed', 'cancelled');
CREATE INDEX run_blocked ON wsync.run (heartbeat_at) WHERE state = 'blocked';

ALTER TABLE wsync.backfill
    ADD COLUMN spec_version int,
    ADD COLUMN max_open int NOT NULL DEFAULT 1 CHECK (max_open BETWEEN 1 AND 100),
    ADD COLUMN made bigint NOT NULL DEFAULT 0,
    ADD COLUMN skipped bigint NOT NULL DEFAULT 0,
    ADD COLUMN note text,
    ADD COLUMN created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN ended_at timestamptz;
CREATE INDEX backfill_schedule ON wsync.backfill (tenant_id, schedule_id);

ALTER TABLE wsync.worker
    ADD COLUMN queues smallint[] NOT NULL DEFAULT '{0}',
    ADD COLUMN drain_requested_at timestamptz,
    ADD COLUMN refusal text,  -- why it claims nothing
    ADD COLUMN generation smallint NOT NULL DEFAULT 1;  -- what runs it understands: 2 knows queues and a run's own parameters

CREATE INDEX run_waits_for ON wsync.run (waits_for) WHERE waits_for IS NOT NULL AND state = 'queued';

-- A terminated run keeps its lease: until that is over, or the kill is confirmed, its process may still write, and no other run of the key starts.
CREATE INDEX run_terminated ON wsync.run (overlap_key) WHERE state = 'cancelled' AND cancel_reason = 'terminated' AND lease_until IS NOT NULL;
CREATE FUNCTION wsync.run_alive(key uuid, OUT run_id uuid, OUT until_at timestamptz) RETURNS SETOF record
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.run_id, r.lease_until
    FROM wsync.run AS r
    WHERE r.overlap_key = key AND r.state = 'cancelled' AND r.cancel_reason = 'terminated' AND r.lease_until > wsync.clock()
    ORDER BY r.lease_until DESC
    LIMIT 1
$$;

-- The oldest run that waits for its overlap key becomes ready, if none is open. Called where an open run ends, in that transaction.
-- A scheduled run that waited for longer than its catch-up window is not made up for any more.
CREATE FUNCTION wsync.run_promote(key uuid) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waiting record;
BEGIN
    IF EXISTS (SELECT FROM wsync.run AS r
        WHERE r.overlap_key = key AND r.exclusive AND r.state IN ('queued', 'running', 'cancelling', 'blocked')) THEN
        RETURN NULL;
    END IF;
    LOOP
        SELECT r.run_id, r.tenant_id, r.schedule_id,
            r.trigger = 'schedule' AND r.due_at < wsync.clock() - coalesce(s.catchup_ms, 3600000) * interval '1 millisecond' AS is_expired,
            wsync.clock() + coalesce(s.total_timeout_ms, 86400000) * interval '1 millisecond' AS deadline_at
        INTO waiting
        FROM wsync.run AS r
        LEFT JOIN wsync.schedule AS s USING (schedule_id)
        WHERE r.overlap_key = key AND r.state = 'buffered'
        ORDER BY r.due_at, r.run_id
        LIMIT 1
        FOR UPDATE OF r;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        IF waiting.is_expired THEN
            UPDATE wsync.run SET state = 'cancelled', cancel_reason = 'expired', outcome_reason = 'waited for longer than the catch-up window',
                finished_at = wsync.clock(), folded_at = wsync.clock()
            WHERE run_id = waiting.run_id;
            INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, kind, detail)
            VALUES (wsync.clock(), waiting.tenant_id, waiting.schedule_id, waiting.run_id, 'run.cancelled',
                '{"actor": "system", "reason": "expired"}');
            CONTINUE;
        END IF;
        BEGIN
            UPDATE wsync.run AS r
            SET state = 'queued', ready_at = greatest(wsync.clock(), alive.until_at), waits_for = alive.run_id, deadline_at = waiting.deadline_at
            FROM (SELECT 1) AS one
            LEFT JOIN LATERAL wsync.run_alive(key) AS alive ON true
            WHERE r.run_id = waiting.run_id;
        EXCEPTION WHEN unique_violation THEN
            RETURN NULL;  -- another run of the key has just opened: its end promotes
        END;
        INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, kind)
        VALUES (wsync.clock(), waiting.tenant_id, waiting.schedule_id, waiting.run_id, 'run.promoted');
        RETURN waiting.run_id;
    END LOOP;
END $$;

-- A trigger, so that whoever ends a run, also an engine of 0001, queues its successor in the same transaction.
CREATE FUNCTION wsync.run_closed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM wsync.run_promote(NEW.overlap_key);
    RETURN NULL;
END $$;
CREATE TRIGGER run_closed AFTER UPDATE OF state ON wsync.run FOR EACH ROW
    WHEN (OLD.exclusive AND OLD.state IN ('queued', 'running', 'cancelling', 'blocked')
        AND NEW.state IN ('succeeded', 'partial', 'failed', 'cancelled'))
    EXECUTE FUNCTION wsync.run_closed();

-- A worker of 0001 takes whatever is queued: it would execute runs of queues that are not its own, and without their parameters. Its claim
-- passes such a run over, as if another worker had been faster. Claims of ordinary runs pay for the condition only.
CREATE FUNCTION wsync.run_claimed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM wsync.worker AS w WHERE w.worker_id = NEW.worker_id AND w.generation < 2) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER run_claimed BEFORE UPDATE OF state ON wsync.run FOR EACH ROW
    WHEN (OLD.state = 'queued' AND NEW.state = 'running' AND (NEW.queue <> 0 OR NEW.params <> '{}'))
    EXECUTE FUNCTION wsync.run_claimed();

-- An older engine than this schema may start if the schema has only been added to since the revision that it knows.
CREATE OR REPLACE FUNCTION wsync.setting_value(key text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.value FROM wsync.setting s WHERE s.key = $1 AND s.key IN ('shards', 'storage_id', 'tzdata', 'compatible_from')
$$;
INSERT INTO wsync.setting (key, value) VALUES ('compatible_from', '"0001_foundation"');

REVOKE ALL ON FUNCTION wsync.run_promote(uuid), wsync.run_alive(uuid), wsync.run_closed(), wsync.run_claimed() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wsync.run_promote(uuid), wsync.run_alive(uuid) TO wsync_engine, wsync_api;
GRANT SELECT, INSERT, UPDATE ON wsync.queue TO wsync_engine;
GRANT SELECT ON wsync.queue TO wsync_api;
