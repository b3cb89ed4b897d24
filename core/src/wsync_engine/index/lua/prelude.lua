-- Put before every script. KEYS[1] = inc, ARGV[1] = incarnation (uuid:server run id), ARGV[2] = test clock in ms or ''.
local inc = redis.call('GET', KEYS[1])
if ARGV[1] == '' or not inc or string.sub(inc, 1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then
    return redis.error_reply('REBUILD the index is absent or another one')
end
local now = tonumber(ARGV[2])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local function whole(number) return string.format('%.0f', number) end
local function head(key)
    local found = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    return tonumber(found[2])
end
local function earliest(keys)
    local least = -1
    for _, key in ipairs(keys) do
        local score = head(key)
        if score and (least < 0 or score < least) then least = score end
    end
    return whole(least)
end
-- Every write is variadic: one call per key, not one per member.
local function write(command, key, arguments)
    if #arguments > 0 then redis.call(command, key, unpack(arguments)) end
end
-- The schedulers' channel is one for all shards: the message says which.
local function wake_schedulers(old_head, new_head)
    if new_head and (not old_head or new_head < old_head) then
        redis.call('PUBLISH', 'ws2:wake:sched', string.match(KEYS[1], '{(%d+)}'))
    end
end
-- (id, rev, due) triples from ARGV[first]; due -1: not due; -2: the schedule is gone for good, its rev is forgotten too.
local function upsert(due_key, rev_key, firing_key, first, count)
    if count == 0 then return 0 end
    local ids, rev, due = {}, {}, {}
    for at = first, first + 3 * count - 1, 3 do
        local id = ARGV[at]
        local number = tonumber(ARGV[at + 1])
        if not rev[id] then ids[#ids + 1] = id end
        if not rev[id] or number > rev[id] then rev[id], due[id] = number, tonumber(ARGV[at + 2]) end
    end
    local stored = redis.call('HMGET', rev_key, unpack(ids))
    local old_head = head(due_key)
    local accepted, revs, gone, dues, undue = {}, {}, {}, {}, {}
    for at, id in ipairs(ids) do
        if rev[id] > (tonumber(stored[at]) or 0) then
            accepted[#accepted + 1] = id
            if due[id] == -2 then
                gone[#gone + 1] = id
            else
                revs[#revs + 1] = id
                revs[#revs + 1] = whole(rev[id])
            end
            if due[id] < 0 then
                undue[#undue + 1] = id
            else
                dues[#dues + 1] = whole(due[id])
                dues[#dues + 1] = id
            end
        end
    end
    write('ZREM', firing_key, accepted)
    write('HSET', rev_key, revs)
    write('HDEL', rev_key, gone)
    write('ZREM', due_key, undue)
    write('ZADD', due_key, dues)
    wake_schedulers(old_head, head(due_key))
    return #accepted
end
