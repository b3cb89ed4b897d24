-- name: breaker_fail
INSERT INTO wsync.breaker AS b (tenant_id, credential_id, failures, reason)
VALUES (:tenant_id, :credential_id, 1, :reason)
ON CONFLICT (tenant_id, credential_id) DO UPDATE SET failures = b.failures + 1, reason = excluded.reason;

-- name: breaker_open
-- After so many failures in a row, or one while it is on trial. Each opening lasts twice as long as the one before.
UPDATE wsync.breaker
SET state = 'open', openings = openings + 1, version = version + 1, opened_at = wsync.clock(),
    retry_at = wsync.clock() + make_interval(secs => greatest(
        least(CAST(:longest_s AS float8), CAST(:first_s AS float8) * power(2, least(openings, 20))),
        least(CAST(:longest_s AS float8), CAST(:retry_after_s AS float8))))
WHERE tenant_id = :tenant_id AND credential_id = :credential_id AND state <> 'open' AND (failures >= :most OR openings > 0)
RETURNING tenant_id, credential_id, state, max_running, version, failures, reason, retry_at;

-- name: breaker_close
-- With `is_trusted` all is forgotten; else it stays on trial. Nothing for one that has nothing to forget.
WITH before AS (
    SELECT b.tenant_id, b.credential_id, b.state
    FROM wsync.breaker AS b
    WHERE b.tenant_id = :tenant_id AND b.credential_id = ANY(CAST(:credential_ids AS uuid[]))
        AND (b.state <> 'closed' OR (CAST(:is_trusted AS bool) AND (b.failures > 0 OR b.openings > 0)))
    ORDER BY b.credential_id
    FOR UPDATE)
UPDATE wsync.breaker AS b
SET state = 'closed', version = b.version + CASE before.state WHEN 'closed' THEN 0 ELSE 1 END, failures = 0,
    openings = CASE WHEN :is_trusted THEN 0 ELSE b.openings END,
    reason = CASE WHEN :is_trusted THEN NULL ELSE b.reason END, opened_at = NULL, retry_at = NULL
FROM before
WHERE b.tenant_id = before.tenant_id AND b.credential_id = before.credential_id
RETURNING b.tenant_id, b.credential_id, b.state, b.max_running, b.version, b.failures, b.reason, b.retry_at, before.state AS former_state;

-- name: breaker_advance
-- An open one whose time is over lets one run try; one that nobody tried for as long as it had been open lets all, on trial. That time counts from
-- here, and not from when it should have been: no sweep may have come by for longer.
WITH due AS (
    SELECT b.tenant_id, b.credential_id, b.state, CASE b.state WHEN 'open' THEN wsync.clock() - b.retry_at ELSE interval '0' END AS late
    FROM wsync.breaker AS b
    WHERE b.state <> 'closed' AND b.retry_at + CASE b.state WHEN 'open' THEN interval '0' ELSE b.retry_at - b.opened_at END <= wsync.clock()
    ORDER BY b.tenant_id, b.credential_id
    FOR UPDATE SKIP LOCKED)
UPDATE wsync.breaker AS b
SET state = CASE due.state WHEN 'open' THEN 'half_open' ELSE 'closed' END, version = b.version + 1, failures = 0,
    opened_at = b.opened_at + due.late, retry_at = b.retry_at + due.late
FROM due
WHERE b.tenant_id = due.tenant_id AND b.credential_id = due.credential_id
RETURNING b.tenant_id, b.credential_id, b.state, b.max_running, b.version, b.failures, b.reason, b.retry_at;

-- name: breaker_page
-- All of the installation, as caps. By itself and not with the operators' caps: it grows with each destination that ever failed, and each page is to
-- be read in the order of the key.
SELECT tenant_id, 'B' AS kind, credential_id AS resource_id, max_running, 1 AS weight, version
FROM wsync.breaker
WHERE (tenant_id, credential_id) > (CAST(:after_tenant AS uuid), CAST(:after_id AS uuid))
ORDER BY tenant_id, credential_id
LIMIT :count;

-- name: breaker_outrun
-- Past the index's version: Postgres lost its last commits.
UPDATE wsync.breaker AS b
SET version = d.version + 1
FROM unnest(CAST(:credential_ids AS uuid[]), CAST(:versions AS int[])) AS d (credential_id, version)
WHERE b.credential_id = d.credential_id AND b.version < d.version
RETURNING b.tenant_id, 'B' AS kind, b.credential_id AS resource_id, b.max_running, 1 AS weight, b.version;

-- name: breaker_restore
-- Closed, past the index's version: Postgres lost that they ever failed.
INSERT INTO wsync.breaker AS b (tenant_id, credential_id, version)
SELECT DISTINCT k.tenant_id, d.credential_id, d.version + 1
FROM unnest(CAST(:credential_ids AS uuid[]), CAST(:versions AS int[])) AS d (credential_id, version)
JOIN wsync.connection AS k ON d.credential_id IN (k.connection_id, k.credential_id)
WHERE NOT EXISTS (SELECT FROM wsync.breaker AS x WHERE x.tenant_id = k.tenant_id AND x.credential_id = d.credential_id)
ON CONFLICT (tenant_id, credential_id) DO NOTHING
RETURNING b.tenant_id, 'B' AS kind, b.credential_id AS resource_id, b.max_running, 1 AS weight, b.version;

-- name: breaker_count
SELECT count(*) FILTER (WHERE state = 'open') AS open, count(*) FILTER (WHERE state = 'half_open') AS half_open
FROM wsync.breaker WHERE state <> 'closed';
