-- name: shards_lock
-- Who inserts waits; who reads does not.
LOCK TABLE wsync.schedule_clock, wsync.backfill, wsync.run IN SHARE MODE;

-- name: shards_used
-- Whether a row has a shard that was reckoned with the present number.
SELECT EXISTS (SELECT FROM wsync.schedule_clock) OR EXISTS (SELECT FROM wsync.backfill) OR EXISTS (SELECT FROM wsync.run) AS is_used;
