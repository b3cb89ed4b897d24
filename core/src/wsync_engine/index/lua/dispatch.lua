-- ARGV[4] = worker, ARGV[5] = free slots, ARGV[6] = hold lease in ms, ARGV[7] = patience in ms, ARGV[8…] = queues that the worker serves
-- (hex digits); they take turns in this order. Returns 1 if there may be more to examine, the virtual time, ready members*.
if string.sub(inc, -6) ~= ':ready' then return redis.error_reply('FILLING the index is being loaded') end
local TABLE = {'2', '1', '2', '2', '1', '2', '0', '2', '1', '2', '2', '1', '2'}  -- 8 : 4 : 1 for high, medium, low
local EXAMINED, EXAMINED_PER_TENANT = 200, 100  -- a script must not hold the server for long
local worker, free, lease_ms, patience_ms = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local taken, holds, leases, taken_runs, examined, is_more = {}, {}, {}, {}, 0, false

-- A group's tenants by their pass, read from `act` as far as needed; those after `edge` are still to be read.
local groups = {}
local function tenants_of(group)
    if not groups[group] then groups[group] = {group = group, edge = group .. '|', edge_at = {pass = -1, tenant = ''}, line = {}} end
    return groups[group]
end
local function goes_before(a, b) return a.pass < b.pass or (a.pass == b.pass and a.tenant < b.tenant) end
local function enter(line, tenant)
    local at = #line + 1
    while at > 1 and goes_before(tenant, line[at - 1]) do at = at - 1 end
    table.insert(line, at, tenant)
end
local function first_of(list)
    local count = math.min(math.max(free, 8), 24)
    while list.edge and not (list.line[1] and goes_before(list.line[1], list.edge_at)) do
        local page = redis.call('ZRANGEBYLEX', ACT, '(' .. list.edge, '(' .. list.group .. '}', 'LIMIT', 0, count)
        local keys = {}
        for at, entry in ipairs(page) do keys[at] = list.group .. '|' .. string.sub(entry, 25) end
        load_passes(keys)
        for at, entry in ipairs(page) do
            list.edge_at = {key = keys[at], tenant = string.sub(entry, 25), pass = tonumber(string.sub(entry, 4, 23)), examined = 0}
            enter(list.line, list.edge_at)
        end
        list.edge = #page == count and page[#page] or nil
    end
    return list.line[1]
end

-- A tenant's oldest runs, a page at a time; every move is written before a page is read, so what is read is still to be examined.
local costs = {}
-- Older ones may be refused because of what is kept for it.
local function put_urgent_first(tenant)
    local urgent = urgent_of(tenant.tenant)
    if not urgent or key_of(urgent.member) ~= tenant.key or not redis.call('ZSCORE', RQ, urgent.member) then return end
    local runs = {urgent.member}
    for _, member in ipairs(tenant.runs) do
        if member ~= urgent.member then runs[#runs + 1] = member end
    end
    tenant.runs = runs
end
local function read_page(tenant, list)
    write_moves()
    examined = examined + 5  -- another tenant costs more than another run of the same
    -- What it is likely to get; more if that is not enough, because much of it is refused.
    local from, count = '[' .. tenant.key .. '|', math.ceil((free - #taken) / #list.line)
    count = math.max(count, math.min(4 * (tenant.count or 0), 64))
    tenant.count = count
    tenant.runs = redis.call('ZRANGEBYLEX', RQ, from, '[' .. tenant.key .. '}', 'LIMIT', 0, count)
    tenant.at, tenant.is_all, tenant.is_stale = 1, #tenant.runs < count, false
    if #tenant.runs == 0 then return end
    put_urgent_first(tenant)
    local ids, syncs = {}, {}
    for at, member in ipairs(tenant.runs) do
        syncs[at] = sync_of(member)
        for _, id in ipairs(resources_of(member)) do ids[#ids + 1] = id end
    end
    load_resources(ids)
    for at, seconds in ipairs(redis.call('HMGET', EWMA, unpack(syncs))) do costs[syncs[at]] = (tonumber(seconds) or 1) * 1000 end
end
local function next_run(tenant, list)
    if not tenant.runs or tenant.is_stale or (not tenant.runs[tenant.at] and not tenant.is_all) then read_page(tenant, list) end
    return tenant.runs[tenant.at]
end

local function full_resource(member, ids, tenant)
    for _, id in ipairs(ids) do
        if not has_room(id, tenant, member) then return id end
    end
end
-- Refused for longer than the patience and older than the tenant's urgent run: it becomes that one. Not where a breaker is open.
local function becomes_urgent(member, ids, tenant)
    local since, urgent = refused_since(member), urgent_of(tenant)
    if not since or now - since < patience_ms or (urgent and not is_older(member, urgent.member)) then return false end
    for _, id in ipairs(ids) do
        if resources[id].cap == 0 then return false end
    end
    drop_urgent(tenant)
    set_urgent(tenant, member)
    return true
end
local function take(list, tenant, member, ids)
    local cost = math.floor(costs[sync_of(member)])
    local pass, run = passes[tenant.key], run_of(member)
    use(ids, 1)
    taken[#taken + 1], leaving[#leaving + 1], taken_runs[#taken_runs + 1] = member, member, run
    holds[#holds + 1] = run
    holds[#holds + 1] = member .. '|' .. whole(cost) .. '|' .. whole(now)
    leases[#leases + 1] = whole(now + lease_ms)
    leases[#leases + 1] = run
    local served = math.max(served_of(list.group), pass.value)
    states['v' .. list.group] = string.format('%.3f', served)
    pass.value, pass.is_dirty = pass.value + cost / resources['T' .. tenant.tenant].weight, true
    if urgent_of(tenant.tenant) and urgent_of(tenant.tenant).member == member then set_urgent(tenant.tenant, nil) end
    table.remove(list.line, 1)
    tenant.pass, tenant.at = pass.value, tenant.at + 1
    enter(list.line, tenant)
end
-- Others of the group may wait for what the run that was just taken or parked leaves free.
local function look_behind(tenant, ids, group)
    for at = 2, 4 do
        if readmit(ids[at], tenant.tenant, group) then tenant.is_stale = true end
    end
end
-- One run of the first tenant; false: that tenant has none to give, and is out of the line.
local function serve(list, tenant)
    while true do
        local member = next_run(tenant, list)
        examined = examined + 1
        if not member then
            table.remove(list.line, 1)
            deactivate(tenant.key)
            return false
        end
        local ids = resources_of(member)
        local full = full_resource(member, ids, tenant.tenant)
        if full and becomes_urgent(member, ids, tenant.tenant) then
            tenant.is_stale, is_more = true, true
            full = full_resource(member, ids, tenant.tenant)
        end
        if not full then
            take(list, tenant, member, ids)
            look_behind(tenant, ids, list.group)
            return true
        end
        if string.sub(full, 1, 1) == 'T' then
            note_refusal(member, '-')
            table.remove(list.line, 1)
            put_out(tenant.key)
            return false
        end
        park(member, full)
        tenant.examined = tenant.examined + 1
        tenant.at = tenant.at + 1
        look_behind(tenant, ids, list.group)
        if tenant.examined >= EXAMINED_PER_TENANT or examined >= EXAMINED then
            table.remove(list.line, 1)  -- the next call goes on with it: it is still in `act`
            is_more = true
            return false
        end
    end
end
-- The queue's cursor stands still until a slot of its table is used: a class with work is never passed over at its own place.
local function serve_queue(queue)
    local cursor = tonumber(states['c' .. queue] or '0')
    local step = 0
    while step < #TABLE and examined < EXAMINED do
        local list = tenants_of(queue .. TABLE[(cursor + step) % #TABLE + 1])
        local tenant = first_of(list)
        if not tenant then
            step = step + 1
        elseif serve(list, tenant) then
            states['c' .. queue] = whole((cursor + step + 1) % #TABLE)
            return true
        end
    end
    return false
end

local at, misses = 8, 0
while #taken < free and misses <= #ARGV - 8 and examined < EXAMINED do
    misses = serve_queue(ARGV[at]) and 0 or misses + 1
    at = at < #ARGV and at + 1 or 8
end
is_more = is_more or examined >= EXAMINED or next(is_started) ~= nil
write_moves()
write('HDEL', PARKED, taken_runs)
write('HSET', HELD, holds)
write('ZADD', LEASE, leases)
local entries, virtual, fields = {}, 0, {}
for index = 8, #ARGV do
    entries[#entries + 1] = ARGV[index] .. '|' .. worker
    for _, class in ipairs({'2', '1', '0'}) do
        local group = ARGV[index] .. class
        virtual = virtual + served_of(group)
        if groups[group] and states['v' .. group] then
            fields[#fields + 1] = 'v' .. group
            fields[#fields + 1] = states['v' .. group]
        end
    end
    if states['c' .. ARGV[index]] then
        fields[#fields + 1] = 'c' .. ARGV[index]
        fields[#fields + 1] = states['c' .. ARGV[index]]
    end
end
if #taken > 0 then write('HSET', ST, fields) end
if #taken < free and not is_more then
    local scored = {}
    for _, entry in ipairs(entries) do
        scored[#scored + 1] = '0'
        scored[#scored + 1] = entry
    end
    write('ZADD', IDLE, scored)
else
    write('ZREM', IDLE, entries)
end
table.insert(taken, 1, whole(virtual))
table.insert(taken, 1, is_more and #taken - 1 < free and '1' or '0')
return finish(taken)
