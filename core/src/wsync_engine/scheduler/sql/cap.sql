-- name: cap_set
-- The version says to the index which of two caps is the newer one.
INSERT INTO wsync.resource_cap AS c (tenant_id, kind, resource_id, max_running, weight)
VALUES (:tenant_id, :kind, :resource_id, :max_running, :weight)
ON CONFLICT (tenant_id, kind, resource_id)
DO UPDATE SET max_running = excluded.max_running, weight = excluded.weight, version = c.version + 1
RETURNING tenant_id, kind, resource_id, max_running, weight, version;

-- name: cap_page
-- All caps of the installation that operators set: a small table, read to its end.
SELECT tenant_id, kind, resource_id, max_running, weight, version
FROM wsync.resource_cap
WHERE (tenant_id, kind, resource_id) > (CAST(:after_tenant AS uuid), CAST(:after_kind AS text), CAST(:after_id AS uuid))
ORDER BY tenant_id, kind, resource_id
LIMIT :count;

-- name: cap_outrun
-- Past the index's version: Postgres lost its last commits.
UPDATE wsync.resource_cap AS c
SET version = d.version + 1
FROM unnest(CAST(:kinds AS text[]), CAST(:resource_ids AS uuid[]), CAST(:versions AS int[])) AS d (kind, resource_id, version)
WHERE c.kind = d.kind AND c.resource_id = d.resource_id AND c.version < d.version
RETURNING c.tenant_id, c.kind, c.resource_id, c.max_running, c.weight, c.version;
