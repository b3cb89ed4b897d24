-- KEYS inc, rq:h, rq:m, rq:l, held, lease, idle, st; ARGV[3] = worker, ARGV[4] = free slots, ARGV[5] = hold lease in ms.
-- Shares slots 8:4:1 between the classes by a fixed table: a class with work is never passed over at its own place in the table, so
-- low waits at most 12 dispatches. Within a class first due, first served. Returns ready members.
if string.sub(inc, -6) ~= ':ready' then return redis.error_reply('FILLING the index is being loaded') end
local TABLE = {1, 2, 1, 1, 2, 1, 3, 1, 2, 1, 1, 2, 1}
local free = tonumber(ARGV[4])
local queues, position = {}, {1, 1, 1}
for class = 1, 3 do queues[class] = redis.call('ZRANGE', KEYS[1 + class], 0, free - 1) end
local cursor = tonumber(redis.call('HGET', KEYS[8], 'cursor') or '0')
local taken, removed, holds, leases = {}, {{}, {}, {}}, {}, {}
local function next_class()
    for step = 0, #TABLE - 1 do
        local class = TABLE[(cursor + step) % #TABLE + 1]
        if queues[class][position[class]] then
            cursor = (cursor + step + 1) % #TABLE
            return class
        end
    end
end
while #taken < free do
    local class = next_class()
    if not class then break end
    local member = queues[class][position[class]]
    position[class] = position[class] + 1
    taken[#taken + 1] = member
    removed[class][#removed[class] + 1] = member
    holds[#holds + 1] = run_of(member)
    holds[#holds + 1] = member
    leases[#leases + 1] = whole(now + ARGV[5])
    leases[#leases + 1] = run_of(member)
end
for class = 1, 3 do write('ZREM', KEYS[1 + class], removed[class]) end
write('HSET', KEYS[5], holds)
write('ZADD', KEYS[6], leases)
if #taken > 0 then redis.call('HSET', KEYS[8], 'cursor', cursor) end
if #taken < free then
    redis.call('ZADD', KEYS[7], 'NX', now, ARGV[3])
else
    redis.call('ZREM', KEYS[7], ARGV[3])
end
return taken
