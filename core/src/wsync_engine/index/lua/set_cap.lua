-- ARGV[4…] (tenant, resource, cap, weight, version)*, resource = kind letter + id (`B`: a breaker's, of a credential). The newer version wins, whatever the cap.
-- Returns (resource, stored version)* of those that are newer here. The same version of another cap is older or newer, nobody knows which, because
-- Postgres lost commits and went on: that is said as if the stored one were the next version.
local function written(cap) return whole(cap.cap) .. '|' .. cap.weight .. '|' .. whole(cap.version) end
local given, ids, newer, set = {}, {}, {}, {}
for at = 4, #ARGV, 5 do
    given[#given + 1] = {tenant = ARGV[at], id = ARGV[at + 1], cap = tonumber(ARGV[at + 2]), weight = ARGV[at + 3], version = tonumber(ARGV[at + 4])}
    ids[#ids + 1] = ARGV[at + 1]
end
if #ids == 0 then return newer end
local stored, changed = redis.call('HMGET', CAP, unpack(ids)), {}
for at, cap in ipairs(given) do
    local version = tonumber(string.match(stored[at] or '', '|(%d+)$') or '0')
    if cap.version > version then
        set[#set + 1] = cap.id
        set[#set + 1] = written(cap)
        changed[#changed + 1] = cap
    elseif cap.version < version or stored[at] ~= written(cap) then
        newer[#newer + 1] = cap.id
        newer[#newer + 1] = whole(math.max(version, cap.version + 1))
    end
end
write('HSET', CAP, set)
has_caps = true
for _, cap in ipairs(changed) do
    local id = string.gsub(cap.id, '^B', 'K')
    load_resources({id})
    local urgent = urgent_of(cap.tenant)
    if resources[id].cap == 0 and urgent and urgent.needs[id] then drop_urgent(cap.tenant) end
    if string.sub(id, 1, 1) == 'T' then bring_back(cap.tenant) else readmit(id, cap.tenant) end
end
return finish(newer)
