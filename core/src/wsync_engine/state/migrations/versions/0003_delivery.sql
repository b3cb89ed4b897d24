CREATE INDEX run_unfolded ON wsync.run (sync_id) WHERE delivery IS NOT NULL AND folded_at IS NULL;  -- who may be delivering, or has left acks
