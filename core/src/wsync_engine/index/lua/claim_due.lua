-- KEYS inc, due, rev, firing, delay, lease; ARGV[3] = n, ARGV[4] = fire lease in ms. Returns now, next wake or -1, (id, rev)*.
local n = tonumber(ARGV[3])
local ids = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, n)  -- those whose scheduler died come first
if #ids < n then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, n - #ids)) do ids[#ids + 1] = id end
end
local result = {whole(now), ''}
if #ids > 0 then
    local revs = redis.call('HMGET', KEYS[3], unpack(ids))
    local leases = {}
    for at, id in ipairs(ids) do
        leases[#leases + 1] = whole(now + ARGV[4])
        leases[#leases + 1] = id
        result[#result + 1] = id
        result[#result + 1] = revs[at] or '0'
    end
    write('ZREM', KEYS[2], ids)
    write('ZADD', KEYS[4], leases)
end
result[2] = earliest({KEYS[2], KEYS[4], KEYS[5], KEYS[6]})
return result
