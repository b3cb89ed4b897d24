-- ARGV[4] = n. Holds that nobody renewed end, their runs go back into the queue: if Postgres disagrees, the claim drops them.
-- Returns the runs. Also forgets, a little at a time, what is worth nothing any more.
local runs = redis.call('ZRANGEBYSCORE', LEASE, '-inf', now, 'LIMIT', 0, tonumber(ARGV[4]))
if #runs > 0 then
    local members = release(runs, 'expired')
    enqueue(members)
    readmit_after(members)
end
-- Tenants that have nothing and are behind the others anyway.
local function forget_passes()
    local page = redis.call('HSCAN', PASS, states.scan or '0', 'COUNT', 100)
    local keys, tenants, fields = {}, {}, {}
    for at = 1, #page[2], 2 do
        if string.sub(page[2][at + 1], 1, 1) == 'o' then
            keys[#keys + 1] = page[2][at]
            tenants[#tenants + 1] = 'T' .. string.sub(page[2][at], 4)
        end
    end
    load_resources(tenants)
    load_passes(keys)
    for at, key in ipairs(keys) do
        local pass = passes[key]
        if resources[tenants[at]].used == 0 and not pass.is_active and pass.value <= served_of(string.sub(key, 1, 2)) then pass.is_dirty = true end
    end
    redis.call('HSET', ST, 'scan', page[1])
end
if #runs == 0 and redis.call('EXISTS', PASS) == 1 then
    if redis.call('EXISTS', RQ, WAIT, HELD, ACT) == 0 then
        redis.call('UNLINK', PASS, ST, OUT, URGENT, PARKED)  -- nobody is served: all start from nothing again
    else
        forget_passes()
    end
end
if redis.call('HLEN', EWMA) > 100000 then write('HDEL', EWMA, redis.call('HRANDFIELD', EWMA, 100)) end
return finish(runs)
