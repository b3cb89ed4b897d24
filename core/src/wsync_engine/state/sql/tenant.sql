-- name: tenant_find
-- Before any tenant is set: the function runs with its owner's rights and tells nothing but the id.
SELECT wsync.tenant_id(:name);

-- name: tenant_insert
-- Inside the new tenant's own transaction. A name that is taken, be it by a row this login can't see, inserts nothing.
INSERT INTO wsync.tenant (tenant_id, name)
VALUES (:tenant_id, :name)
ON CONFLICT DO NOTHING;
