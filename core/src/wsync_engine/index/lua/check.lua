-- KEYS inc, due, rev, firing; ARGV[3…] (id, rev)* of schedules that must be due. Returns (id, 'missing' | 'older' | 'newer', stored rev)*.
local ids, revs, result = {}, {}, {}
for at = 3, #ARGV, 2 do
    ids[#ids + 1] = ARGV[at]
    revs[#revs + 1] = tonumber(ARGV[at + 1])
end
if #ids == 0 then return result end
local stored = redis.call('HMGET', KEYS[3], unpack(ids))
local due = redis.call('ZMSCORE', KEYS[2], unpack(ids))
local firing = redis.call('ZMSCORE', KEYS[4], unpack(ids))
for at, id in ipairs(ids) do
    local rev, verdict = tonumber(stored[at]) or 0, nil
    if rev < revs[at] then verdict = 'older'
    elseif rev > revs[at] then verdict = 'newer'
    elseif not due[at] and not firing[at] then verdict = 'missing' end
    if verdict then
        result[#result + 1] = id
        result[#result + 1] = verdict
        result[#result + 1] = whole(rev)
    end
end
return result
