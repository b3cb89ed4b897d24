-- name: setting_read
-- For every login; only the settings that a tenant's process may know.
SELECT wsync.setting_value(:key);

-- name: setting_claim
-- Writes the value unless there is one, and returns the one that then holds: of many processes that start at once, one decides.
-- The update changes nothing but makes RETURNING speak.
INSERT INTO wsync.setting (key, value)
VALUES (:key, CAST(:value AS jsonb))
ON CONFLICT (key) DO UPDATE SET value = setting.value
RETURNING value;

-- name: setting_write
INSERT INTO wsync.setting (key, value)
VALUES (:key, CAST(:value AS jsonb))
ON CONFLICT (key) DO UPDATE SET value = excluded.value;
