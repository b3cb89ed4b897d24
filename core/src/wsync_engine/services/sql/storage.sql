-- name: sweep_lock
-- One process of the installation sweeps at a time; until the end of the session.
SELECT pg_try_advisory_lock(hashtext('wsync.storage'), 0) AS is_mine;

-- name: tenants_known
-- Which of the folder's tenants are ours.
SELECT tenant_id FROM wsync.tenant WHERE tenant_id = ANY (CAST(:tenant_ids AS uuid[]));

-- name: runs_settled
-- What became of runs whose files are there: whether nobody writes or reads for them any more, and whether their time is over.
SELECT u.run_id,
    coalesce(r.state IN ('succeeded', 'partial', 'failed', 'cancelled') AND (r.delivery IS NULL OR r.folded_at IS NOT NULL), false) AS is_settled,
    coalesce(r.finished_at < wsync.clock() - make_interval(days => :days), false) AS is_old
FROM unnest(CAST(:run_ids AS uuid[])) AS u (run_id)
LEFT JOIN LATERAL (
    SELECT x.state::text AS state, x.delivery, x.folded_at, x.finished_at FROM wsync.run AS x WHERE x.run_id = u.run_id AND x.tenant_id = :tenant_id
    UNION ALL
    SELECT x.state::text, x.delivery, x.folded_at, x.finished_at FROM wsync.run_history AS x WHERE x.run_id = u.run_id AND x.tenant_id = :tenant_id
    LIMIT 1) AS r ON true;

-- name: snapshot_files
-- Asked after the runs: a fold that was done by then has named its files.
SELECT (s.manifest -> 'files') || coalesce(s.manifest -> 'carried', '[]') AS files
FROM wsync.snapshot AS s
WHERE s.tenant_id = :tenant_id AND s.sync_id = :sync_id;
