-- name: cap_list
SELECT c.kind, c.resource_id,
    CASE c.kind WHEN 'T' THEN 'the tenant'
        WHEN 'S' THEN (SELECT 'sync ' || y.name FROM wsync.sync AS y WHERE y.sync_id = c.resource_id)
        ELSE (SELECT CASE c.kind WHEN 'N' THEN 'connection ' ELSE 'sink ' END || k.name FROM wsync.connection AS k
            WHERE k.tenant_id = c.tenant_id AND c.resource_id IN (k.connection_id, k.credential_id) ORDER BY k.deleted_at DESC NULLS FIRST LIMIT 1)
    END AS of,
    c.max_running, c.weight,
    (SELECT count(*) FROM wsync.run AS r
        WHERE r.tenant_id = c.tenant_id AND r.state IN ('running', 'cancelling')
            AND CASE c.kind WHEN 'T' THEN r.tenant_id WHEN 'N' THEN r.connection_id WHEN 'S' THEN r.sync_id ELSE r.credential_id END
                = c.resource_id) AS running
FROM wsync.resource_cap AS c
WHERE c.tenant_id = :tenant_id
ORDER BY c.kind DESC, c.resource_id;

-- name: cap_resources
SELECT y.name, y.sync_id AS resource_id
FROM wsync.sync AS y
WHERE y.tenant_id = :tenant_id AND y.deleted_at IS NULL AND CAST(:kind AS text) = 'S'
UNION ALL
SELECT k.name, CASE CAST(:kind AS text) WHEN 'K' THEN coalesce(k.credential_id, k.connection_id) ELSE k.connection_id END
FROM wsync.connection AS k
WHERE k.tenant_id = :tenant_id AND k.deleted_at IS NULL AND CAST(:kind AS text) IN ('N', 'K');
