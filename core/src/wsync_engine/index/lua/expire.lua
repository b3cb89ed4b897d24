-- KEYS inc, held, lease, rq:h, rq:m, rq:l, idle; ARGV[3] = n. Holds that nobody renewed end, their runs go back into the queue:
-- if Postgres disagrees, the claim drops them. Returns the runs.
local runs = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))
if #runs == 0 then return runs end
local held, members = redis.call('HMGET', KEYS[2], unpack(runs)), {}
for at = 1, #runs do
    if held[at] then members[#members + 1] = held[at] end
end
redis.call('HDEL', KEYS[2], unpack(runs))
redis.call('ZREM', KEYS[3], unpack(runs))
enqueue({KEYS[4], KEYS[5], KEYS[6]}, members)
wake_workers(KEYS[7], #members)
return runs
