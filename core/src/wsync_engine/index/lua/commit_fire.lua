-- KEYS inc, due, rev, firing, delay, held, rq:h, rq:m, rq:l, idle; ARGV[3] = number of (id, rev, next) triples, then the triples,
-- then (ready member, ready_at)*. Returns how many members were put into a queue. Held runs are left where they are, delayed ones unless they are ready.
local count = tonumber(ARGV[3])
upsert(KEYS[2], KEYS[3], KEYS[4], 4, count)
local members, ready, runs = {}, {}, {}
for at = 4 + 3 * count, #ARGV, 2 do
    members[#members + 1] = ARGV[at]
    ready[#ready + 1] = tonumber(ARGV[at + 1])
    runs[#runs + 1] = run_of(ARGV[at])
end
if #members == 0 then return 0 end
local held = redis.call('HMGET', KEYS[6], unpack(runs))
local delayed = redis.call('ZMSCORE', KEYS[5], unpack(members))
local pushed, delays, early = {}, {}, {}
for at, member in ipairs(members) do
    if held[at] or (delayed[at] and ready[at] > now) then
        -- RELEASE or EXPIRE, and PROMOTE, bring these on
    elseif delayed[at] then
        early[#early + 1] = member
        pushed[#pushed + 1] = member
    elseif ready[at] > now then
        delays[#delays + 1] = whole(ready[at])
        delays[#delays + 1] = member
    else
        pushed[#pushed + 1] = member
    end
end
local old_head = head(KEYS[5])
write('ZREM', KEYS[5], early)
write('ZADD', KEYS[5], delays)
local new_head = head(KEYS[5])
if new_head and (not old_head or new_head < old_head) then redis.call('PUBLISH', 'ws:wake:sched', 'delay') end
enqueue({KEYS[7], KEYS[8], KEYS[9]}, pushed)
wake_workers(KEYS[10], #pushed)
return #pushed
