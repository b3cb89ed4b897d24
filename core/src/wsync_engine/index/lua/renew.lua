-- KEYS inc, held, lease; ARGV[3] = lease in ms, ARGV[4…] runs. Returns the runs that are not held.
local runs, leases, unknown = {}, {}, {}
for at = 4, #ARGV do runs[#runs + 1] = ARGV[at] end
if #runs == 0 then return unknown end
local held = redis.call('HMGET', KEYS[2], unpack(runs))
for at, run in ipairs(runs) do
    if held[at] then
        leases[#leases + 1] = whole(now + ARGV[3])
        leases[#leases + 1] = run
    else
        unknown[#unknown + 1] = run
    end
end
write('ZADD', KEYS[3], leases)
return unknown
