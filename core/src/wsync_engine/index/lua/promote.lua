-- ARGV[4] = n. Delayed runs that are ready now go into the queues; returns moved, next ready_at or -1.
local members = redis.call('ZRANGEBYSCORE', DELAY, '-inf', now, 'LIMIT', 0, tonumber(ARGV[4]))
write('ZREM', DELAY, members)
enqueue(members)
return finish({#members, earliest({DELAY})})
