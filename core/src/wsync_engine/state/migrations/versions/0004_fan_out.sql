-- A big run is cut into tasks. Its own process executes them one after the other; helpers, which are claimed, leased and reaped as runs are, take some of
-- them on other slots. Only adds and loosens: engines of before go on beside newer ones, and no worker of before claims a helper.

ALTER TABLE wsync.run
    ADD COLUMN helps uuid,  -- the run whose tasks this helper executes; NULL: it is a run
    ADD COLUMN comparison jsonb,  -- what each partition's diff is told, until the change log is stored
    ADD COLUMN finisher uuid,  -- of an ended run: the one that finishes its change log
    ADD COLUMN commit_started_at timestamptz,  -- durable before the destination is told to switch to what was sent
    ADD COLUMN offer_rejected boolean NOT NULL DEFAULT false,  -- rows that are held back for an earlier rejection are offered again now
    ADD COLUMN replay jsonb;  -- it sends what the change logs of these runs say, instead of what its query does
ALTER TABLE wsync.run_history  -- the same columns in the same order
    ADD COLUMN helps uuid,
    ADD COLUMN comparison jsonb,
    ADD COLUMN finisher uuid,
    ADD COLUMN commit_started_at timestamptz,
    ADD COLUMN offer_rejected boolean NOT NULL DEFAULT false,
    ADD COLUMN replay jsonb;
ALTER TABLE wsync.run DROP CONSTRAINT run_trigger_check;
ALTER TABLE wsync.run ADD CONSTRAINT run_trigger_check CHECK (trigger IN ('schedule', 'manual', 'backfill', 'run_after', 'helper'));
CREATE INDEX run_helpers ON wsync.run (helps) WHERE helps IS NOT NULL;

DROP TABLE wsync.task;  -- no engine ever wrote to it
CREATE TABLE wsync.task (  -- only of phases with more than one
    run_id uuid NOT NULL REFERENCES wsync.run ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('extract', 'diff', 'deliver', 'fold')),
    part int NOT NULL,  -- of the plan's splits, or of the key's partitions
    tenant_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'held', 'done', 'failed')),
    epoch int NOT NULL DEFAULT 0,  -- rises with each holder
    holder uuid,  -- the run itself or one of its helpers; it holds the task as long as it is executed under this epoch:
    holder_epoch int,
    result jsonb,
    error jsonb,
    PRIMARY KEY (run_id, kind, part)
);
ALTER TABLE wsync.task ENABLE ROW LEVEL SECURITY;
ALTER TABLE wsync.task FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON wsync.task TO wsync_api USING (tenant_id = (SELECT wsync.tenant())) WITH CHECK (tenant_id = (SELECT wsync.tenant()));
CREATE POLICY by_engine ON wsync.task TO wsync_engine, wsync_owner USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON wsync.task TO wsync_engine, wsync_api;

-- Whoever ends a run, its helpers end too.
CREATE FUNCTION wsync.helpers_dismiss(ended uuid) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE wsync.run
    SET state = CASE WHEN state = 'running' THEN 'cancelling'::wsync.run_state ELSE 'cancelled' END, cancel_reason = 'run_ended',
        cancel_requested_at = wsync.clock(), finished_at = CASE WHEN state = 'running' THEN NULL ELSE wsync.clock() END
    WHERE helps = ended AND state IN ('queued', 'running')
$$;
CREATE FUNCTION wsync.run_left() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM wsync.helpers_dismiss(NEW.run_id);
    RETURN NULL;
END $$;
CREATE TRIGGER run_left AFTER UPDATE OF state ON wsync.run FOR EACH ROW
    WHEN (NEW.fanned AND NEW.state IN ('succeeded', 'partial', 'failed', 'cancelled', 'blocked'))
    EXECUTE FUNCTION wsync.run_left();

CREATE OR REPLACE FUNCTION wsync.run_claimed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM wsync.worker AS w
        WHERE w.worker_id = NEW.worker_id AND w.generation < CASE WHEN NEW.helps IS NULL AND NOT NEW.fanned AND NOT NEW.offer_rejected AND NEW.replay IS NULL THEN 2 ELSE 3 END) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$;
DROP TRIGGER run_claimed ON wsync.run;
CREATE TRIGGER run_claimed BEFORE UPDATE OF state ON wsync.run FOR EACH ROW
    WHEN (OLD.state = 'queued' AND NEW.state = 'running' AND (NEW.queue <> 0 OR NEW.params <> '{}' OR NEW.helps IS NOT NULL OR NEW.fanned OR NEW.offer_rejected
        OR NEW.replay IS NOT NULL))
    EXECUTE FUNCTION wsync.run_claimed();

REVOKE ALL ON FUNCTION wsync.helpers_dismiss(uuid), wsync.run_left() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wsync.helpers_dismiss(uuid) TO wsync_engine, wsync_api;

ALTER TABLE wsync.sync
    ADD COLUMN key_resync int NOT NULL DEFAULT 0,  -- how often a resync of some keys was asked for; the manifest says up to which it has been done
    ADD COLUMN unsure_keys bytea;  -- encrypted: the requests that were not done yet
