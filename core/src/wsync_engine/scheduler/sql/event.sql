-- name: event_insert
-- Events of one transaction, in one statement.
INSERT INTO wsync.run_event (at, tenant_id, schedule_id, run_id, epoch, kind, detail)
SELECT wsync.clock(), e.tenant_id, e.schedule_id, e.run_id, e.epoch, e.kind, CAST(e.detail AS jsonb)
FROM unnest(CAST(:tenant_ids AS uuid[]), CAST(:schedule_ids AS uuid[]), CAST(:run_ids AS uuid[]), CAST(:epochs AS int[]),
    CAST(:kinds AS text[]), CAST(:details AS text[])) AS e (tenant_id, schedule_id, run_id, epoch, kind, detail);
