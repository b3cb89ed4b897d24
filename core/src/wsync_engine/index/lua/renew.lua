-- ARGV[4] = lease in ms, ARGV[5…] runs. Returns the runs that are not held.
local runs, leases, unknown = {unpack(ARGV, 5)}, {}, {}
if #runs == 0 then return unknown end
local held = redis.call('HMGET', HELD, unpack(runs))
for at, run in ipairs(runs) do
    if held[at] then
        leases[#leases + 1] = whole(now + ARGV[4])
        leases[#leases + 1] = run
    else
        unknown[#unknown + 1] = run
    end
end
write('ZADD', LEASE, leases)
return unknown
