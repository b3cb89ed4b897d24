-- KEYS inc, held, lease, rq:h, rq:m, rq:l; ARGV[3] = lease in ms, ARGV[4…] ready members of running runs, when the index is rebuilt.
local holds, leases, removed = {}, {}, {{}, {}, {}}
for at = 4, #ARGV do
    local member = ARGV[at]
    local class = class_of(member)
    holds[#holds + 1] = run_of(member)
    holds[#holds + 1] = member
    leases[#leases + 1] = whole(now + ARGV[3])
    leases[#leases + 1] = run_of(member)
    removed[class][#removed[class] + 1] = member
end
for class = 1, 3 do write('ZREM', KEYS[3 + class], removed[class]) end
write('HSET', KEYS[2], holds)
write('ZADD', KEYS[3], leases)
return #holds / 2
