-- KEYS[18…20] = due, rev, firing; ARGV[4] = number of (id, rev, next) triples, then the triples, then (ready member, ready_at)*.
-- Returns how many members are new in a queue. Held runs are left where they are, and so are those that wait for a resource.
local count = tonumber(ARGV[4])
upsert(KEYS[18], KEYS[19], KEYS[20], 5, count)
local members, ready, runs = {}, {}, {}
for at = 5 + 3 * count, #ARGV, 2 do
    members[#members + 1] = ARGV[at]
    ready[#ready + 1] = tonumber(ARGV[at + 1])
    runs[#runs + 1] = run_of(ARGV[at])
end
if #members == 0 then return 0 end
local held = redis.call('HMGET', HELD, unpack(runs))
local parked = redis.call('HMGET', PARKED, unpack(runs))
local queued = redis.call('ZMSCORE', RQ, unpack(members))
local delayed = redis.call('ZMSCORE', DELAY, unpack(members))
local pushed, promoted, later, delays, queued_keys = {}, {}, {}, {}, {}
for at, member in ipairs(members) do
    local is_waiting = string.find('NSK', string.sub(parked[at] or '-', 1, 1), 1, true)
    if held[at] then
        -- RELEASE or EXPIRE bring it on
    elseif ready[at] > now then
        if queued[at] or is_waiting then later[#later + 1] = member end
        delays[#delays + 1] = whole(ready[at])
        delays[#delays + 1] = member
    elseif queued[at] then
        queued_keys[#queued_keys + 1] = key_of(member)
    elseif not is_waiting then
        pushed[#pushed + 1] = member
        if delayed[at] then promoted[#promoted + 1] = member end
    end
end
withdraw(later)
local old_head = head(DELAY)
write('ZREM', DELAY, promoted)
write('ZADD', DELAY, delays)
wake_schedulers(old_head, head(DELAY))
enqueue(pushed)
activate(queued_keys)
return finish(#pushed)
