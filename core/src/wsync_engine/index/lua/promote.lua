-- KEYS inc, delay, rq:h, rq:m, rq:l, idle; ARGV[3] = n. Moves what is ready by now; returns moved, next ready_at or -1.
local members = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))
write('ZREM', KEYS[2], members)
enqueue({KEYS[3], KEYS[4], KEYS[5]}, members)
wake_workers(KEYS[6], #members)
return {#members, earliest({KEYS[2]})}
