-- ARGV[4] = lease in ms, ARGV[5…] ready members of running runs: when the index is rebuilt, and by each sweep for what was lost.
-- What they cost is charged when they are released. Returns how many were not held.
local members = {}
for at = 5, #ARGV do members[#members + 1] = ARGV[at] end
if #members == 0 then return 0 end
local runs, new, holds, leases = {}, {}, {}, {}
for at, member in ipairs(members) do runs[at] = run_of(member) end
local held = redis.call('HMGET', HELD, unpack(runs))
for at, member in ipairs(members) do
    if not held[at] then
        new[#new + 1] = member
        holds[#holds + 1] = runs[at]
        holds[#holds + 1] = member .. '|0|' .. whole(now)
        leases[#leases + 1] = whole(now + ARGV[4])
        leases[#leases + 1] = runs[at]
    end
end
for _, member in ipairs(new) do
    local ids = resources_of(member)
    load_resources(ids)
    use(ids, 1)
end
withdraw(new)
write('HSET', HELD, holds)
write('ZADD', LEASE, leases)
return finish(#new)
