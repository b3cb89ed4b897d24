-- name: partition_make
-- Daily partitions for today and the days ahead (UTC).
SELECT wsync.partition_make(CAST(:days_ahead AS int));

-- name: partition_drop
SELECT wsync.partition_drop(:parent, CAST(:before_day AS date));

-- name: partition_default_rows
-- Rows that found no daily partition; more than none is an alarm.
SELECT (SELECT count(*) FROM wsync.run_history_default) + (SELECT count(*) FROM wsync.run_event_default) AS stray;
